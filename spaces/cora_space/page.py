"""The page: what is on it, and what happens when something on it is used."""

from __future__ import annotations

import functools
import html
import logging
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image

from modeling_cora.segmentation import EncodedImages, MaskLogits

from . import downloads, drawing
from .answering import Answer, Answering
from .inputs import VisitorError, read_anchor, read_file, read_picture, read_queries
from .settings import Settings
from .uploads import Editor, Photo

logger = logging.getLogger(__name__)

EXAMPLES_FOLDER = Path(__file__).resolve().parents[1] / "examples"
EXAMPLES = (
    ("street.jpg", "the road\nthe sky\nthe structures in which people live or work"),
    ("junction.jpg", "the surface with painted lane markings\nwhere the clouds and the sun are\nthe tree"),
    ("night.jpg", "the road\nthe air above the roofs"),
)

TITLE = "CORA: reasoning segmentation"
INTRODUCTION = """<h1>CORA <span>reasoning segmentation</span></h1>
<p>Describe what you look for, in plain words. Every query gets a mask.</p>"""
EMPTY = """<div class="cora-empty"><ol>
<li><b>Upload a picture</b> or pick an example.</li>
<li><b>Type queries</b>, one a line: “the road”, “the vehicle with four wheels”.</li>
<li><b>Press Segment.</b> Masks, confidence and downloads appear here.</li></ol></div>"""
ASK_NOW = '<p class="cora-note">The picture is ready. Type one or several queries and press Segment.</p>'
CONFIDENCE = """<p class="cora-note">Confidence is the model's own estimate of the IoU of a mask (at threshold 0.5).
It can be wrong.</p>"""
POINTING = """<p class="cora-note">Paint over a thing here, or click on a mask or a place in the result. Then write
“this” in a query: “the car left of this”. Other queries are not affected.</p>"""
NO_POINTING = """<p class="cora-note">Pointing at a thing (“the car left of <em>this</em>”) is off: this model was
trained without anchors.</p>"""
UNCERTAIN = """<h2 class="cora-part">Uncertainty</h2>
<p class="cora-note">Orange: the answers to six rephrasings of the query differ here. Grey: they agree.</p>"""
BROKEN = "Something went wrong on our side, and was noted. Try again, or try another picture."
SCROLL_TO_RESULT = "() => document.getElementById('cora-result')?.scrollIntoView({behavior: 'smooth', block: 'start'})"
NARROW_ONLY = f"() => {{ if (window.innerWidth < 900) ({SCROLL_TO_RESULT})() }}"


def alert(message: str) -> str:
    return f'<div class="cora-alert" role="alert">{html.escape(message)}</div>'


class Page:
    """The page of one model. `blocks` is Gradio's app.

    Every handler returns a dict of the components that it changes. A `VisitorError` is shown as it is; of any other
    error the visitor learns that there was one, and the log the rest.
    """

    def __init__(self, answering: Answering, settings: Settings):
        self.answering, self.settings = answering, settings
        with gr.Blocks(
            title=TITLE, analytics_enabled=False, delete_cache=(settings.sweep_seconds, settings.keep_seconds)
        ) as self.blocks:
            self.answer = gr.State(None, time_to_live=settings.keep_seconds)
            gr.HTML(INTRODUCTION, elem_classes="cora-head")
            with gr.Row(elem_classes="cora-columns"):
                with gr.Column(scale=2, min_width=300):
                    self._inputs()
                with gr.Column(scale=3, min_width=300, elem_id="cora-result"):
                    self._results()
            self._events()

    # -- what is on it -------------------------------------------------------------------------------------------------

    def _inputs(self) -> None:
        limits = self.settings
        self.photo = Photo(
            label="Picture",
            show_label=False,
            placeholder=f"Drop a picture here, or click\nup to {limits.max_megabytes:g} MB and "
            f"{limits.max_megapixels:g} megapixels",
            sources=["upload", "clipboard"],
            buttons=[],
            height=260,
            elem_id="cora-photo",
        )
        self.examples = gr.Dataset(
            label="Or try one of these",
            components=[self.photo],
            samples=[[str(EXAMPLES_FOLDER / name)] for name, _ in EXAMPLES],
            type="index",
            elem_id="cora-examples",
        )
        self.queries = gr.Textbox(
            label="Queries, one a line",
            info="Shift + Enter asks.",
            placeholder="the road\nthe vehicle with four wheels",
            lines=3,
            max_lines=limits.max_queries,
            max_length=limits.max_queries * (limits.max_characters + 1),
            elem_id="cora-queries",
        )
        if self.answering.takes_anchors:
            with gr.Accordion("Point at “this”", open=False, elem_id="cora-pointing") as self.pointing:
                gr.HTML(POINTING)
                self.editor = Editor(
                    show_label=False,
                    label="Paint over what “this” is",
                    sources=(),
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(default_size=24, colors=["#ffffff"], color_mode="fixed"),
                    eraser=gr.Eraser(default_size=24),
                    buttons=[],
                    elem_id="cora-editor",
                )
                self.forget = gr.Button("Clear", size="sm", elem_id="cora-forget")
        else:
            gr.HTML(NO_POINTING)
        self.uncertainty = gr.Checkbox(
            label="Show uncertainty", info="Also asks six rephrasings of each query: 7 times the work."
        )
        self.ask = gr.Button("Segment", variant="primary", elem_id="cora-ask")

    def _results(self) -> None:
        self.status = gr.HTML(elem_id="cora-status")
        self.empty = gr.HTML(EMPTY)
        with gr.Column(visible=False) as self.results:
            self.picture = gr.Image(
                show_label=False,
                label="Masks",
                interactive=False,
                format="jpeg",
                buttons=["fullscreen"],
                elem_id="cora-picture",
            )
            self.legend = gr.HTML(elem_id="cora-legend")
            with gr.Column(visible=False) as self.tools:
                with gr.Row():
                    self.opacity = gr.Slider(
                        0, 1, 0.5, step=0.05, label="Opacity", min_width=200, elem_id="cora-opacity"
                    )
                    self.threshold = gr.Slider(
                        0.05,
                        0.95,
                        0.5,
                        step=0.01,
                        label="Threshold",
                        min_width=200,
                        elem_id="cora-threshold",
                    )
                gr.HTML(CONFIDENCE)
                with gr.Column(visible=False) as self.uncertain:
                    gr.HTML(UNCERTAIN)
                    self.maps = gr.Gallery(
                        label="Uncertainty",
                        columns=2,
                        height="auto",
                        object_fit="contain",
                        allow_preview=False,
                        format="jpeg",
                        interactive=False,
                        buttons=[],
                        elem_id="cora-maps",
                    )
                with gr.Row():
                    small: dict[str, Any] = {"size": "md", "min_width": 220}
                    self.get_masks = gr.Button("Download masks (PNG)", elem_id="cora-get-masks", **small)
                    self.get_coco = gr.Button("Download masks (COCO RLE)", elem_id="cora-get-coco", **small)
                # a button of Gradio downloads what it had before the click; so these are filled, then clicked
                self.masks_file = gr.DownloadButton(elem_classes="cora-hidden", elem_id="cora-masks-file")
                self.coco_file = gr.DownloadButton(elem_classes="cora-hidden", elem_id="cora-coco-file")
                with gr.Accordion("Repeat this in Python", open=False):
                    self.code = gr.Code(language="python", show_label=False, interactive=False, elem_id="cora-code")

    # -- what happens --------------------------------------------------------------------------------------------------

    def _events(self) -> None:
        # one request at a time has the model; beside it goes drawing, all events of which share one limit
        model: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        beside: dict[str, Any] = {**model, "concurrency_id": "drawing", "concurrency_limit": self.settings.drawings}
        shown = [self.status, self.answer, self.empty, self.results, self.tools, self.picture, self.legend]
        editor = [self.editor] if self.answering.takes_anchors else []
        if editor:
            # in the browser, at once: while the new picture waits for the model, the paint is of the old one
            self.photo.change(None, None, self.editor, js="() => null")
        self.photo.change(
            self._told(self.on_photo, {**self._nothing(), self.photo: None}),
            self.photo,
            [*shown, self.photo, *editor],
            show_progress_on=self.status,
            **model,
        )
        self.examples.click(
            self._told(self.on_example), self.examples, [self.status, self.photo, self.queries], **beside
        )
        drawn = [self.opacity, self.threshold]
        asked = gr.on(
            [self.ask.click, self.queries.submit],
            self._told(self.on_ask),
            [self.photo, self.queries, self.uncertainty, *drawn, *editor],
            [*shown, self.code, self.maps, self.uncertain],
            show_progress_on=[self.picture, self.status],
            **model,
        )
        asked.then(None, js=NARROW_ONLY)
        for slider in drawn:
            slider.input(
                self._told(self.on_slider),
                [self.answer, *drawn],
                [self.status, self.picture, self.legend, self.code],
                show_progress="hidden",
                trigger_mode="always_last",
                **beside,
            )
        for button, file, make in (
            (self.get_masks, self.masks_file, self.on_get_masks),
            (self.get_coco, self.coco_file, self.on_get_coco),
        ):
            filled = button.click(
                self._told(make, {file: None}),
                [self.answer, self.threshold],
                [self.status, file],
                show_progress_on=button,
                **beside,
            )
            filled.then(None, js=f"() => document.querySelector('#{file.elem_id}').click()")
        if editor:
            self.picture.select(
                self._told(self.on_click),
                [self.answer, self.photo, self.threshold, self.editor],
                [self.status, self.editor, self.pointing],
                show_progress="hidden",
                **beside,
            )
            self.forget.click(
                self._told(self.on_forget),
                [self.answer, self.photo],
                [self.status, self.editor],
                show_progress="hidden",
                **beside,
            )

    def _told(
        self, handler: Callable[..., dict[Any, Any]], otherwise: dict[Any, Any] | None = None
    ) -> Callable[..., dict[Any, Any]]:
        """The handler, whose errors become a line on the page, and changes to `otherwise`."""

        @functools.wraps(handler)
        def wrapped(*arguments: Any) -> dict[Any, Any]:
            try:
                return {self.status: "", **handler(*arguments)}
            except VisitorError as error:
                message = str(error)
            except gr.Error as error:  # of a lent GPU: its queue, a visitor's quota
                message = error.message
            except Exception:
                logger.exception("%s failed", handler.__name__)
                message = BROKEN
            return {**(otherwise or {}), self.status: alert(message)}

        return wrapped

    def on_example(self, index: int) -> dict[Any, Any]:
        name, queries = EXAMPLES[index]
        return {self.photo: str(EXAMPLES_FOLDER / name), self.queries: queries}

    def on_photo(self, path: str | None) -> dict[Any, Any]:
        """A new picture: encoded at once, so that the first question is as quick as the second."""
        if path is None:  # also after one that could not be read, and was told
            return {**self._nothing(), self.status: gr.skip()}
        answer = _unasked(self._encoded(path), path)
        shown = {
            self.answer: answer,
            self.empty: gr.update(visible=False),
            self.results: gr.update(visible=True),
            self.tools: gr.update(visible=False),
            self.picture: answer.picture,
            self.legend: ASK_NOW,
        }
        if self.answering.takes_anchors:
            shown[self.editor] = _editor_value(answer.picture)
        return shown

    def _nothing(self) -> dict[Any, Any]:
        """The page as it is before there is a picture."""
        nothing = {self.answer: None, self.empty: gr.update(visible=True), self.results: gr.update(visible=False)}
        return {**nothing, self.editor: None} if self.answering.takes_anchors else nothing

    def on_ask(
        self,
        path: str | None,
        text: str,
        uncertainty: bool,
        opacity: float,
        threshold: float,
        layers: Sequence[str] = (),
    ) -> dict[Any, Any]:
        encoded = self._encoded(path)
        queries = read_queries(text, self.settings)
        image = encoded.images[0]
        anchor = read_anchor(layers, image.size, self.settings, drawing.MOST_SIDE**2)
        logits = self.answering.ask(encoded, queries, uncertainty, anchor)
        answer = Answer(drawing.shown_picture(image), path or "", tuple(queries), logits, anchor)
        maps = drawing.uncertainty_maps(answer)
        return {
            self.answer: answer,
            self.empty: gr.update(visible=False),
            self.results: gr.update(visible=True),
            self.tools: gr.update(visible=True),
            self.maps: maps,
            self.uncertain: gr.update(visible=bool(maps)),
            **self._drawn(answer, opacity, threshold),
        }

    def on_slider(self, answer: Answer | None, opacity: float, threshold: float) -> dict[Any, Any]:
        return self._drawn(_kept(answer), opacity, threshold)

    def on_get_masks(self, answer: Answer | None, threshold: float) -> dict[Any, Any]:
        return {self.masks_file: self._file("masks.zip", downloads.masks_zip(_kept(answer), threshold))}

    def on_get_coco(self, answer: Answer | None, threshold: float) -> dict[Any, Any]:
        return {self.coco_file: self._file("coco.json", downloads.coco_json(_kept(answer), threshold).encode())}

    def on_click(
        self, answer: Answer | None, path: str | None, threshold: float, layers: Sequence[str], event: gr.SelectData
    ) -> dict[Any, Any]:
        """A click on the result adds the mask there, or a spot, to what is painted."""
        answer = _of_this_picture(answer, path)
        size = answer.picture.size
        anchor = drawing.mask_at(drawing.shown_masks(answer, threshold), event.index)
        painted = read_anchor(layers, size, self.settings, drawing.MOST_SIDE**2)
        value = _editor_value(answer.picture, anchor if painted is None else anchor | painted)
        return {self.editor: value, self.pointing: gr.update(open=True)}

    def on_forget(self, answer: Answer | None, path: str | None) -> dict[Any, Any]:
        return {self.editor: _editor_value(_of_this_picture(answer, path).picture)}

    def _encoded(self, path: str | None) -> EncodedImages:
        content = read_file(path, self.settings)
        return self.answering.prepare(content, lambda given: read_picture(given, self.settings))

    def _drawn(self, answer: Answer, opacity: float, threshold: float) -> dict[Any, Any]:
        masks = drawing.shown_masks(answer, threshold)
        return {
            self.picture: drawing.draw(answer, masks, opacity),
            self.legend: drawing.legend(answer, masks),
            self.code: downloads.code_snippet(answer, threshold, self.settings.model),
        }

    def _file(self, name: str, content: bytes) -> str:
        """In Gradio's folder, from which files are served, and deleted in time, under a name that none can guess."""
        file = Path(self.masks_file.GRADIO_CACHE) / secrets.token_hex(16) / name
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        return str(file)


def _unasked(encoded: EncodedImages, path: str) -> Answer:
    """A picture about which nothing was asked yet."""
    none = torch.zeros(0, 1, 1)
    logits = MaskLogits(none, none[:, 0, 0], (), encoded.sizes[0], encoded.reshaped_sizes[0], encoded.input_size)
    return Answer(drawing.shown_picture(encoded.images[0]), path, (), logits)


def _kept(answer: Answer | None) -> Answer:
    if answer is None:
        raise VisitorError("The answer is no longer here. Press Segment again.")
    return answer


def _of_this_picture(answer: Answer | None, path: str | None) -> Answer:
    """The answer, unless another picture was uploaded since: its masks are no anchors in that one."""
    answer = _kept(answer)
    if answer.path != path:
        raise VisitorError("The new picture is not ready yet. Point at things once it is shown.")
    return answer


def _editor_value(picture: Image.Image, painted: np.ndarray | None = None) -> dict[str, Any]:
    """The picture, and what is painted on it, bool (H, W), in white; an update of the editor.

    Its canvas gets the picture's size: layers are put in the middle of a canvas, wherever the picture is.
    """
    layers = []
    if painted is not None:
        alpha = Image.fromarray(painted.astype(np.uint8) * 255)
        layer = Image.new("RGBA", picture.size, (255, 255, 255, 0))
        layer.putalpha(alpha)
        layers.append(layer)
    value = {"background": picture, "layers": layers, "composite": None}
    return gr.update(value=value, canvas_size=picture.size)


__all__ = ["EXAMPLES_FOLDER", "Page", "alert"]
