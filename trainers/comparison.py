"""One score of every method on every fraction with every seed, as a table and as a picture."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from datasets_scripts.command_line import UsageError
from datasets_scripts.files import write_bytes
from datasets_scripts.instructions.statistics import markdown_table

# colours that the colour-blind can tell apart (Okabe and Ito)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


@dataclass(frozen=True)
class Comparison:
    """
    Attributes:
        score: what is compared, such as "mIoU on val".
        methods, fractions: the rows and columns; fractions from few to many labelled images.
        seeds: (method, fraction) -> seed -> score in [0, 1], of the runs that have ended.
        baseline: of `methods`, what the others are compared with seed by seed; any other name: no differences.
    """

    score: str
    methods: Sequence[str]
    fractions: Sequence[str]
    seeds: Mapping[tuple[str, str], Mapping[int, float]]
    baseline: str

    def values(self, method: str, fraction: str) -> list[float]:
        return list(self.seeds.get((method, fraction), {}).values())

    def differences(self, method: str, fraction: str) -> list[float]:
        """To the baseline, of the seeds that both have: these share their first weights and the order of their data."""
        own, other = (self.seeds.get((name, fraction), {}) for name in (method, self.baseline))
        return [own[seed] - other[seed] for seed in own if seed in other]

    def table(self) -> str:
        """Markdown: mean and spread over seeds, and of the differences to the baseline."""
        rows = [(m, *(mean_and_spread(self.values(m, f)) for f in self.fractions)) for m in self.methods]
        if self.baseline in self.methods:
            rows += [
                (f"{m} - {self.baseline}", *(mean_and_spread(self.differences(m, f)) for f in self.fractions))
                for m in self.methods
                if m != self.baseline
            ]
        table = markdown_table(("%", *(fraction.replace("_", "/") for fraction in self.fractions)), rows)
        return f"{self.score}\n\n{table}"

    def draw(self, path: Path) -> None:
        """PNG: means over seeds, standard deviations as bars, every seed as a dot; none before a run ends. A line for
        each method over the fractions; where there is one fraction alone, a place for each method."""
        if not any(self.seeds.values()):
            return
        from matplotlib.figure import Figure  # without pyplot, which wants a screen; and slow to import

        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        alone = len(self.fractions) == 1
        for number, method in enumerate(self.methods):
            known = [f for f in self.fractions if self.values(method, f)]
            if not known:
                continue
            colour = COLOURS[number % len(COLOURS)]
            # side by side, so that bars do not hide each other
            shift = number if alone else 0.06 * (number - (len(self.methods) - 1) / 2)
            places = [self.fractions.index(fraction) + shift for fraction in known]
            percent = [[100 * value for value in self.values(method, fraction)] for fraction in known]
            means = [statistics.mean(values) for values in percent]
            spreads = [statistics.stdev(values) if len(values) > 1 else 0 for values in percent]
            axes.errorbar(places, means, spreads, color=colour, marker="o", markersize=4, capsize=3, label=method)
            for place, values in zip(places, percent, strict=True):
                beside = place + 0.1 if alone else place
                axes.plot([beside] * len(values), values, ".", color=colour, alpha=0.35, markersize=4)
        fractions = [fraction.replace("_", "/") for fraction in self.fractions]
        names = list(self.methods) if alone else fractions
        axes.set_xticks(range(len(names)), names)
        axes.set(
            xlabel=f"labelled images: {fractions[0]}" if alone else "labelled images",
            ylabel=f"{self.score}, %",
            xlim=(-0.5, len(names) - 0.5),
        )
        axes.grid(axis="y", color="#d5dde5")
        axes.spines[["top", "right"]].set_visible(False)
        if not alone:
            axes.legend(frameon=False)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=150)
        write_bytes(path, content.getvalue())


def require_matplotlib() -> None:
    """For programs that draw when they have computed for hours.

    Raises:
        UsageError: it is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UsageError("matplotlib: not installed, and figures need it; pip install -e '.[experiment]' brings it")


def mean_and_spread(values: Sequence[float]) -> str:
    """`mean ± sample standard deviation (n)`, in percent."""
    if not values:
        return ""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread} ({len(values)})"
