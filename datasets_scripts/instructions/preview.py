"""`preview.html`: some instructions of a set with their pictures, on one page that needs no other file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from ..files import write_text
from ..records import DataError, Instruction, Scene, SceneSet, read_image, region_mask
from .statistics import statistics

SIDE = 640
"""The longer side of a picture on the page, in pixels."""
QUALITY = 82
"""Of the JPEG; a picture is some 60 kB, a page of 40 some 3 MB."""
SMALL = 0.004
"""Fraction of the picture below which a region gets a frame, so that eyes find it."""

MAX_FRAME = 0.02
"""Fraction of the picture above which a frame would surround more than it shows."""

Colour = tuple[int, int, int]
TARGET: Colour = (213, 94, 0)
ANCHORS: tuple[Colour, ...] = ((0, 114, 178), (230, 190, 0))  # with the target's, of Okabe and Ito (2008)

FACTS: dict[str, str] = {
    "target_left": "left edge of the target: {:.1%} of the width",
    "target_right": "right edge of the target: {:.1%} of the width",
    "anchor_left": "left edge of the anchor: {:.1%} of the width",
    "anchor_right": "right edge of the anchor: {:.1%} of the width",
    "target_top": "top of the target: {:.1%} of the height",
    "target_bottom": "bottom of the target: {:.1%} of the height",
    "anchor_top": "top of the anchor: {:.1%} of the height",
    "anchor_bottom": "bottom of the anchor: {:.1%} of the height",
    "target_foot": "the target meets the ground at {:.1%} of the height",
    "anchor_foot": "the anchor meets the ground at {:.1%} of the height",
    "shared_columns": "shared columns: {:.1%} of the narrower one",
    "distance": "distance from the anchor: {:.1%} of the diagonal",
    "next_distance": "distance of the next one: {:.1%} of the diagonal",
    "area_ratio": "ratio of the areas: {:.2f}",
    "along": "place on the line between the anchors: {:.1%}",
    "aside": "aside of that line: {:.1%} of its length",
    "surrounded": "of the pixels around it the anchor's: {:.1%}",
    "contact": "of the pixels around it the anchor's: {:.1%}",
    "ahead": "ahead of the next one: {:.1%} of the image",
    "extends_from": "begins at {:.1%} of the image",
    "extends_to": "ends at {:.1%} of the image",
    "edge_reached": "takes up {:.1%} of the edge",
    "edge_distance": "distance from the edge: {:.1%} of the image",
    "fraction": "pixels of this colour: {:.1%}",
    "colour": "known colour: {}",
}
"""Facts in words, by name."""

STYLE = """
:root { --ink: #1c2733; --faint: #5d6b78; --line: #d5dde5; --paper: #fff; --ground: #f3f5f8; --chip: #e8edf3;
  --target: #d55e00; --anchor0: #0072b2; --anchor1: #e6be00; --bad: #b3261e }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --faint: #9fadba; --line: #36424e; --paper: #1b232b;
  --ground: #12181e; --chip: #2a3540; --bad: #ff8a80 } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; color: var(--ink); background: var(--ground) }
header, main { max-width: 84rem; margin: 0 auto; padding: 1.2rem 1rem 0 }
main { padding-bottom: 3rem; display: grid; gap: 1.2rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)) }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem } header p { margin: .2rem 0; color: var(--faint) }
article { background: var(--paper); border: 1px solid var(--line); border-radius: .6rem; overflow: hidden }
article.false { border: 2px solid var(--bad) }
article > div { padding: .8rem 1rem 1rem }
img { display: block; width: 100%; height: auto }
h2 { font-size: 1.12rem; line-height: 1.35; margin: .5rem 0; overflow-wrap: anywhere }
.tags { margin: 0; display: flex; flex-wrap: wrap; gap: .35rem; font-size: .8rem }
.tags span { background: var(--chip); border-radius: 1rem; padding: .05rem .6rem; overflow-wrap: anywhere }
.key, .facts, details ul { margin: .4rem 0 0; padding: 0; list-style: none; font-size: .9rem; overflow-wrap: anywhere }
.key i { display: inline-block; width: 1.1rem; height: .8rem; margin-right: .5rem; vertical-align: -.05rem;
  border: 3px solid var(--target) }
.key i.anchor0 { border: 3px dashed var(--anchor0) } .key i.anchor1 { border: 3px dashed var(--anchor1) }
.facts { color: var(--faint) } .answer { margin: .5rem 0 0; font-size: .9rem; overflow-wrap: anywhere }
.reasons { color: var(--bad); margin: .5rem 0 0; padding-left: 1.1rem; font-size: .9rem; overflow-wrap: anywhere }
details { margin-top: .5rem; font-size: .9rem } summary { cursor: pointer } details li { padding: .1rem 0 }
code { background: var(--chip); border-radius: .25rem; padding: 0 .25rem; overflow-wrap: anywhere }
"""


def write_preview(
    path: str | Path,
    scene_set: SceneSet,
    instructions: Sequence[Instruction],
    reasons: Sequence[Sequence[str]] | None = None,
    count: int = 40,
    seed: int = 0,
    title: str = "Instructions",
) -> None:
    """Writes a page of `count` instructions, or of all where there are fewer; whole or not at all.

    Args:
        reasons: for each instruction, what is wrong with it, as of `check_scene`; such ones are marked.
        seed: of the choice (`choose`).

    Raises:
        DataError: an image or a map of a chosen instruction cannot be read.
    """
    scenes = {scene.image_id: scene for scene in scene_set.scenes}
    maps = lru_cache(maxsize=4)(
        lambda image_id: (read_image(scenes[image_id].image), *read_labels(scene_set, scenes[image_id]))
    )
    cards = []
    for index in choose(instructions, count, seed):
        instruction = instructions[index]
        shown = ""
        if instruction.image_id in scenes:
            picture = instruction_picture(scene_set, instruction, *maps(instruction.image_id))
            shown = _embedded(picture, instruction.image_id)
        cards.append(_card(instruction, shown, reasons[index] if reasons else ()))
    found = statistics(instructions)
    facts = f"{found['instructions']} instructions with {found['queries']} queries about {found['images']} images"
    write_text(
        path,
        f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>
<style>{STYLE}</style></head><body><header><h1>{html.escape(title)}</h1>
<p>{facts}; here {len(cards)} of them, drawn so that every kind and claim has its share (seed {seed}).</p></header>
<main>
{"".join(cards)}</main></body></html>
""",
    )


def choose(instructions: Sequence[Instruction], count: int, seed: int) -> list[int]:
    """Indices of `count` instructions, drawn in turn from each kind and claim; sorted by kind and claim."""
    rng = np.random.default_rng(seed)
    strata: dict[tuple[str, str], list[int]] = {}
    for index in rng.permutation(len(instructions)).tolist():
        strata.setdefault((instructions[index].kind, instructions[index].claim), []).append(index)
    turns = [(turn, key) for key, indices in strata.items() for turn in range(len(indices))]
    chosen = sorted(sorted(turns)[:count], key=lambda place: (place[1], place[0]))
    return [strata[key][turn] for turn, key in chosen]


def read_labels(scene_set: SceneSet, scene: Scene) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The maps of a scene, None where it has none."""
    return scene_set.read_maps(scene) if scene.labelled else (None, None)


def instruction_picture(
    scene_set: SceneSet,
    instruction: Instruction,
    image: Image.Image,
    labels: np.ndarray | None,
    instances: np.ndarray | None,
) -> bytes:
    """The image with the instruction's target and, dashed, its anchors, as a JPEG.

    Args:
        labels, instances: the scene's maps; None for an image without labels, which is shown as it is.
    """
    regions = []
    class_ids = {c.name: c.id for c in scene_set.classes}
    places = [*zip(ANCHORS, instruction.anchors, strict=False), (TARGET, instruction)]
    for colour, place in places if labels is not None else []:
        if place.class_name in class_ids:
            try:
                mask = region_mask(class_ids[place.class_name], place.instance_ids, labels, instances) == 1
            except DataError:  # a false instruction may name instances where there are none
                continue
            regions.append((colour, mask, colour != TARGET))
    content = io.BytesIO()
    drawn_regions(image, regions).save(content, "JPEG", quality=QUALITY)
    return content.getvalue()


def _embedded(picture: bytes, name: str) -> str:
    data = base64.b64encode(picture).decode()
    return f'<img loading="lazy" alt="{html.escape(name)}" src="data:image/jpeg;base64,{data}">'


def drawn_regions(image: Image.Image, regions: Sequence[tuple[Colour, np.ndarray, bool]]) -> Image.Image:
    """The image, its longer side `SIDE` pixels, with regions tinted and outlined.

    Args:
        regions: colour, mask (H, W) and whether its outline is dashed; later ones lie over earlier ones.
    """
    scale = SIDE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    rows, columns = np.ogrid[: size[1], : size[0]]
    frames = []
    for colour, mask, dashed in regions:
        region = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        canvas[region] = 0.72 * canvas[region] + 0.28 * np.array(colour)
        outer = ndimage.binary_dilation(region, iterations=2)
        halo, edge = ndimage.binary_dilation(outer) & ~outer, outer & ~ndimage.binary_erosion(region)
        if dashed:
            edge &= (rows + columns) // 7 % 3 < 2
        canvas[halo] = 0.4 * canvas[halo] + 0.6 * 255
        canvas[edge] = colour
        if region.any() and region.mean() < SMALL:
            place = np.nonzero(region)
            left, right, top, bottom = (int(v) for axis in place[::-1] for v in (axis.min(), axis.max()))
            if (right - left) * (bottom - top) < MAX_FRAME * region.size:
                frames.append((colour, (left, right, top, bottom)))
    picture = Image.fromarray(np.rint(canvas).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for colour, (left, right, top, bottom) in frames:
        draw.rectangle((left - 9, top - 9, right + 9, bottom + 9), outline=(255, 255, 255), width=4)
        draw.rectangle((left - 8, top - 8, right + 8, bottom + 8), outline=colour, width=2)
    return picture


def _card(instruction: Instruction, picture: str, reasons: Sequence[str]) -> str:
    """One instruction as an `<article>`; every text of the set is escaped here."""
    tags = [instruction.kind, *([instruction.claim] if instruction.claim else []), instruction.image_id]
    if instruction.source != "rules":
        tags.append(f"written by {instruction.source}")
    legend = [f"<li><i></i>target: {_place(instruction.class_name, instruction.instance_ids)}</li>"]
    names = instruction.facts.get("anchors", ())
    for k, anchor in enumerate(instruction.anchors):
        name = names[k] if isinstance(names, list | tuple) and k < len(names) else ""
        by = f", the {_text(name)} one" if name else ""
        legend.append(
            f'<li><i class="anchor{k % 2}"></i>anchor: {_place(anchor.class_name, anchor.instance_ids)}{by}</li>'
        )
    facts = [f"<li>{_text(fact)}</li>" for fact in facts_in_words(instruction.facts)]
    rephrasings = [f"<li>{_text(rephrasing)}</li>" for rephrasing in instruction.rephrasings]
    wrong = [f"<li>{_text(reason)}</li>" for reason in reasons]
    return f"""<article{' class="false"' if reasons else ""}>{picture}<div>
<p class="tags">{"".join(f"<span>{_text(tag)}</span>" for tag in tags)}</p>
<h2>{_text(instruction.query)}</h2>
<ul class="key">{"".join(legend)}</ul>
{f'<ul class="reasons">{"".join(wrong)}</ul>' if wrong else ""}
{f'<ul class="facts">{"".join(facts)}</ul>' if facts else ""}
<p class="answer">answer: <code>{_text(instruction.answer)}</code></p>
<details><summary>{len(rephrasings)} rephrasings</summary><ul>{"".join(rephrasings)}</ul></details>
</div></article>
"""


def facts_in_words(facts: dict[str, Any]) -> list[str]:
    """ "right edge of the target: 32.1% of the width", for each fact but the anchors' names."""
    words = []
    for name, value in facts.items():
        if name == "anchors":
            continue
        try:
            words.append(FACTS[name].format(value))
        except (KeyError, ValueError, TypeError):  # another source's fact, or one that is no number
            words.append(f"{name.replace('_', ' ')}: {value}")
    return words


def _place(class_name: str, ids: tuple[int, ...] | None) -> str:
    if ids is None:
        return f"all {_text(class_name)}"
    if len(ids) == 1:
        return f"{_text(class_name)}, instance {_text(ids[0])}"
    return f"{_text(class_name)}, {len(ids)} instances"


def _text(value: object) -> str:
    return html.escape(str(value))
