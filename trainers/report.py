"""`report.html`: one self-contained page with the table, the pictures and the loss curve of a run."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets_scripts.files import write_text
from modeling_cora.losses import LOSS_TERMS

from .summary import html_table, stage_table, summary_table

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .2rem .8rem; border-bottom: 1px solid #d5dde5; text-align: right }
td:first-child, th:first-child { text-align: left }
img { max-width: 100%; height: auto } svg { max-width: 100% }
.wide { overflow-x: auto } code { background: #eef2f6; padding: .1rem .3rem }
.key span { display: inline-block; width: .9rem; height: .9rem; margin: 0 .3rem 0 1rem; vertical-align: -.1rem }
"""

PALETTE = ("#1c2733", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8a97a5")
COLOURS = dict(zip(("loss", *LOSS_TERMS), PALETTE, strict=False))
"""Of the loss and its terms, Okabe and Ito's."""


@dataclass(frozen=True)
class Stage:
    """One trained model of a run.

    Attributes:
        history: `log_history` of its trainer's state.
        summary: of `summarise_records`; None where the stage was not evaluated.
        overlays: a PNG of its answers; None where there is none.
    """

    name: str
    history: Sequence[dict]
    summary: dict | None = None
    overlays: Path | None = None


def write_report(path: Path, title: str, introduction: str, stages: Sequence[Stage]) -> None:
    """The page of a run: what each stage brought, the last one's scores, everybody's pictures and curves.

    Args:
        stages: the last one evaluated.
    """
    *before, last = evaluated = [stage for stage in stages if stage.summary]
    brought = ""
    if before:
        table = html_table(stage_table({stage.name: stage.summary for stage in evaluated}))
        brought = f'<h2>What each stage brought</h2><div class="wide">{table}</div>'
    earlier = "".join(
        f"<details><summary>the same after {html.escape(stage.name)}</summary>{_picture(stage)}</details>"
        for stage in before
    )
    curves = "".join(f"<h3>{html.escape(stage.name)}</h3>{_curves(stage.history)}" for stage in stages)
    body = f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>
<style>{STYLE}</style><h1>{html.escape(title)}</h1><p>{html.escape(introduction)}</p>{brought}
<h2>Answers about unseen images, after {html.escape(last.name)}</h2>
<p class="key"><span style="background:#009e73"></span>found <span style="background:#d55e00"></span>wrongly added
<span style="background:#0072b2"></span>missed</p>
{_picture(last)}{earlier}
<h2>The same in numbers</h2>
<p>cIoU: all intersections over all unions; gIoU: mean IoU of the queries; class found and told apart are of queries
about a part of a class. Class found: in how many of them a tenth of the class's pixels or more is marked, whichever.
Told apart: the share of the part that is found less the share of the class's other pixels that is marked, 1 where all
are answered rightly, 0 for whoever answers with the whole class, another one, nothing or by chance. The last columns
are answers that need no model: everything; the class's mean training mask (cut at the level that is best on the
training images); and for queries about a part of a class its whole true mask: whoever knows classes perfectly, and
nothing of places and relations, answers so.</p>
<div class="wide">{html_table(summary_table(last.summary))}</div>
<h2>Training</h2>{curves}</html>
"""
    write_text(path, body)


def _picture(stage: Stage) -> str:
    if stage.overlays is None:
        return "<p>No pictures were asked for (<code>examples: 0</code>).</p>"
    content = base64.b64encode(stage.overlays.read_bytes()).decode()
    return f'<img alt="queries and answers on unseen images" src="data:image/png;base64,{content}">'


def _curves(history: Sequence[dict], width: int = 860, height: int = 260) -> str:
    """The logged terms over steps as an SVG."""
    logged = [entry for entry in history if "loss" in entry]
    names = [name for name in COLOURS if any(name in entry for entry in logged)]
    if len(logged) < 2:
        return "<p>Too few log lines for a curve.</p>"
    last = logged[-1]["step"]
    top = max(entry[name] for entry in logged for name in names if name in entry) or 1.0
    lines = []
    for name in names:
        points = " ".join(
            f"{40 + (width - 60) * e['step'] / last:.1f},{height - 30 - (height - 50) * e[name] / top:.1f}"
            for e in logged
            if name in e
        )
        lines.append(f'<polyline fill="none" stroke="{COLOURS[name]}" stroke-width="2" points="{points}"/>')
    legend = "".join(f'<span style="background:{COLOURS[name]}"></span>{name}' for name in names)
    axis = (
        f'<path d="M40 20V{height - 30}H{width - 20}" fill="none" stroke="#8a97a5"/>'
        f'<text x="34" y="26" text-anchor="end" font-size="12">{top:.1f}</text>'
        f'<text x="34" y="{height - 26}" text-anchor="end" font-size="12">0</text>'
        f'<text x="{width - 20}" y="{height - 10}" text-anchor="end" font-size="12">step {last}</text>'
    )
    return f'<svg viewBox="0 0 {width} {height}" role="img">{axis}{"".join(lines)}</svg><p class="key">{legend}</p>'


def read_history(model: Path) -> list[dict]:
    """`log_history` that the trainer saved beside the model; empty where there is none."""
    state = model / "trainer_state.json"
    return json.loads(state.read_text(encoding="utf-8"))["log_history"] if state.exists() else []
