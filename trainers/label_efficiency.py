"""The curve of a score over the fraction of labelled images."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets_scripts.files import write_bytes

# colours that the colour-blind can tell apart (Okabe and Ito)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def draw_curves(path: Path, curves: Mapping[str, Mapping[str, Sequence[float]]], label: str) -> None:
    """Means over seeds as lines, standard deviations as bars, every seed as a dot.

    Args:
        curves: by method, by fraction (from few to many labelled images), the score of each seed, in [0, 1].
        label: of the vertical axis.
    """
    from matplotlib.figure import Figure  # without pyplot, which wants a screen; and slow to import

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    fractions = list(dict.fromkeys(fraction for values in curves.values() for fraction in values))
    for number, (method, values) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        # side by side, so that bars do not hide each other
        shift = 0.06 * (number - (len(curves) - 1) / 2)
        places = [fractions.index(fraction) + shift for fraction in values]
        means = [100 * statistics.mean(of_seeds) for of_seeds in values.values()]
        spreads = [100 * statistics.stdev(v) if len(v) > 1 else 0 for v in values.values()]
        axes.errorbar(places, means, spreads, color=colour, marker="o", markersize=4, capsize=3, label=method)
        for place, of_seeds in zip(places, values.values(), strict=True):
            axes.plot([place] * len(of_seeds), [100 * v for v in of_seeds], ".", color=colour, alpha=0.35, markersize=4)
    axes.set_xticks(range(len(fractions)), [fraction.replace("_", "/") for fraction in fractions])
    axes.set(xlabel="labelled images", ylabel=f"{label}, %", xlim=(-0.5, len(fractions) - 0.5))
    axes.grid(axis="y", color="#d5dde5")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_bytes(path, content.getvalue())
