"""`audit.html`: one self-contained page with what an audit found."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from datasets_scripts.files import write_text
from datasets_scripts.records import Scene, SceneSet, read_image
from modeling_cora.pictures import captioned, grid, heat_map, overlay, palette
from trainers.report import STYLE
from trainers.summary import html_table

from .predictions import read_prediction

PICTURE_WIDTH = 560  # of the image in a picture, at most, in pixels


def write_page(path: Path, summary: dict, shown: Sequence[Scene], predictions: Path, scene_set: SceneSet) -> None:
    """Args:
    summary: of `audit.run_audit`.
    shown: scenes whose pseudo-labels are drawn, in this order.
    """
    title = f"Pseudo-labels of {summary['method']}"
    truth = (
        f"{summary['images_with_truth']} of {summary['images']} images have a truth: mIoU {_number(summary['miou'])}, "
        f"pixel accuracy {_number(summary['accuracy'])}."
        if summary["images_with_truth"]
        else f"None of the {summary['images']} images has a truth to compare with."
    )
    val = "" if summary["val_miou"] is None else f" The model's mIoU on val: {_number(summary['val_miou'])}."
    classes = [("class", "predicted", "truth", "confident", "IoU")]
    for name, entry in summary["coverage"].items():
        shares = (entry[f"{kind}_share"] for kind in ("predicted", "truth", "confident"))
        classes.append((name, *map(_number, shares), _number(summary["iou"].get(name))))
    tenths = [("tenth", "confidence", "accuracy")]
    for k, group in enumerate(summary["deciles"], 1):
        confidence = f"{_number(group['lowest'])} to {_number(group['highest'])}"
        tenths.append((str(k), confidence, _number(group["accuracy"])))
    confident = f"at least {summary['threshold']:g} confident"
    pictures = "".join(_picture(scene, summary, predictions, scene_set) for scene in shown)
    body = f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>
<style>{STYLE}</style><h1>{html.escape(title)}</h1><p>{html.escape(truth + val)}</p>
<h2>Classes</h2><p>Shares of all pixels; of the pixels of the class, how many are {confident}.</p>
<div class="wide">{html_table(classes)}</div>
<h2>Accuracy by confidence</h2><p>Each row is a tenth of the pixels, from the least to the most confident.</p>
{html_table(tenths) if summary["deciles"] else "<p>Not known.</p>"}
<h2>The least certain images</h2><p>Left the pseudo-labels, right how uncertain they are.</p>
{pictures or "<p>Nothing is known of the confidence.</p>"}</html>
"""
    write_text(path, body)


def _picture(scene: Scene, summary: dict, predictions: Path, scene_set: SceneSet) -> str:
    mask, confidence = read_prediction(predictions, scene.image_id, {c.id for c in scene_set.classes})
    image = read_image(scene.image)
    size = (min(PICTURE_WIDTH, image.width), max(1, round(image.height * min(1, PICTURE_WIDTH / image.width))))
    image = image.resize(size)
    mask, confidence = (_resized(one, size) for one in (mask, confidence))
    colours = palette(len(scene_set.classes))
    found = [(one, colours[k]) for k, one in enumerate(scene_set.classes) if (mask == one.id).any()]
    labelled = overlay(
        image,
        [mask == one.id for one, _ in found],
        [one.name for one, _ in found],
        [colour for _, colour in found],
        outline=False,
    )
    certainty = summary["least_certain"][scene.image_id]
    caption = f"{scene.image_id}: mean confidence {certainty:.2f}"
    content = io.BytesIO()
    sheet = grid([[labelled, captioned(heat_map(image, 1 - confidence / 255), caption)]])
    sheet.save(content, "JPEG", quality=80)
    encoded = base64.b64encode(content.getvalue()).decode()
    return f'<p><img alt="{html.escape(caption)}" src="data:image/jpeg;base64,{encoded}"></p>'


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.NEAREST))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
