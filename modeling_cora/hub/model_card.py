"""The model card of a run, written from its files alone: no number in it is typed by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from publishing.markdown import plain_text

from ..configuration_cora import TASK
from ..losses import LOSS_TERMS
from .run_folder import Evaluation, Run

TAGS = [TASK, "cora", "segment-anything"]
PLAIN = re.compile(r"[A-Za-z ]{1,40}")
"""A class name that may stand in the snippet."""

LIMITS = """
- **No clinical use.** Trained on medical images or not, this is no medical device. Nobody has checked it for diagnosis,
  grading, treatment or triage. A mask that looks right on a slide may leave out the cells that matter.
- **No use in driving.** It must not steer, brake or warn. It has no notion of time, of sensors that fail, or of what it
  was never shown. Small and distant things (people, signs, lights) are hard for it: see the scores by class.
- **It always answers.** Asked for what the picture does not show, it marks something. The score of a mask is the
  model's own estimate of its IoU, not a probability that the thing is there.
- **Queries from templates.** Unless the tables above say `reasoning` or name a language model, training queries were
  filled into templates from class names, descriptions and measured places. Free wording, other languages, negation and
  counting are outside of that, and the wording and gaps of the class list pass into the answers: what no class names
  was background.
- **What the scores mean.** cIoU is all intersections over all unions, so large regions (road, sky, tissue) dominate it;
  gIoU is the mean IoU of the queries, so each counts the same. Pixels labelled 255, which borders often are, are
  ignored but where the protocol says otherwise: an answer there is neither right nor wrong. Scores on one data set say
  little about another camera, city, scanner or stain. Compare with the columns of answers that need no model.
- **Data.** People and places in the training images were not asked by this project; biases of the images and of those
  who labelled them remain.
"""


def model_card(
    run: Run,
    repo_id: str,
    licence: str | None = None,
    base_models: Sequence[str] | None = None,
    merged: bool = False,
    files: Iterable[str] = (),
) -> ModelCard:
    """Front matter and text.

    Args:
        run: of `read_run`.
        repo_id: where it goes.
        licence: an identifier of the Hub, such as "apache-2.0".
        base_models: Hub ids; [] for a random start.
        merged: the run's adapter goes up merged with its base.
        files: names in the repository; an evaluation's picture is shown where it is one of them.
    """
    name, adapter = repo_id.rpartition("/")[2], run.adapter
    results = [result for evaluation in run.evaluations for result in eval_results(evaluation)]
    data_sets = [run.training.get("data", {}).get("name"), *(e.measured["data"] for e in run.evaluations)]
    data = ModelCardData(
        language="en",
        license=licence,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="image-segmentation",
        tags=[*TAGS, *(["lora"] if adapter else [])],
        base_model=list(base_models) if base_models else None,
        datasets=[name for name in dict.fromkeys(data_sets) if name and "/" in name] or None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    sections = [
        f"# {plain_text(name)}",
        _introduction(base_models, adapter, merged),
        f"## Use\n\n{_usage(run, repo_id)}",
        "## Results\n\n" + ("\n\n".join(_results(run, files)) or "Not evaluated."),
        "## Training\n\n" + "\n\n".join(_training(run)),
        f"## Limits and risks\n{LIMITS}",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections))


def eval_results(evaluation: Evaluation) -> Iterator[EvalResult]:
    """The model-index: cIoU and gIoU of all queries, and of each kind as a configuration of the data set."""
    measured, metrics = evaluation.measured, evaluation.metrics
    for kind, scores in [("all", metrics["all"]), *metrics["by_kind"].items()]:
        for metric in ("ciou", "giou"):
            yield EvalResult(
                task_type="image-segmentation",
                task_name=TASK,
                dataset_type=re.sub(r"[^\w./-]+", "-", measured["data"]),
                dataset_name=measured["data"],
                dataset_config=_configuration(kind, measured),
                dataset_split=_split(measured),
                metric_type=metric,
                metric_name=metric.replace("iou", "IoU"),
                metric_value=scores[metric],
            )


def _configuration(kind: str, measured: Mapping[str, Any]) -> str:
    """Of the model-index: scores of another protocol, of mirrored or of fewer images are others."""
    others = [measured["protocol"]] if measured["protocol"] != "lisa" else []
    others += ["mirrored"] if measured.get("mirror") else []
    others += [f"{measured['images']} images"] if measured["limit"] else []
    return ", ".join([kind, *others])


def _split(measured: Mapping[str, Any]) -> str:
    """Images of train that split lists hold out to choose settings on are not the data set's val."""
    held_out_from = measured.get("held_out_from")
    return f"{held_out_from} (held out)" if held_out_from else measured["split"]


def _introduction(base_models: Sequence[str] | None, adapter: bool, merged: bool) -> str:
    what = "A LoRA adapter of a CORA model" if adapter else "A CORA model"
    text = f"{what}, which answers a query about an image, in plain words, with a mask."
    if base_models is not None:
        text += f" It was trained from {', '.join(map(plain_text, base_models)) or 'a random start'}."
    if merged:
        text += " The adapter that was trained is merged into the weights; the numbers below were measured before that."
    return f"{text} After [CORA](https://arxiv.org/abs/2511.17755)."


def _usage(run: Run, repo_id: str) -> str:
    classes = {name: scores["ciou"] for e in run.evaluations for name, scores in e.metrics["by_class"].items()}
    named = [name for name in sorted(classes, key=lambda name: -classes[name]) if PLAIN.fullmatch(name)]
    queries = [f"the {name}" for name in (named or ["road", "car"])[:2]]
    return f"""```python
from transformers import pipeline

# the model's code comes with its weights; where the package cora-segmentation is installed, that one runs instead
pipe = pipeline("{TASK}", model="{repo_id}", trust_remote_code=True)
for answer in pipe("image.jpg", {json.dumps(queries)}):
    print(answer["query"], answer["score"], answer["mask"].mean())  # mask: bool (height, width)
```"""


def _results(run: Run, files: Iterable[str]) -> Iterator[str]:
    published = set(files)
    for evaluation in run.evaluations:
        measured, folder = evaluation.measured, evaluation.folder.name
        options = ["--split_lists LISTS"] if measured.get("split_lists") else []
        options += [f"--split {measured['split']}", f"--kinds {' '.join(measured['kinds'])}"]
        options += [f"--anchors {measured['anchors']}"] if "conditional" in measured["kinds"] else []
        options += [f"--{name} {measured[name]}" for name in ("limit", "queries_per_kind") if measured[name]]
        options += ["--mirror true"] if measured.get("mirror") else []
        options += [f"--protocol {measured['protocol']}"] if measured["protocol"] != "lisa" else []
        means = f"{plain_text(measured['protocol_means'])}; " if "protocol_means" in measured else ""  # newer ones tell
        yield (
            f"On {plain_text(measured['data'])}, split {plain_text(_split(measured))}: {measured['images']} images, "
            f"{evaluation.metrics['all']['queries']} queries, protocol `{measured['protocol']}` "
            f"({means}a pixel is foreground where its logit is above 0)."
        )
        yield _table(*_score_rows(evaluation.metrics))
        yield (
            f"All numbers, here and in the front matter, are those of [{folder}/metrics.json]({folder}/metrics.json), "
            f"which `python trainers/evaluate.py --model DIR --data DIR {' '.join(options)}` wrote. It names the "
            "SHA-256 of the weights that were measured: "
            + ", ".join(f"`{name}` {digest[:16]}..." for name, digest in measured["weights"].items())
            + ". *class found* and *told apart* are about queries for a part of a class: in how many of them a tenth "
            "of the class's pixels or more is marked, whichever; and the share of the part that is found less the "
            "share of the class's other pixels that is marked, 0 for whoever answers with the whole class or another. "
            "The last columns are answers that need no model, or a perfect one that knows classes alone: everything, "
            "the class's mean training mask, and the class's whole true mask."
        )
        if f"{folder}/overlays.jpg" in published:
            yield (
                f"![queries about unseen images and the model's answers]({folder}/overlays.jpg)\n\n*Queries about "
                "images of this split and the answers: green found, orange wrongly added, blue missed.*"
            )


def _score_rows(metrics: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
    columns = ("ciou", "giou", "class found", "told apart")
    trivial = ("whole image", "mean training mask", "whole class")
    groups = [("all queries", metrics["all"])]
    groups += [(f"kind: {name}", scores) for name, scores in metrics["by_kind"].items()]
    groups += [
        (f"class: {name}", scores) for name, scores in sorted(metrics["by_class"].items(), key=lambda c: -c[1]["ciou"])
    ]
    rows = [
        (
            name,
            s["queries"],
            *(_number(s.get(column)) for column in columns),
            *(_number(s["trivial"].get(name)) for name in trivial),
        )
        for name, s in groups
    ]
    return ("queries", "number", "cIoU", "gIoU", *columns[2:], *(f"cIoU of {name}" for name in trivial)), rows


def _training(run: Run) -> Iterator[str]:
    training = run.training
    if not training:
        yield "The folder does not say how it was trained."
        return
    data, settings = training["data"], training["settings"]
    rows: list[Sequence[Any]] = [
        ("stage", training["stage"]),
        ("started from", training["model"]),
        ("data", data["name"]),
        ("labelled images", data["labelled_images"]),
        ("unlabelled images", data["unlabelled_images"]),
        ("instructions", data["instructions"]),
        *([("written by", ", ".join(data["sources"]))] if "sources" in data else []),  # newer records tell
        ("images in an optimizer step", training["images_per_step"]),
        ("parameters", f"{training['parameters']['all'][0]:,}"),
        ("trained parameters", f"{training['parameters']['all'][1]:,}"),
    ]
    rows += [(name, _setting(value)) for name, value in settings.items() if value is not None]
    yield _table(("", "value"), rows)
    versions = ", ".join(f"{name} {version}" for name, version in training["versions"].items())
    yield f"Every field, and the parameters of each part, are in [training.json](training.json). Made with {versions}."
    logged = [entry for entry in run.history if "loss" in entry]
    if len(logged) > 1:
        chosen = [logged[round(k * (len(logged) - 1) / 4)] for k in range(5)]
        terms = [name for name in ("loss", *LOSS_TERMS) if name in logged[-1]]
        rows = [(e["step"], *(_number(e.get(term)) for term in terms)) for e in {e["step"]: e for e in chosen}.values()]
        yield _table(("step", *terms), rows)


def _setting(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Markdown; the first column is text, the others numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *([plain_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


__all__ = ["eval_results", "model_card"]
