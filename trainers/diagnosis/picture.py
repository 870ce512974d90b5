"""`diagnosis.png`: a row of panels for each question, drawn from `diagnosis.json` alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets_scripts.files import write_bytes
from trainers.comparison import COLOURS

BLUE, RED, GREEN, PINK, ORANGE, _, BLACK = COLOURS
SCORES = {"lambda": BLUE, "confidence": RED}
TERMS = {"labelled": ("$L^l$", BLACK), "pseudo": (r"$L_{seg}^u$", BLUE), "contrast": ("$L_t^u$", GREEN)}
LOGGED = {
    "mean_weight": ("mean lambda", BLACK),
    "pseudo_bce_loss": ("pseudo BCE", BLUE),
    "pseudo_dice_loss": ("pseudo Dice", RED),
    "contrast_loss": ("contrast", GREEN),
}
MARKERS = "osD^vPX*"
"""With the colours they tell 56 classes apart, and the first of them without any colour."""
GREY = "#d5dde5"


def draw_diagnosis(path: Path, diagnosis: Mapping) -> None:
    """Args:
    diagnosis: what `trainers/diagnose.py` found; a panel whose numbers are missing says so.
    """
    from matplotlib.figure import Figure  # without pyplot, which wants a screen; and slow to import

    figure = Figure(figsize=(15, 12.5), layout="constrained")
    rows = figure.subfigures(3, 1, hspace=0.03)
    panels: Sequence[tuple[str, Sequence[Callable]]] = (
        ("Is lambda informative?  Right and wrong pixels of the pseudo-labels", (_tenths, _kept, _aurocs)),
        ("Are [SEG] embeddings separated by class?", (_cosines, _labelled_plane, _pseudo_plane)),
        ("Is sigma at the right scale?", (_norms, _scales, _log)),
    )
    for row, (question, drawn) in zip(rows, panels, strict=True):
        row.suptitle(question, x=0.01, ha="left", fontsize=14, fontweight="bold")
        for axes, draw in zip(row.subplots(1, 3), drawn, strict=True):
            axes.spines[["top", "right"]].set_visible(False)
            if missing := draw(axes, diagnosis):
                axes.set_axis_off()
                axes.text(0.5, 0.5, missing, ha="center", va="center", transform=axes.transAxes, color="#5b6b7b")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    write_bytes(path, content.getvalue())


def _scored(diagnosis: Mapping) -> dict[str, Mapping]:
    """By score, what is known of the pixels that have a truth; {} where none has."""
    labels = diagnosis["lambda"]["labels"]
    return {name: labels[name] for name in SCORES if labels.get(name, {}).get("pixels_with_truth")}


NO_TRUTH = "not known: no unlabelled image\nhas a truth to compare with"


def _tenths(axes, diagnosis: Mapping) -> str:
    if not (scored := _scored(diagnosis)):
        return NO_TRUTH
    for name, found in scored.items():
        accuracies = [group["accuracy"] for group in found["deciles"]]
        axes.plot(range(1, 11), accuracies, marker="o", color=SCORES[name], label=name, markersize=5)
    mean = scored["lambda"]["accuracy"]
    axes.axhline(mean, color=BLACK, linestyle=":", linewidth=1)
    axes.text(10.3, mean, "mean", va="top", ha="right", fontsize=8)
    axes.set(xlabel="tenth of the pixels, from the lowest score to the highest", ylabel="share of right pixels",
             xticks=range(1, 11), title="Accuracy by tenth: rising = informative", ylim=(0, 1.02))  # fmt: skip
    _plain(axes, place="lower right")
    return ""


def _kept(axes, diagnosis: Mapping) -> str:
    if not (scored := _scored(diagnosis)):
        return NO_TRUTH
    for name, found in scored.items():
        shares = [100 * point["share"] for point in found["kept"]]
        label = f"{name}, AUROC {_number(found['auroc'])}"
        axes.plot(shares, [p["accuracy"] for p in found["kept"]], color=SCORES[name], label=label)
    axes.axhline(scored["lambda"]["accuracy"], color=BLACK, linestyle=":", linewidth=1)
    axes.set(xlabel="pixels kept, those with the highest score, %", ylabel="share of right pixels", ylim=(0, 1.02),
             title="Accuracy of the pixels kept: higher = better filter")  # fmt: skip
    _plain(axes, place="lower left")
    return ""


def _aurocs(axes, diagnosis: Mapping) -> str:
    scored = _scored(diagnosis)
    names = [n for n, of in scored.get("lambda", {}).get("by_class", {}).items() if of["auroc"] is not None]
    if not names:
        return NO_TRUTH if not scored else "not known: no class has right and wrong pixels"
    names.sort(key=lambda name: scored["lambda"]["by_class"][name]["auroc"])
    pairs = [[found["by_class"].get(name, {}).get("auroc") for found in scored.values()] for name in names]
    for row, pair in enumerate(pairs):
        known = [value for value in pair if value is not None]
        axes.plot([min(known), max(known)], [row, row], color=GREY, linewidth=3, zorder=1)
    for column, (score, marker) in enumerate(zip(scored, "oD", strict=False)):
        values = [(pair[column], row) for row, pair in enumerate(pairs) if pair[column] is not None]
        axes.scatter(*zip(*values, strict=True), color=SCORES[score], marker=marker, label=score, zorder=2)
    axes.axvline(0.5, color=BLACK, linestyle=":", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="AUROC of right pixels (0.5: says nothing)", xlim=(-0.02, 1.02), title="By class of pseudo-label")
    _plain(axes, grid="x", place="lower right")
    return ""


def _cosines(axes, diagnosis: Mapping) -> str:
    found = diagnosis["embeddings"]["labelled"]
    if not found["classes"]:
        return "not known: the bank is empty"
    cosine = np.array([[np.nan if v is None else v for v in row] for row in found["cosine"]])
    picture = axes.imshow(cosine, cmap="cividis", vmin=-1, vmax=1)
    axes.figure.colorbar(picture, ax=axes, label="mean cosine", shrink=0.85)
    names = found["classes"]
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    if len(names) <= 12:
        for (y, x), value in np.ndenumerate(cosine):
            colour = "black" if value > 0.2 else "white"
            text = "" if np.isnan(value) else f"{value:.1f}"
            axes.text(x, y, text, ha="center", va="center", fontsize=7, color=colour)
    axes.spines[:].set_visible(False)
    axes.set_title(f"Cosine within {_number(found['within'])} (diagonal), between {_number(found['between'])}")
    return ""


def _labelled_plane(axes, diagnosis: Mapping) -> str:
    found = diagnosis["embeddings"]
    share = 100 * found["plane_share"]
    title = f"Labelled: own class's mean nearest {_percent(found['labelled']['nearest_mean'])}"
    return _plane(axes, found, "labelled", title, f"principal components ({share:.0f} % of the variance)")


def _pseudo_plane(axes, diagnosis: Mapping) -> str:
    found = diagnosis["embeddings"]
    title = f"Pseudo-labelled: own class's mean nearest {_percent(found['agreement']['nearest_mean'])}"
    missing = _plane(axes, found, "pseudo", title, "the same plane")
    if not missing:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8, handletextpad=0.2)
    return missing


def _plane(axes, found: Mapping, group: str, title: str, label: str) -> str:
    if not found["points"][group]:
        return "not known: no embeddings"
    # as a class looks on both planes, whichever classes each of them shows
    order = sorted({name for points in found["points"].values() for _, _, name in points})
    for number, name in enumerate(order):
        own = [(x, y) for x, y, of in found["points"][group] if of == name]
        # drawn empty too, so that the legend has every class
        places = np.array(own).reshape(-1, 2)
        axes.scatter(*places.T, s=30, color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)],
                     label=name, alpha=0.75, linewidths=0)  # fmt: skip
    every = np.array([point[:2] for points in found["points"].values() for point in points])
    (left, bottom), (right, top) = every.min(0), every.max(0)
    pad = 0.05 * max(right - left, top - bottom, 1e-6)
    axes.set(xlim=(left - pad, right + pad), ylim=(bottom - pad, top + pad), xlabel=label, title=title)
    axes.set_xticks([])
    axes.set_yticks([])
    return ""


def _norms(axes, diagnosis: Mapping) -> str:
    found = diagnosis["gradients"]
    shown = [name for name in TERMS if name in found]
    for place, name in enumerate(shown):
        _, colour = TERMS[name]
        factor = found[name].get("sigma", 1)
        each = factor * np.array(found[name]["each"])
        axes.bar(place, factor * found[name]["mean"], color=colour, alpha=0.3, width=0.6)
        shifts = np.linspace(-0.15, 0.15, len(each)) if len(each) > 1 else [0]
        axes.plot(place + np.array(shifts), each, "o", color=colour, markersize=4)
        axes.errorbar(place, factor * found[name]["mean"], factor * found[name]["std"], color=BLACK, capsize=6)
    labels = [TERMS[n][0] if n == "labelled" else rf"$\sigma\,${TERMS[n][0]}" for n in shown]
    axes.set_xticks(range(len(shown)), labels, fontsize=12)
    axes.set(ylabel="norm of the gradient", title=f"Gradients at {_in_use(found)}: mean, spread, batches")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=GREY)
    axes.set_axisbelow(True)
    return ""


def _in_use(found: Mapping) -> str:
    """sigma, or both where eq. 8 has a weight of its own."""
    sigmas = dict.fromkeys(f"{found[name]['sigma']:g}" for name in TERMS if "sigma" in found.get(name, {}))
    return rf"$\sigma$ = {' and '.join(sigmas)}"


def _scales(axes, diagnosis: Mapping) -> str:
    found = diagnosis["gradients"]
    terms = [name for name in ("pseudo", "contrast") if found.get(name, {}).get("equal_sigma")]
    reference = found["labelled"]["mean"]
    if not terms or not reference:
        return "not known: a gradient is 0"
    in_use = [found[name]["sigma"] for name in terms if found[name]["sigma"]]
    marked = [found[name]["equal_sigma"] for name in terms] + in_use
    sigmas = np.array([min(marked) / 5, max(marked) * 5])
    axes.loglog(sigmas, [reference] * 2, color=BLACK, label=TERMS["labelled"][0])
    spread = found["labelled"]["std"]
    axes.fill_between(sigmas, max(reference - spread, reference / 100), reference + spread, color=BLACK, alpha=0.1)
    for name in terms:
        text, colour = TERMS[name]
        equal = found[name]["equal_sigma"]
        axes.loglog(
            sigmas, sigmas * found[name]["mean"], color=colour, label=rf"$\sigma\,${text}, equal at {equal:.2g}"
        )
        axes.plot(equal, reference, "o", color=colour, markersize=8)
    for number, sigma in enumerate(dict.fromkeys(in_use)):
        label = None if number else f"in use: {_in_use(found)}"
        axes.axvline(sigma, color=RED, linestyle="--", label=label)
    axes.set(xlabel=r"$\sigma$", ylabel="norm of the gradient", title=r"Where they would be equal")
    _plain(axes)
    return ""


def _log(axes, diagnosis: Mapping) -> str:
    if not diagnosis["log"]:
        return "no log: --stage3 names a run"
    steps = [entry["step"] for entry in diagnosis["log"]]
    for name, (label, colour) in LOGGED.items():
        if any(name in entry for entry in diagnosis["log"]):
            axes.plot(steps, [entry.get(name, np.nan) for entry in diagnosis["log"]], color=colour, label=label,
                      marker="o" if len(steps) < 20 else "", markersize=4)  # fmt: skip
    axes.xaxis.get_major_locator().set_params(integer=True)
    # lambda runs along the top: room for the legend above it
    axes.set(xlabel="step of stage 3", title="What its training logged", ylim=(0, 1.4 * axes.get_ylim()[1]))
    _plain(axes, place="upper left")
    return ""


def _plain(axes, grid: str = "both", place: str = "best") -> None:
    axes.grid(axis=grid, color=GREY)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=9, loc=place)


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.0f} %"
