"""The Space of the metric: two mask files in, intersection, union and IoU out.

Written by hand because `evaluate.utils.launch_gradio_widget` speaks to a Gradio of long ago.
"""

from pathlib import Path
from typing import Any

import numpy as np
from ciou import PROTOCOLS, intersection_and_union, summarize
from PIL import Image

BLACK_AND_WHITE = "black and white"
LABELS = "labels: 0, 1, 255 = ignored"


def read_mask(path: str, encoding: str) -> np.ndarray:
    """Read a mask (H, W), uint8; in black and white whatever is not black is target."""
    values = np.array(Image.open(path).convert("L") if encoding == BLACK_AND_WHITE else Image.open(path))
    return (values > 0).astype(np.uint8) if encoding == BLACK_AND_WHITE else values


def score(prediction: str | None, reference: str | None, encoding: str, protocol: str) -> tuple[int, int, float]:
    """Intersection and union in pixels and the IoU of two mask files.

    Raises:
        ValueError: a file is missing or its mask is not one the metric takes.
    """
    if prediction is None or reference is None:
        raise ValueError("two files are needed, the predicted mask and the reference")
    masks = read_mask(prediction, BLACK_AND_WHITE), read_mask(reference, encoding)
    intersection, union = intersection_and_union(*masks, protocol=protocol)
    iou = summarize([intersection], [union], protocol)["giou"]
    return int(intersection), int(union), round(iou, 4)


def build() -> Any:
    """The page, a `gradio.Blocks`; importing this file needs no Gradio, only showing it does."""
    import gradio as gr

    def answer(*inputs: Any) -> tuple[int, int, float]:
        try:
            return score(*inputs)
        except (ValueError, OSError) as error:
            raise gr.Error(str(error)) from None

    # Files, not gr.Image: a label map must arrive with the values it was saved with.
    with gr.Blocks(title="cIoU") as page:
        gr.Markdown("# IoU of two masks\nPNG files of the same size. Definitions and limits are in the card below.")
        with gr.Row():
            prediction = gr.File(label="predicted mask", file_types=["image"])
            reference = gr.File(label="reference mask", file_types=["image"])
        encoding = gr.Radio([BLACK_AND_WHITE, LABELS], value=BLACK_AND_WHITE, label="values of the reference")
        protocol = gr.Radio(list(PROTOCOLS), value=PROTOCOLS[0], label="protocol")
        button = gr.Button("Compare", variant="primary")
        with gr.Row():
            outputs = [gr.Number(label=label) for label in ("intersection (pixels)", "union (pixels)", "IoU")]
        button.click(answer, [prediction, reference, encoding, protocol], outputs, api_name="score")
        card = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
        gr.Markdown(card.split("---", 2)[2])
    return page


if __name__ == "__main__":
    build().launch()
