"""Models by name: the folder first, then the Hub (a small one, over real HTTP), then two lines that help."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from datasets_scripts.command_line import UsageError
from modeling_cora import (
    CoraConfig,
    CoraForReasoningSegmentation,
    CoraProcessor,
    ModelNotFoundError,
    ReasoningSegmentationPipeline,
)
from modeling_cora.loading import ModelLoadError
from modeling_cora.named_models import resolve_name
from trainers.adapters import refuse_base_without_anchors
from trainers.loading import load_trained

from .local_hub import local_hub

ROOT = Path(__file__).resolve().parents[1]
CLASSES = (CoraConfig, CoraForReasoningSegmentation, CoraProcessor)

FROM_THE_HUB = """
import json, os
from modeling_cora import CoraConfig, CoraForReasoningSegmentation, CoraProcessor, ModelNotFoundError
model = CoraForReasoningSegmentation.from_pretrained("cora-7b")
processor = CoraProcessor.from_pretrained("cora-7b")
said = [model.name_or_path, model.config.seg_token_id, type(processor).__name__]
os.environ["CORA_HUB_ORGANISATION"] = "elsewhere"
said.append(CoraConfig.from_pretrained("cora-7b").seg_token_id)
os.environ["CORA_HUB_ORGANISATION"] = "mine"
try:
    CoraForReasoningSegmentation.from_pretrained("cora-13b")
except ModelNotFoundError as error:
    said.append(str(error))
print(json.dumps(said))
"""


def test_a_name_is_the_folder_then_the_repository_and_all_else_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CORA_HUB_ORGANISATION", raising=False)
    assert resolve_name("cora-7b") == "cora-segmentation/cora-7b"
    assert resolve_name(Path("cora-13b")) == "cora-segmentation/cora-13b"
    monkeypatch.setenv("CORA_HUB_ORGANISATION", "mine")
    assert resolve_name("cora-7b") == "mine/cora-7b"
    Path("cora-7b").mkdir()
    assert resolve_name("cora-7b") == "cora-7b"
    for other in ("cora-tiny", "someone/cora-13b", "runs/cora-13b", Path("runs/demo/model"), None):
        assert resolve_name(other) is other


def test_a_folder_of_that_name_is_loaded(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink(saved, "cora-7b")
    for cls in CLASSES:
        assert type(cls.from_pretrained("cora-7b")) is cls


@pytest.mark.parametrize("cls", [*CLASSES, ReasoningSegmentationPipeline])
def test_without_folder_and_network_two_lines_say_what_to_do(cls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CORA_HUB_ORGANISATION", "mine")
    where = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    with pytest.raises(ModelNotFoundError) as caught:
        cls.from_pretrained("cora-13b", **({"model_kwargs": where} if cls not in CLASSES else where))
    first, second = str(caught.value).splitlines()
    assert isinstance(caught.value, OSError)
    assert first.startswith("cora-13b: no folder of that name here, and the Hub repository mine/cora-13b")
    assert second.endswith(
        "python -m modeling_cora.convert_vlm_sam --vlm llava-hf/llava-1.5-13b-hf --sam facebook/sam-vit-huge "
        "--output cora-13b"
    )


def test_other_names_fail_as_in_transformers(tmp_path):
    with pytest.raises(OSError) as caught:
        CoraConfig.from_pretrained("cora-tiny", local_files_only=True, cache_dir=tmp_path)
    assert not isinstance(caught.value, ModelNotFoundError)


def test_a_folder_that_is_broken_is_not_called_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cora-7b").mkdir()
    with pytest.raises(OSError) as caught:
        CoraForReasoningSegmentation.from_pretrained("cora-7b", local_files_only=True)
    assert not isinstance(caught.value, ModelNotFoundError)


def test_programs_say_how_to_get_the_model_too(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("modeling_cora.named_models.cached_file", refuse)
    with pytest.raises(ModelLoadError, match=r"no network.*modeling_cora\.convert_vlm_sam") as caught:
        load_trained("cora-7b")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "field", "value", "message"),
    [
        ("config.json", "embedding_pooling", 3, "config.json .*'embedding_pooling' .* .1, 2, 4, 8., got 3"),
        ("config.json", "seg_state", "x", "config.json .*'seg_state' expected one of .'before', 'at'., got x"),
        ("config.json", "vlm_config", [], "config.json or weights"),
        ("tokenizer.json", "added_tokens", None, "processor or tokenizer"),
        ("tokenizer.json", "model", 3, "processor or tokenizer"),
    ],
)
def test_a_wrong_value_in_a_models_files_takes_one_line(saved, tmp_path, file, field, value, message):
    shutil.copytree(saved, tmp_path / "model")
    path = tmp_path / "model" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ModelLoadError, match=message) as caught:
        load_trained(str(path.parent))
    assert str(caught.value).startswith(f"{path.parent}: ") and len(str(caught.value).splitlines()) == 1
    if file == "config.json":
        with pytest.raises(UsageError, match=str(value) if value else "list") as caught:
            refuse_base_without_anchors(str(path.parent), rank=8)
        assert str(caught.value).startswith(f"model {path.parent}: ") and len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_names_are_fetched_from_the_hub(saved, tmp_path):
    """In its own process: huggingface_hub reads where the Hub is when it is imported."""
    with local_hub({"mine/cora-7b": saved, "elsewhere/cora-7b": saved}) as address:
        environment = {
            **os.environ,
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "CORA_HUB_ORGANISATION": "mine",
        }
        command = [sys.executable, "-c", FROM_THE_HUB]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    source, seg, processor, seg_elsewhere, error = json.loads(result.stdout)
    expected = CoraConfig.from_pretrained(saved).seg_token_id
    assert (source, processor) == ("mine/cora-7b", "CoraProcessor")
    assert seg == seg_elsewhere == expected
    assert "mine/cora-13b is not a" in error and len(error.splitlines()) == 2
