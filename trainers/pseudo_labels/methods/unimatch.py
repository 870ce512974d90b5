def unimatch_weights(strong: float = 0.25, feature: float = 0.5) -> dict[str, float]:
    """(L_x + strong L_s1 + strong L_s2 + feature L_fp) / 2 (UniMatch, `unimatch.py`)."""
    return {
        "labelled_loss": 0.5,
        "strong1_loss": strong / 2,
        "strong2_loss": strong / 2,
        "feature_loss": feature / 2,
    }
