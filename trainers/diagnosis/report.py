"""`report.md`: the three questions, each with an answer in words and the numbers behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from datasets_scripts.instructions.statistics import markdown_table

INFORMATIVE, CHANCE = 0.6, 0.55
"""AUROC from which the report says "yes", and below which "no": rules of thumb, no tests."""


def diagnosis_report(diagnosis: Mapping) -> str:
    """Markdown, from what `trainers/diagnose.py` found."""
    parts = (_lambda(diagnosis["lambda"]), _embeddings(diagnosis["embeddings"]), _sigma(diagnosis["gradients"]))
    head = f"# Diagnosis of {diagnosis['model']}\n\n![The figures](diagnosis.png)\n"
    return "\n".join([head, *(text for part in parts for text in part)])


def _lambda(found: Mapping) -> Iterator[str]:
    yield "## Is lambda informative?\n"
    labels, own = found["labels"], found["labels"].get("lambda")
    source = {"ahead": "written ahead", "now": "asked now"}[found["source"]]
    images = f"{found['images']} unlabelled images, {found['images_with_truth']} of them with a truth"
    yield f"Lambda ({found['kind']}) was {source}; {images}.\n"
    if own is None:
        yield "No pixel has a lambda.\n"
        return
    if own["auroc"] is None:
        why = "no image has a truth" if not own["pixels_with_truth"] else "all pixels are right, or all are wrong"
        yield f"Not known: {why}. Mean lambda {_number(own['mean'])}.\n"
    else:
        yield _verdict(own["auroc"], labels.get("confidence"), labels["beyond"]) + "\n"
        yield (
            f"Mean lambda {own['mean']:.4g}: {own['mean_right']:.4g} on right pixels, "
            f"{own['mean_wrong']:.4g} on wrong ones. "
            f"{_number(own['accuracy'])} of the pixels are right. Counted as in eq. 7, every pixel once for each mask "
            f"of its image, lambda's AUROC is {_number(found['masks']['lambda']['auroc'])}.\n"
        )
    scores = {name: labels[name] for name in ("lambda", "confidence") if name in labels}
    if all(score["deciles"] for score in scores.values()):
        yield "Share of right pixels in each tenth, from the lowest score to the highest:\n"
        head = ("tenth", *(text for name in scores for text in (name, "right")))
        tenths = zip(*(score["deciles"] for score in scores.values()), strict=True)
        yield markdown_table(head, ((str(k), *(t for g in of for t in (f"{g['lowest']:.4g} to {g['highest']:.4g}",
                                    _number(g["accuracy"])))) for k, of in enumerate(tenths, 1)))  # fmt: skip
    yield "By class of the pseudo-label:\n"
    head = ("class", "pixels", "right", "mean lambda", *(f"AUROC of {name}" for name in scores))
    yield markdown_table(head, ((name, f"{of['pixels']:,}", _number(of["accuracy"]), _number(of["mean"]),
                                *(_number(s["by_class"].get(name, {}).get("auroc")) for s in scores.values()))
                                for name, of in own["by_class"].items()))  # fmt: skip
    yield from _scales(found)


def _scales(found: Mapping) -> Iterator[str]:
    masks, labels = found["masks"]["lambda"], found["labels"]["lambda"]
    yield "How much the scale of lambda matters: accuracy of pixels that count as much as lambda says.\n"
    head = ("lambda", "mean, as eq. 7 counts", "right", "mean, own class", "right")
    rows = [("1", "1", _number(masks["accuracy"]), "1", _number(labels["accuracy"]))]
    for scale in found["scales"]:
        values = (scale[view][key] for view in ("masks", "labels") for key in ("mean", "accuracy"))
        rows.append((f"exp(-variance / {scale['temperature']:g})", *map(_number, values)))
    yield markdown_table(head, rows)


def _verdict(own: float, confidence: Mapping | None, beyond: Mapping) -> str:
    if own >= INFORMATIVE:
        answer = "**Yes**"
    elif own >= CHANCE:
        answer = "**A little**"
    else:
        answer = "**No**" if own > 1 - CHANCE else "**It points the wrong way**"
    text = (
        f"{answer}: a right pixel has a higher lambda than a wrong one with probability {own:.3f} (AUROC; chance 0.5)."
    )
    if confidence is None or confidence["auroc"] is None:
        return f"{text} The pseudo-labels have no confidence to compare with."
    more = "more" if own > confidence["auroc"] else "less"
    text += f" That is {more} than the segmenter's confidence tells, {confidence['auroc']:.3f}."
    if beyond["lambda"] is not None:
        text += f" Among pixels of equal confidence it is {beyond['lambda']:.3f}"
        text += "; among pixels of equal lambda the confidence has " + f"{_number(beyond['confidence'])}."
    return text


def _embeddings(found: Mapping) -> Iterator[str]:
    yield "## Are `[SEG]` embeddings separated by class?\n"
    of, near = found["labelled"], found["agreement"]
    source = {"bank": "the bank of the last checkpoint", "now": "labelled queries asked now"}[found["source"]]
    yield f"{sum(of['counts'])} embeddings, from {source}; {near['tokens']} of pseudo-labelled objects, asked now.\n"
    rows = (
        ("mean cosine within a class", of["within"], near["own"]),
        ("mean cosine between classes", of["between"], near["other"]),
        ("silhouette, -1 to 1", of["silhouette"], found["pseudo"]["silhouette"]),
        ("nearest to its own class's mean", of["nearest_mean"], near["nearest_mean"]),
    )
    head = ("", "labelled", "pseudo-labelled")
    yield markdown_table(head, ((name, _number(first), _number(second)) for name, first, second in rows))
    yield "Pseudo-labelled embeddings are compared with labelled ones; their silhouette is among themselves.\n"
    head = ("class", "embeddings", "cosine within", "nearest to its own mean")
    within = (row[k] for k, row in enumerate(of["cosine"]))
    columns = zip(of["classes"], of["counts"], within, of["nearest_mean_by_class"], strict=True)
    yield markdown_table(head, ((name, str(n), _number(w), _number(share)) for name, n, w, share in columns))


def _sigma(found: Mapping) -> Iterator[str]:
    yield "## Is sigma at the right scale?\n"
    names = {"pseudo": "L_seg^u", "contrast": "L_t^u"}
    for name, term in names.items():
        if name in found:
            part = found[name]
            equal = (
                "never: its gradient is 0" if part["equal_sigma"] is None else f"at sigma = {part['equal_sigma']:.3g}"
            )
            ratio = "unknown" if part["ratio"] is None else f"{part['ratio']:.3g}"
            yield f"- sigma * {term} pulls {ratio} times as hard as L^l at sigma = {part['sigma']:g}; equal {equal}."
    yield f"\nNorms of gradients on all trained parameters, over {found['batches']} batches:\n"
    head = ("term", "mean", "spread", "times sigma", "cosine with L^l")
    rows = [
        ("L^l", found["labelled"], None),
        *((t, found[n], found[n]["cosine"]) for n, t in names.items() if n in found),
    ]
    yield markdown_table(head, ((term, f"{of['mean']:.3g}", f"{of['std']:.2g}",
                                f"{of['weighted']:.3g}" if "weighted" in of else "", _number(cosine))
                                for term, of, cosine in rows))  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
