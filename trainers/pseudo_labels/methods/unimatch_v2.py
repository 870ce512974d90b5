def unimatch_v2_weights() -> dict[str, float]:
    """(L_x + (L_s1 + L_s2) / 2) / 2 (UniMatch V2, `unimatch_v2.py`)."""
    return {"labelled_loss": 0.5, "strong1_loss": 0.25, "strong2_loss": 0.25}
