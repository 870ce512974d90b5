"""Models, metrics and Spaces on a small Hub: pushed by the commands, loaded back, refused in one line."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, constants, snapshot_download
from peft import LoraConfig, get_peft_model
from PIL import Image

from datasets_scripts import build
from datasets_scripts.scenes import write_scenes
from datasets_scripts.splits import write_split
from modeling_cora import CoraForReasoningSegmentation, CoraProcessor
from modeling_cora.hub.__main__ import main
from modeling_cora.loading import ModelLoadError
from modeling_cora.segmentation import segment
from trainers import evaluate, stage1
from trainers.loading import load_trained
from trainers.protocols import PROTOCOLS

from .conftest import disk_for, noise_image
from .local_hub import RIGHT, LocalHub, environment
from .test_remote_code import CODE, WITHOUT_THE_PACKAGE

ROOT = Path(__file__).parents[1]
TRAINING = {
    "max_steps": 2, "save_steps": 2, "per_device_train_batch_size": 1, "learning_rate": 1e-3, "clip_image_size": 28,
    "sam_image_size": 128, "max_label_size": 64, "logging_steps": 1, "warmup_steps": 1, "disable_tqdm": True,
    "use_cpu": True, "seed": 7, "data_name": "org/streets",
}  # fmt: skip
SECRET = "hf_not_for_others"


def train(scenes: Path, out: Path, **more: object) -> None:
    fields = {"data": scenes, "output_dir": out, **TRAINING, **more}
    stage1.main([text for name, value in fields.items() for text in (f"--{name}", str(value))])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """`run` as stage 1 and evaluate.py leave it, and `scenes`; to be read only."""
    folder = tmp_path_factory.mktemp("trained")
    write_scenes(folder / "scenes", labelled=2, unlabelled=1, val=1, size=(48, 64), progress=False)
    train(folder / "scenes", folder / "run")
    asked = ["--model", folder / "run", "--data", folder / "scenes", "--out", folder / "run/evaluation"]
    evaluate.main([*map(str, asked), "--examples", "1", "--data_name", "org/streets"])
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the run that a test may change."""
    return shutil.copytree(trained / "run", tmp_path / "run")


@pytest.fixture(scope="module")
def adapter(trained, tmp_path_factory) -> Path:
    """An adapter of the run's model, with weights that do something."""
    folder = tmp_path_factory.mktemp("adapter")
    base = CoraForReasoningSegmentation.from_pretrained(trained / "run")
    lora = LoraConfig(target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False)
    get_peft_model(base, lora).save_pretrained(folder)
    CoraProcessor.from_pretrained(trained / "run").save_pretrained(folder)
    return folder


def push(*arguments: object) -> None:
    main(["push", *map(str, arguments)])


def refused(capsys, *arguments: object) -> str:
    """The one line of a push that ends with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        push(*arguments)
    *bars, line = capsys.readouterr().err.splitlines()  # merging shows its progress
    assert stopped.value.code == 2 and line.startswith("error: ") and not any("error" in bar for bar in bars)
    return line.removeprefix("error: ")


def in_another_process(code: str, hub: LocalHub, folder: Path, *arguments: object) -> str:
    """What a fresh process prints that is not logged in."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    env = environment(hub.address, folder / "home", None)
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


# -- a model -----------------------------------------------------------------------------------------------------------


def test_a_run_is_pushed_without_what_is_not_for_others(trained, run, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", RIGHT)
    (run / "checkpoint-2").mkdir(exist_ok=True)
    for name in ("checkpoint-2/optimizer.pt", "notes.txt", "events.out.tfevents"):
        (run / name).write_text(SECRET)
    push(run, "org/small", "--message", "First")
    repository = hub.repositories["models", "org/small"]
    files = repository.content()
    assert repository.messages == ["First"] and not repository.private
    made = {"README.md", "evaluation/metrics.json", "evaluation/overlays.jpg"}
    loaded = {"config.json", "generation_config.json", "model.safetensors", "processor_config.json", "tokenizer.json"}
    loaded |= {"tokenizer_config.json", "chat_template.jinja", "training.json"}
    assert files.keys() == made | loaded | CODE
    for name in ("model.safetensors", "evaluation/metrics.json", *CODE):
        assert files[name] == (run / name).read_bytes(), name
    assert json.loads(files["config.json"]) == json.loads((run / "config.json").read_text())
    assert Image.open(io.BytesIO(files["evaluation/overlays.jpg"])).format == "JPEG"
    for name, content in files.items():
        for word in (trained, run.parent, ROOT, Path.home() / "x", RIGHT, SECRET):
            assert str(word).encode() not in content, name


def test_pictures_stay_here_where_they_must(run, hub):
    push(run, "org/small")
    push(run, "org/small", "--without_pictures")
    files = hub.repositories["models", "org/small"].content()
    assert "evaluation/metrics.json" in files and "evaluation/overlays.jpg" not in files
    assert "![" not in files["README.md"].decode()


def test_the_card_tells_the_runs_own_results(run, hub):
    """Scores are computed again from the counts of each query, by the definitions, without the metric's code."""
    push(run, "org/small")
    text = hub.repositories["models", "org/small"].content()["README.md"].decode()
    card = ModelCard(text)
    assert (card.data.license, card.data.pipeline_tag) == ("apache-2.0", "image-segmentation")
    assert (card.data.library_name, card.data.language) == ("transformers", "en")
    assert card.data.datasets == ["org/streets"] and not card.data.base_model and "cora" in card.data.tags
    records = [json.loads(line) for line in (run / "evaluation/samples.jsonl").read_text().splitlines()]
    kinds = {f"{r['kind']}, {r['target']}" for r in records}
    found = {(r.dataset_config, r.metric_type): r.metric_value for r in card.data.eval_results}
    for kind in ("all", *kinds):
        counts = [(r["intersection"], r["union"]) for r in records if kind in ("all", f"{r['kind']}, {r['target']}")]
        ciou = sum(i for i, _ in counts) / (sum(u for _, u in counts) or 1)
        giou = sum(i / u if u else 1.0 for i, u in counts) / len(counts)
        assert found.pop((kind, "ciou")) == pytest.approx(ciou, abs=1e-6)
        assert found.pop((kind, "giou")) == pytest.approx(giou, abs=1e-5)
        label = "all queries" if kind == "all" else f"kind: {kind}"
        assert f"| {label} | {len(counts)} | {ciou:.3f} | {giou:.3f} |" in text
    assert not found
    assert {(r.dataset_name, r.dataset_type, r.dataset_split) for r in card.data.eval_results} == {
        ("org/streets", "org/streets", "val")
    }
    assert hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()[:16] in text
    assert "![" in text and "(evaluation/overlays.jpg)" in text
    for row in ("| labelled images | 2 |", "| seed | 7 |", "| learning\\_rate | 0.001 |", "| stage | stage1 |",
                "| written by | rules |"):  # fmt: skip
        assert row in text
    losses = [e for e in json.loads((run / "trainer_state.json").read_text())["log_history"] if "loss" in e]
    assert all(f"| {e['step']} | {e['loss']:.3f} |" in text for e in losses) and len(losses) == 2
    for word in ("No clinical use", "No use in driving", "Queries from templates", "labelled 255", "--split val"):
        assert word in text


def test_held_out_training_images_are_not_carded_as_val(trained, run, hub, tmp_path):
    """Through tables too, which know nothing of the lists but what stands in their rows."""
    labelled, held_out = sorted(path.name for path in (trained / "scenes/masks").glob("*.png"))
    write_split(tmp_path / "lists", [labelled], [])
    (tmp_path / "lists/val.txt").write_text(f"{held_out}\n")
    lists = ["--split_lists", str(tmp_path / "lists")]
    build.main(["own", "--root", str(trained / "scenes"), "--out", str(tmp_path / "tables"), *lists])
    for data, given, mirror in (("scenes", lists, "true"), ("tables", [], "false")):
        folder = trained / "scenes" if data == "scenes" else tmp_path / "tables"
        out = str(run / "evaluation")
        given = [*given, "--mirror", mirror]
        evaluate.main(["--model", str(run), "--data", str(folder), "--out", out, "--examples", "0", *given])
        push(run, f"org/{data}")
        text = hub.repositories["models", f"org/{data}"].content()["README.md"].decode()
        assert {result.dataset_split for result in ModelCard(text).data.eval_results} == {"train (held out)"}
        assert "split train (held out): 1 images" in text and "--split val" in text
        assert ("--mirror true" in text) == (mirror == "true")
        assert ("--split_lists LISTS" in text) == (data == "scenes")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_card_says_how_answers_were_had_and_counted(trained, run, hub, name):
    options = f"--data {trained / 'scenes'} --protocol {name} --kinds semantic --limit 1 --examples 0".split()
    evaluate.main(["--model", str(run), "--out", str(run / "evaluation"), *options])
    push(run, "org/x")
    text = hub.repositories["models", "org/x"].content()["README.md"].decode()
    assert ("teacher-forced" in text) != ("in its own words" in text) == PROTOCOLS[name].generated
    assert ("255 count nowhere" in text) != ("255 count as the target's" in text) == (name == "segzero")
    assert (f"--protocol {name}" in text) == (name != "lisa")
    named = f"all{'' if name == 'lisa' else f', {name}'}, 1 images"
    assert named in {result.dataset_config for result in ModelCard(text).data.eval_results}


def printed_by_the_snippet(card: str, hub: LocalHub, folder: Path) -> list[str]:
    """What the card's snippet prints about image.jpg where this package is not installed."""
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    noise_image(40, 30).save(folder / "image.jpg")
    guard = "\n".join(line for line in WITHOUT_THE_PACKAGE.splitlines() if "argv" not in line)
    return in_another_process(f"{guard}\n{snippet}", hub, folder).splitlines()[-2:]


def is_the_answer_of(model: str, card: str, printed: list[str], image: Path) -> bool:
    queries = re.findall(r'"(the [^"]+)"', card)
    expected = segment(*load_trained(model), Image.open(image), queries)
    assert len(queries) == len(printed) == 2 and all(map(str.startswith, printed, queries))
    shown = [[float(word) for word in line.removeprefix(q).split()] for line, q in zip(printed, queries, strict=True)]
    shares = expected.masks.float().mean((1, 2))
    return np.allclose(shown, torch.stack([expected.scores, shares], 1), atol=1e-5)


def test_the_cards_snippet_runs_where_nothing_is_installed(run, hub, tmp_path):
    push(run, "org/small")
    card = hub.repositories["models", "org/small"].content()["README.md"].decode()
    printed = printed_by_the_snippet(card, hub, tmp_path)
    assert is_the_answer_of(str(run), card, printed, tmp_path / "image.jpg")


@pytest.mark.slow
def test_so_does_an_adapters(run, adapter, hub, tmp_path):
    push(run, "org/base")
    push(adapter, "org/lora", "--license", "apache-2.0", "--base_model", "org/base")
    card = hub.repositories["models", "org/lora"].content()["README.md"].decode()
    printed = printed_by_the_snippet(card, hub, tmp_path)
    assert is_the_answer_of(str(adapter), card, printed, tmp_path / "image.jpg")
    assert not is_the_answer_of(str(run), card, printed, tmp_path / "image.jpg")


LOAD = """
import json, sys
import evaluate
from modeling_cora import CoraForReasoningSegmentation, CoraProcessor
model = CoraForReasoningSegmentation.from_pretrained("org/small")
CoraProcessor.from_pretrained("org/small")
ciou = evaluate.load("org/ciou").compute(predictions=[[[1, 1, 0]]], references=[[[1, 0, 255]]])
print(json.dumps([sum(p.double().sum().item() for p in model.parameters()), ciou["ciou"]]))
"""


def test_model_and_metric_load_by_name_in_a_fresh_process(run, hub, tmp_path, monkeypatch):
    push(run, "org/small")
    push(ROOT / "metrics/ciou", "org/ciou")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    total, ciou = json.loads(in_another_process(LOAD, hub, tmp_path).splitlines()[-1])
    model, _ = load_trained(str(run))
    assert total == pytest.approx(sum(p.double().sum().item() for p in model.parameters()))
    assert ciou == pytest.approx(0.5)


def test_text_of_a_data_set_is_never_html_or_a_link(run, hub):
    path = run / "evaluation/metrics.json"
    metrics = json.loads(path.read_text())
    metrics["evaluation"]["data"] = "![x](http://there) <img src=x>"
    name = '<script>alert("x")</script> | "); import os'
    metrics["by_class"] = {name: {**metrics["all"], "ciou": 2.0}, **metrics["by_class"]}
    path.write_text(json.dumps(metrics))
    push(run, "org/small")
    text = hub.repositories["models", "org/small"].content()["README.md"].decode()
    assert not re.search(r"<script|<img|!\[x\]", ModelCard(text).text)
    assert "import os" not in re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    row = next(line for line in text.splitlines() if "alert" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 10  # nine cells


def test_an_evaluation_of_other_weights_is_not_published(run, hub, capsys):
    path = run / "evaluation/metrics.json"
    metrics = json.loads(path.read_text())
    del metrics["evaluation"]
    whole = path.read_text()
    path.write_text(json.dumps(metrics))
    assert "evaluation/metrics.json: measured on other weights" in refused(capsys, run, "org/small")
    path.write_text(whole)
    weights = bytearray((run / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (run / "model.safetensors").write_bytes(weights)
    assert "evaluation/metrics.json: measured on other weights" in refused(capsys, run, "org/small")
    assert not hub.repositories
    shutil.rmtree(run / "evaluation")
    push(run, "org/small")
    card = ModelCard(hub.repositories["models", "org/small"].content()["README.md"].decode())
    assert card.data.eval_results is None and "Not evaluated." in card.text


# -- adapters ----------------------------------------------------------------------------------------------------------


def test_an_adapter_goes_up_as_one_or_merged(run, adapter, hub, tmp_path, capsys):
    push(run, "org/base")
    terms = (adapter, "org/lora", "--license", "apache-2.0")
    assert "--license: not given, and the weights descend from" in refused(capsys, adapter, "org/lora")
    assert "is a folder of this machine; push it first and name it with --base_model" in refused(capsys, *terms)
    assert ("models", "org/lora") not in hub.repositories
    push(*terms, "--base_model", "org/base")
    repository = hub.repositories["models", "org/lora"]
    files = repository.content()
    assert "adapter_model.safetensors" in files and "config.json" not in files
    card = ModelCard(files["README.md"].decode())
    assert (card.data.library_name, card.data.base_model) == ("peft", ["org/base"])
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "org/base"
    inputs = CoraProcessor.from_pretrained(run)(noise_image(40, 30), ["the road"])
    expected = load_trained(str(adapter))[0](**inputs).pred_masks
    assert torch.equal(load_trained("org/lora")[0](**inputs).pred_masks, expected)

    own = shutil.copytree(adapter, tmp_path / "adapter")
    terms, record = (own, *terms[1:], "--merge", "--base_model", "org/base"), own / "training.json"
    shutil.copy(run / "training.json", record)
    push(*terms)
    files = repository.content()
    assert files["training.json"] == record.read_bytes()
    assert "model.safetensors" in files and not any("adapter" in name for name in files)
    card = ModelCard(files["README.md"].decode())
    assert card.data.library_name == "transformers" and "is merged into the weights" in card.text
    merged = snapshot_download("org/lora", cache_dir=tmp_path / "cache")
    assert torch.allclose(load_trained(merged)[0](**inputs).pred_masks, expected, atol=1e-4)
    record.write_text(record.read_text().replace("org/streets", f"{tmp_path}/streets"))
    assert refused(capsys, *terms).startswith("training.json: names ")  # a folder of this machine
    assert not list(own.glob(".merged*"))
    assert "--merge:" in refused(capsys, run, "org/small", "--merge")


# -- by the trainer ----------------------------------------------------------------------------------------------------


def test_the_trainer_pushes_as_the_command_does(trained, hub, tmp_path, capsys):
    train(trained / "scenes", tmp_path / "out", push_to_hub=True, hub_model_id="org/mine", hub_token=RIGHT)
    repository = hub.repositories["models", "org/mine"]
    files = repository.content()
    assert files.keys() == {*CODE, *files} and "training_args.bin" not in files and "README.md" in files
    assert not any(RIGHT.encode() in content or str(tmp_path).encode() in content for content in files.values())
    assert repository.messages[0] == "Training in progress, step 2"
    assert files["model.safetensors"] == (tmp_path / "out/model.safetensors").read_bytes()
    card = ModelCard(files["README.md"].decode())
    assert card.data.datasets == ["org/streets"] and "| max\\_steps | 2 |" in card.text
    before = dict(hub.repositories)
    push(tmp_path / "out", "org/same")
    hub.repositories, same = before, hub.repositories["models", "org/same"].content()["README.md"].decode()
    assert re.sub(r"\bsame$|org/same", lambda m: m[0].replace("same", "mine"), same, flags=re.MULTILINE) == (
        files["README.md"].decode()
    )
    hub.refuse_next = "/org/again/tree/"  # a checkpoint's upload fails in the background; the last one has all
    train(trained / "scenes", tmp_path / "again", push_to_hub=True, hub_model_id="org/again")
    assert hub.refuse_next is None and hub.repositories["models", "org/again"].messages == ["Model save"]
    base = trained / "run"
    for more, message in (
        ({"hub_model_id": "org/mine", "model": base}, f"push_to_hub: the adapter's base, model {base}, is a folder"),
        ({"hub_model_id": "else/mine", "hub_token": RIGHT}, "else/mine: the token may not write there"),
        ({"hub_model_id": "org/mine", "hub_strategy": "checkpoint"}, "hub_strategy checkpoint: optimizer states"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            train(trained / "scenes", tmp_path / "other", push_to_hub=True, **more)
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {message}")


# -- Spaces ------------------------------------------------------------------------------------------------------------


def test_a_demo_goes_up_with_the_code_it_needs(hub, tmp_path, capsys):
    folder = tmp_path / "demo"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "parts").mkdir()
    (folder / "app.py").write_text("import parts.page\nprint(parts.page.modeling_cora.__file__)\n")
    (folder / "parts/page.py").write_text("import modeling_cora\n")
    (folder / "__pycache__/app.pyc").write_text(SECRET)
    (folder / ".env").write_text(SECRET)
    assert "README.md: has no front matter with `sdk`" in refused(capsys, folder, "org/demo")
    (folder / "README.md").write_text("---\ntitle: Demo\nsdk: gradio\n---\nText\n")
    (folder / "own.py").write_text(f"TOKEN = '{RIGHT}'\n")
    assert "own.py: holds the token" in refused(capsys, folder, "org/demo")
    assert not hub.repositories["spaces", "org/demo"].content()
    (folder / "own.py").unlink()
    hub.repositories.clear()
    push(folder, "org/demo", "--model", "org/small", "--private")
    repository = hub.repositories["spaces", "org/demo"]
    files = repository.content()
    assert repository.private and repository.variables == {"CORA_SPACE_MODEL": "org/small"}
    card = ModelCard(files["README.md"].decode())
    assert card.data.get("models") == ["org/small"] and card.data.get("sdk") == "gradio" and card.text == "Text\n"
    package = {f"modeling_cora/{path.name}" for path in (ROOT / "modeling_cora").glob("*.py")}
    assert package < files.keys() and not any(SECRET.encode() in content for content in files.values())
    space = Path(snapshot_download("org/demo", repo_type="space", local_dir=tmp_path / "space"))
    env = {name: value for name, value in environment(hub.address, tmp_path, None).items() if name != "PYTHONPATH"}
    result = subprocess.run([sys.executable, "app.py"], cwd=space, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert Path(result.stdout.strip()).is_relative_to(space)


def test_a_space_under_a_wrong_name_or_with_a_models_options(hub, capsys):
    assert "org/other: evaluate.load would look for other.py; ciou" in refused(
        capsys, ROOT / "metrics/ciou", "org/other"
    )
    assert "--merge: goes with a model" in refused(capsys, ROOT / "metrics/ciou", "org/ciou", "--merge")
    assert not hub.repositories


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "name", "message"),
    [
        ("", "org/a", "org/a: no token; set HF_TOKEN"),
        ("hf_wrong", "org/a", "org/a: the Hub does not accept the token"),
        (RIGHT, "else/a", "else/a: the token may not write there (You don't have the rights"),
        (RIGHT, "a b", "a b: not a name such as organisation/name"),
        (RIGHT, "NOWHERE", "org/a: no connection to http://127.0.0.1:9"),
    ],
)
def test_refusals_take_one_line_and_leave_nothing(run, hub, monkeypatch, capsys, token, name, message):
    monkeypatch.setenv("HF_TOKEN", token)
    if name == "NOWHERE":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert refused(capsys, run, name.replace("NOWHERE", "org/a")).startswith(message)
    assert not hub.repositories


def test_folders_that_are_no_run(trained, run, hub, tmp_path, capsys):
    assert f"{tmp_path / 'no'}: no such folder" in refused(capsys, tmp_path / "no", "org/a")
    assert "has no config.json" in refused(capsys, trained / "scenes", "org/a")
    assert "--model: goes with a Space" in refused(capsys, run, "org/a", "--model", "org/b")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "seg": f"{tempfile.gettempdir()}/x"}))
    assert "config.json: names " in refused(capsys, run, "org/a")
    (run / "config.json").write_text(json.dumps({**config, "model_type": "llava"}))
    assert "config.json: model_type 'llava'" in refused(capsys, run, "org/a")
    (run / "config.json").write_text("{")
    assert "config.json: not JSON" in refused(capsys, run, "org/a")
    (run / "model.safetensors").unlink()
    assert not hub.repositories


def test_an_upload_goes_on_where_it_was_broken_off(run, hub, tmp_path):
    """Killed while it sends the last of the shards; what had arrived is not sent again."""
    shutil.rmtree(run / "evaluation")
    CoraForReasoningSegmentation.from_pretrained(run).save_pretrained(run, max_shard_size="8MB")
    (run / "model.safetensors").unlink(missing_ok=True)
    shards = sorted(path.stat().st_size for path in run.glob("*.safetensors"))
    assert len(shards) > 2
    hub.stall_after = len(shards) - 1
    command = [sys.executable, "-m", "modeling_cora.hub", "push", str(run), "someone/own"]
    env = environment(hub.address, tmp_path, RIGHT)
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL)
    assert hub.stalled.wait(120)
    process.send_signal(signal.SIGKILL)
    process.wait()
    repository = hub.repositories["models", "someone/own"]
    assert len(hub.uploads) == len(shards) - 1 and not repository.content()
    hub.stall_after = None
    push(run, "own")
    assert sorted(hub.uploads) == shards
    assert {name for name in repository.content() if name.endswith(".safetensors")} == {
        path.name for path in run.glob("*.safetensors")
    }
    push(run, "own")
    assert sorted(hub.uploads) == shards and len(repository.commits) == 2


@pytest.mark.parametrize(
    ("token", "name", "message"),
    [
        ("", "org/secret", "the Hub has no such repository, or a private one; for that, set HF_TOKEN"),
        (RIGHT, "org/nothing", "the Hub has no such repository"),
        (RIGHT, "org/gated", "its owners give access on request"),
        ("hf_wrong", "org/small", "the Hub does not accept the token"),
        (RIGHT, "a b", "not a name such as organisation/name"),
    ],
)
def test_loading_what_is_not_to_be_had_takes_one_line(trained, hub, monkeypatch, token, name, message):
    hub.serve("models", "org/small", trained / "run")
    hub.create("models", "org/secret", {}, private=True)
    hub.create("models", "org/gated", {}).gated = True
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ModelLoadError) as caught:
        load_trained(name)
    assert str(caught.value).startswith(f"{name}: cannot be loaded as a CORA model: {message}")
    assert "\n" not in str(caught.value)


def test_a_full_disk_takes_one_line(trained, adapter, hub, tmp_path, capsys):
    hub.serve("models", "org/small", trained / "run")
    with disk_for(5_000_000), pytest.raises(ModelLoadError) as caught:
        load_trained("org/small")
    assert re.fullmatch(r"org/small: cannot be loaded as a CORA model: File too large \(.*\)", str(caught.value))
    load_trained("org/small")  # what was cut short is fetched again
    with disk_for(5_000_000):
        line = refused(capsys, adapter, "org/merged", "--merge", "--license", "apache-2.0")
    assert line.startswith("--merge: ") and "File too large" in line
    assert not hub.repositories["models", "org/merged"].content() and not list(adapter.glob(".merged*"))
    with disk_for(5_000_000), pytest.raises(SystemExit) as stopped:
        train(trained / "scenes", tmp_path / "out", save_strategy="no")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: weights: cannot be written (File too large)"
