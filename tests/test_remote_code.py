"""A saved folder where this package is missing (trust_remote_code, other processes), and where it is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments
from transformers import pipeline as transformers_pipeline

import modeling_cora
from modeling_cora import CoraConfig, CoraForReasoningSegmentation, CoraProcessor, ReasoningSegmentationPipeline
from modeling_cora.presets import cora_tiny
from modeling_cora.segmentation import segment

from .conftest import TEXTS, noise_image
from .local_hub import COMMIT, local_hub

PACKAGE = Path(modeling_cora.__file__).parent
CODE = {
    "anchors.py",
    "branches.py",
    "configuration_cora.py",
    "consistency.py",
    "generation.py",
    "image_layouts.py",
    "images.py",
    "losses.py",
    "masks.py",
    "modeling_cora.py",
    "named_models.py",
    "precision.py",
    "pipeline.py",
    "processing_cora.py",
    "segmentation.py",
    "tiny_vit.py",
}
QUERIES = ["the road", "the vehicle with four wheels"]

# An editable installation is found through sys.meta_path; the guard stands before it.
WITHOUT_THE_PACKAGE = """
import importlib.abc, json, os, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_cora", "trainers", "datasets_scripts"):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Refuse())
import numpy as np
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline
folder, image, out = sys.argv[1:4]
def foreign():
    return sorted(name for name in sys.modules if name.startswith("transformers_modules."))
def refused(load):
    try:
        load()
    except ValueError as error:
        return "trust_remote_code" in str(error) and not foreign()
"""

LOCAL = """
said = {
    "refused": [
        refused(lambda: AutoConfig.from_pretrained(folder)),
        refused(lambda: AutoModel.from_pretrained(folder, trust_remote_code=False)),
        refused(lambda: AutoProcessor.from_pretrained(folder)),
        refused(lambda: pipeline("reasoning-segmentation", model=folder)),
    ],
    "ran": os.path.exists(os.path.join(folder, "ran")),
}
pipe = pipeline("reasoning-segmentation", model=folder, trust_remote_code=True)
rows = pipe(image, ["the road", "the vehicle with four wheels"])
np.savez(out, masks=np.stack([r["mask"] for r in rows]), scores=[r["score"] for r in rows])
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
parts = (pipe, pipe.model, pipe.processor, model, processor, config)
said["modules"] = [type(part).__module__.split(".")[0] for part in parts]
pipe.save_pretrained(sys.argv[4])
print()  # ends the line of the last refusal, which asks before it refuses
print(json.dumps(said))
"""

FROM_THE_HUB = """
pipe = pipeline("reasoning-segmentation", model=folder, trust_remote_code=True)
rows = pipe([image], ["the road", "the vehicle with four wheels"])[0]
np.savez(out, masks=np.stack([r["mask"] for r in rows]), scores=[r["score"] for r in rows])
print(json.dumps(sorted({type(x).__module__ for x in (pipe, pipe.model, pipe.processor)})))
"""


def run_without_the_package(code: str, *arguments: object, **environment: str) -> object:
    """What a process prints (JSON) that cannot import this package; its standard input is empty."""
    result = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_THE_PACKAGE + code, *map(str, arguments)],
        cwd=Path(str(arguments[2])).parent,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "step-1.final"  # a name that is no module name
    model, processor = cora_tiny(TEXTS, seed=0, clip_image_size=28, sam_image_size=128)
    model.add_anchors(processor.add_anchor_token())  # as all that have passed through stage 2
    for part in (model, processor):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(saved):
    """Masks and scores by the package's own classes."""
    model = CoraForReasoningSegmentation.from_pretrained(saved).eval()
    return segment(model, CoraProcessor.from_pretrained(saved), noise_image(40, 30), QUERIES)


def same_answer(path: Path, expected) -> None:
    with np.load(path) as found:
        assert np.array_equal(found["masks"], expected.masks.numpy())
        assert np.allclose(found["scores"], expected.scores.numpy(), atol=1e-6)


def test_the_folder_holds_the_code_byte_for_byte(saved):
    assert {path.name for path in saved.glob("*.py")} == CODE
    for name in CODE:
        assert (saved / name).read_bytes() == (PACKAGE / name).read_bytes(), name
    config = json.loads((saved / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_cora.CoraConfig",
        "AutoModel": "modeling_cora.CoraForReasoningSegmentation",
    }
    assert config["custom_pipelines"]["reasoning-segmentation"]["impl"] == "pipeline.ReasoningSegmentationPipeline"
    processor = json.loads((saved / "processor_config.json").read_text())
    assert processor["auto_map"] == {"AutoProcessor": "processing_cora.CoraProcessor"}


def test_a_configuration_alone_brings_as_much(saved, tmp_path):
    """Converters write the weights themselves, and the configuration beside them."""
    CoraConfig.from_pretrained(saved).save_pretrained(tmp_path / "a")
    cora_tiny(TEXTS, seed=0, clip_image_size=28, sam_image_size=128)[0].config.save_pretrained(tmp_path / "b")
    whole = json.loads((saved / "config.json").read_text())
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert {path.name for path in folder.glob("*.py")} == CODE
        written = json.loads((folder / "config.json").read_text())
        assert written["auto_map"] == whole["auto_map"] and written["custom_pipelines"] == whole["custom_pipelines"]


def test_a_process_without_the_package(saved, expected, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    for name in CODE:  # which tells when it runs
        with (folder / name).open("a") as file:
            file.write(f"\nopen({str(folder / 'ran')!r}, 'w').close()\n")
    noise_image(40, 30).save(tmp_path / "image.png")
    places = (folder, tmp_path / "image.png", tmp_path / "out.npz", tmp_path / "again")
    said = run_without_the_package(LOCAL, *places, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "home"))
    assert said["refused"] == [True] * 4 and said["ran"] is False
    assert said["modules"] == ["transformers_modules"] * 6
    assert (folder / "ran").exists()
    same_answer(tmp_path / "out.npz", expected)
    # what that process saves is whole again
    assert {path.name for path in (tmp_path / "again").iterdir()} == {path.name for path in saved.iterdir()}
    again = CoraForReasoningSegmentation.from_pretrained(tmp_path / "again").eval()
    answer = segment(again, CoraProcessor.from_pretrained(tmp_path / "again"), noise_image(40, 30), QUERIES)
    assert torch.equal(answer.masks, expected.masks)


@pytest.mark.slow
def test_a_process_without_the_package_and_the_hub(saved, expected, tmp_path):
    noise_image(40, 30).save(tmp_path / "image.png")
    with local_hub({"mine/cora": saved}) as address:
        environment = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        modules = run_without_the_package(
            FROM_THE_HUB,
            "mine/cora",
            tmp_path / "image.png",
            tmp_path / "out.npz",
            HF_HOME=str(tmp_path / "home"),
            **environment,
        )
    # one folder of modules for the repository, so that all parts come from one copy of the code
    assert {module.rpartition(".")[0] for module in modules} == {f"transformers_modules.mine.cora.{COMMIT}"}
    same_answer(tmp_path / "out.npz", expected)


@pytest.mark.parametrize("trust", [None, False, True])
def test_with_the_package_the_folders_code_is_never_run(saved, tmp_path, trust):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    for name in CODE:
        (folder / name).write_text("raise RuntimeError('ran')")
    options = {} if trust is None else {"trust_remote_code": trust}
    assert type(AutoConfig.from_pretrained(folder, **options)) is CoraConfig
    assert type(AutoModel.from_pretrained(folder, **options)) is CoraForReasoningSegmentation
    assert type(AutoProcessor.from_pretrained(folder, **options)) is CoraProcessor
    assert type(CoraForReasoningSegmentation.from_pretrained(folder)) is CoraForReasoningSegmentation
    assert type(CoraProcessor.from_pretrained(folder)) is CoraProcessor
    pipe = transformers_pipeline("reasoning-segmentation", model=str(folder), **options)
    assert type(pipe) is ReasoningSegmentationPipeline
    assert type(pipe.model) is CoraForReasoningSegmentation and type(pipe.processor) is CoraProcessor


def test_no_auto_class_promises_what_the_model_does_not_keep(saved):
    """`AutoModelForImageTextToText` is for models that take a plain sequence and give text."""
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        AutoModelForImageTextToText.from_pretrained(saved)


def test_checkpoints_of_a_trainer_keep_their_keys_and_bring_the_code(tmp_path):
    model, processor = cora_tiny(TEXTS, seed=0, clip_image_size=28, sam_image_size=128)
    arguments = TrainingArguments(str(tmp_path / "run"), report_to="none", use_cpu=True)
    Trainer(model=model, args=arguments, processing_class=processor).save_model(str(tmp_path / "checkpoint-1"))
    saved_keys = set(load_file(tmp_path / "checkpoint-1/model.safetensors"))
    tied = {"sam.prompt_encoder.shared_embedding.positional_embedding"}
    assert saved_keys == set(model.state_dict()) - tied
    assert {path.name for path in (tmp_path / "checkpoint-1").glob("*.py")} == CODE
    assert type(AutoProcessor.from_pretrained(tmp_path / "checkpoint-1")) is CoraProcessor


def test_an_adapter_stays_an_adapter(saved, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    base = CoraForReasoningSegmentation.from_pretrained(saved)
    lora = LoraConfig(target_modules=r".*language_model.*\.(q_proj|v_proj)")
    get_peft_model(base, lora).save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py")) and not (tmp_path / "config.json").exists()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(saved)
    again = PeftModel.from_pretrained(AutoModel.from_pretrained(saved), tmp_path)
    assert type(again.get_base_model()) is CoraForReasoningSegmentation


def test_saving_twice_writes_the_same_configuration(saved, tmp_path):
    loaded = CoraForReasoningSegmentation.from_pretrained(saved)
    loaded.save_pretrained(tmp_path / "a")
    CoraForReasoningSegmentation.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert (tmp_path / "a/config.json").read_text() == (tmp_path / "b/config.json").read_text()
