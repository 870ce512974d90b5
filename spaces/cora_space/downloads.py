"""What a visitor takes home: masks as PNGs, COCO's run lengths, and the code that repeats the call."""

from __future__ import annotations

import io
import json
import os
import zipfile

import numpy as np
from PIL import Image
from pycocotools import mask as coco_masks

from .answering import Answer, logit
from .inputs import anchors_of

ANCHOR_FILE = "anchor.png"


def masks_zip(answer: Answer, threshold: float) -> bytes:
    """A zip of `mask_1.png`... at image size (0 and 255), in the order of the queries; `anchor.png` where there is one.

    Args:
        threshold: of the probability, in (0, 1).
    """
    masks = dict(enumerate(answer.masks(threshold), start=1))
    files = {f"mask_{number}.png": mask for number, mask in masks.items()}
    if answer.anchor is not None:
        files[ANCHOR_FILE] = answer.anchor
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:  # PNGs are compressed already
        for name, mask in files.items():
            png = io.BytesIO()
            Image.fromarray(mask.astype(np.uint8) * 255).save(png, "PNG")
            archive.writestr(name, png.getvalue())
    return content.getvalue()


def coco_json(answer: Answer, threshold: float) -> str:
    """COCO's form: one image, one annotation for each query, with its text and score.

    Args:
        threshold: of the probability, in (0, 1).
    """
    height, width = answer.logits.size
    annotations = []
    for number, (query, score, mask) in enumerate(
        zip(answer.queries, answer.logits.scores.tolist(), answer.masks(threshold), strict=True),
        start=1,
    ):
        run_lengths = coco_masks.encode(np.asfortranarray(mask, dtype=np.uint8))
        annotations.append(
            {
                "id": number,
                "image_id": 1,
                "category_id": number,
                "query": query,
                "score": round(score, 6),
                "area": int(coco_masks.area(run_lengths)),
                "bbox": coco_masks.toBbox(run_lengths).tolist(),
                "iscrowd": 0,
                "segmentation": {"size": [height, width], "counts": run_lengths["counts"].decode("ascii")},
            }
        )
    image = {"id": 1, "file_name": answer.name, "height": height, "width": width}
    categories = [{"id": number, "name": query} for number, query in enumerate(answer.queries, start=1)]
    return json.dumps({"images": [image], "categories": categories, "annotations": annotations}, indent=1)


def code_snippet(answer: Answer, threshold: float, model: str) -> str:
    """Python that asks the same of the same picture, and gets the same masks.

    Args:
        threshold: of the probability, in (0, 1).
        model: as in `Settings`; of a folder elsewhere on the server only the name is told.
    """
    model = os.path.basename(model.rstrip(os.sep)) if os.path.isabs(model) else model
    queries = "".join(f"    {query!r},\n" for query in answer.queries)
    numpy, anchors = "", ""
    if answer.anchor is not None:
        lists = ", ".join("[this]" if given else "[]" for given in anchors_of(answer.queries, answer.anchor) or [])
        numpy = "import numpy as np\nfrom PIL import Image\n\n"
        anchors = f'this = np.array(Image.open("{ANCHOR_FILE}")) > 0  # of the zip\nanchors = [{lists}]\n'
    options = f"threshold={round(logit(threshold), 4)}" + (", anchors=anchors" if anchors else "")
    return (
        f"{numpy}from modeling_cora import CoraForReasoningSegmentation, CoraProcessor\n"
        "from modeling_cora.images import load_image\n"
        "from modeling_cora.segmentation import segment\n\n"
        f"model = CoraForReasoningSegmentation.from_pretrained({model!r}).eval()\n"
        f"processor = CoraProcessor.from_pretrained({model!r})\n"
        f"image = load_image({answer.name!r})\n"
        f"queries = [\n{queries}]\n"
        f"{anchors}"
        f"answer = segment(model, processor, image, queries, {options})\n"
        "answer.masks  # bool (queries, height, width)\n"
        "answer.scores  # the model's own estimate of each mask's IoU\n"
    )
