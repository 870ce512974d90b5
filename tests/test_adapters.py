"""Adapters that one stage hands to the next: trained further on the same base, resumed, loaded, merged."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from datasets_scripts.command_line import UsageError
from datasets_scripts.folder import read_folder
from datasets_scripts.scenes import write_scenes
from modeling_cora import CoraForReasoningSegmentation
from modeling_cora.presets import cora_tiny
from trainers import add_anchors, diagnose, evaluate, merge_adapter, run, stage1, stage2, stage3
from trainers.adapters import load_adapter
from trainers.arguments import TrainedPartsArguments
from trainers.loading import load_trained
from trainers.trained_parts import select_trained_parts
from trainers.training_record import has_learned_anchors

from .conftest import TEXTS, noise_image
from .test_run import options as run_options

SOME_PARTS = ["embeddings", "lm_head", "seg_projector", "anchor_encoder"]
PARTS = [*SOME_PARTS, "mask_decoder"]
QUERIES = ["the road", "the car left of this"]


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("street")
    write_scenes(folder, labelled=3, unlabelled=2, val=1, size=(64, 96), progress=False)
    return folder


@pytest.fixture(scope="module")
def pseudo(street, tmp_path_factory) -> Path:
    """Pseudo-labels: two classes side by side."""
    folder = tmp_path_factory.mktemp("pseudo")
    (folder / "masks").mkdir()
    for scene in read_folder(street).split("train", labelled=False):
        labels = np.zeros((64, 96), np.uint8)
        labels[:, 48:] = 3
        Image.fromarray(labels).save(folder / "masks" / f"{scene.image_id}.png")
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A base without anchor encoder."""
    folder = tmp_path_factory.mktemp("plain")
    torch.manual_seed(0)
    model, processor = cora_tiny(TEXTS, seed=0, clip_image_size=28, sam_image_size=128)
    # a random decoder's masks are all but zero, and so would be every difference between them
    torch.nn.init.normal_(model.sam.mask_decoder.output_hypernetworks_mlps[0].proj_out.weight, std=2.0)
    for part in (model, processor):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(plain, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "base"
    add_anchors.main(["--model", str(plain), "--out", str(folder)])
    return folder


def options(street: Path, model: Path, out: Path, **changes) -> list[str]:
    fields = {"model": model, "data": street, "output_dir": out, "trained_parts": PARTS, "lora_r": 4, "max_steps": 2,
              "per_device_train_batch_size": 1, "max_label_size": 64, "learning_rate": 1e-2, "warmup_steps": 0,
              "save_strategy": "no", "save_steps": 1, "disable_tqdm": True, "use_cpu": True, "logging_steps": 1,
              **changes}  # fmt: skip
    return [text for name, value in fields.items()
            for text in (f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)]))]  # fmt: skip


def conditional(*arguments, **changes) -> list[str]:
    return options(*arguments, kinds=["conditional"], **changes)


@pytest.fixture(scope="module")
def first(street, base, tmp_path_factory) -> Path:
    """Of stage 1, which leaves SAM's decoder alone."""
    folder = tmp_path_factory.mktemp("adapters") / "first"
    stage1.main(options(street, base, folder, trained_parts=SOME_PARTS))
    return folder


@pytest.fixture(scope="module")
def second(street, first) -> Path:
    folder = first.with_name("second")
    stage2.main(conditional(street, first, folder, save_strategy="steps"))
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def masks(model, processor) -> torch.Tensor:
    anchor = np.zeros((30, 40), bool)
    anchor[5:20, 20:] = True
    with torch.no_grad():
        inputs = processor([noise_image(40, 30)], [QUERIES], anchors=[[[], [anchor]]])
        return model.eval()(**inputs).pred_masks


def refused(capsys, main, argv: list[str]) -> str:
    """The one line that a program ends in."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2 and len(errors) == 1
    return errors[0]


def test_a_base_gets_anchors_and_answers_as_before(plain, base, tmp_path, capsys):
    (before, processor), (after, its_processor) = load_trained(str(plain)), load_trained(str(base))
    image = noise_image(40, 30)
    with torch.no_grad():
        expected = before(**processor(image, QUERIES)).pred_masks
        torch.testing.assert_close(after(**its_processor(image, QUERIES)).pred_masks, expected, atol=1e-4, rtol=1e-5)
    assert expected.abs().max() > 0.1
    assert (
        after.config.anchor_token_id == its_processor.add_anchor_token() == before.config.get_text_config().vocab_size
    )
    assert len(masks(after, its_processor)) == 2
    line = refused(capsys, add_anchors.main, ["--model", str(base), "--out", str(tmp_path / "new")])
    assert f"--model {base}: has an anchor encoder" in line and not (tmp_path / "new").exists()
    assert "is not empty" in refused(capsys, add_anchors.main, ["--model", str(plain), "--out", str(base)])


def test_anchors_are_shown_to_who_has_learned_them(street, base, first, second, tmp_path):
    """A base may have an encoder that nothing has trained yet; stage 1 does not train it either."""
    for model, learned in ((first, False), (second, True)):
        assert json.loads((model / "training.json").read_text())["anchors"] is learned
        given = {"model": str(model), "data": str(street), "split": "train", "kinds": ["conditional"], "examples": 0}
        given |= {"limit": 1, "queries_per_kind": 1}
        for anchors, expected in (("learned", "given" if learned else "none"), ("given", "given")):
            evaluate.run_evaluation(evaluate.EvaluationArguments(**given, anchors=anchors, out=str(tmp_path)))
            assert json.loads((tmp_path / "metrics.json").read_text())["evaluation"]["anchors"] == expected
    assert has_learned_anchors(str(base))  # of which no record tells
    stage1.main(options(street, second, tmp_path / "more", max_steps=1))
    assert has_learned_anchors(str(tmp_path / "more"))  # before this stage


def test_what_is_made_of_a_trained_model_is_one(street, plain, second, tmp_path):
    """Or stage 1's words would be learned again over it, and the card would not know its origins."""
    merge_adapter.main(["--adapter", str(second), "--out", str(tmp_path / "merged")])
    record = (second / "training.json").read_bytes()
    assert (tmp_path / "merged/training.json").read_bytes() == record
    trained = shutil.copytree(plain, tmp_path / "trained")
    (trained / "training.json").write_bytes(record)
    add_anchors.main(["--model", str(trained), "--out", str(tmp_path / "anchors")])
    assert (tmp_path / "anchors/training.json").read_bytes() == record


def test_no_learning_returns_the_adapter_to_the_bit(street, base, first, tmp_path):
    """What stage 1 trained stays as it is; what stage 2 alone trains begins at the base's weights."""
    out = tmp_path / "out"
    stage2.main(conditional(street, first, out, learning_rate=0, max_steps=1))
    was, now, of_base = tensors(first), tensors(out), load_file(base / "model.safetensors")
    assert all(torch.equal(now[name], tensor) for name, tensor in was.items())
    assert any(tensor.abs().sum() > 0 for name, tensor in was.items() if "lora_B" in name)
    new = now.keys() - was.keys()
    assert new and all("sam.mask_decoder." in name for name in new)
    assert all(torch.equal(now[name], of_base[name.removeprefix("base_model.model.")]) for name in new)
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    record = json.loads((out / "training.json").read_text())
    assert record["model"] == "first, an adapter of base" and record["settings"]["lora_r"] == 4


def test_no_bit_is_rounded_on_a_base_stored_in_bfloat16(street, base, tmp_path):
    folder = tmp_path / "half"
    shutil.copytree(base, folder)
    CoraForReasoningSegmentation.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(folder)
    stage1.main(options(street, folder, tmp_path / "first", learning_rate=1e-3, max_steps=1))
    stage2.main(conditional(street, tmp_path / "first", tmp_path / "second", learning_rate=0, max_steps=1))
    was, now = tensors(tmp_path / "first"), tensors(tmp_path / "second")
    assert all(torch.equal(now[name], tensor) for name, tensor in was.items())
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in was.values())


def test_a_resumed_run_equals_an_uninterrupted_one(street, first, second):
    resumed = second.with_name("resumed")
    shutil.copytree(second / "checkpoint-1", resumed / "checkpoint-1")
    stage2.main(conditional(street, first, resumed, resume_from_checkpoint=True))
    whole, parts, half = tensors(second), tensors(resumed), tensors(second / "checkpoint-1")
    assert whole.keys() == parts.keys() and all(torch.equal(parts[name], whole[name]) for name in whole)
    assert any(not torch.equal(half[name], whole[name]) for name in whole)  # the second step did something


def test_stage_3_loaded_and_merged_answers_as_in_training(street, pseudo, base, second, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(stage3.Stage3Trainer, "save_state", lambda self: trained.append(self.model))
    out = tmp_path / "third"
    more = {"pseudo_labels": pseudo, "consistency": "online", "unlabelled_queries": 1}
    stage3.main(conditional(street, second, out, max_steps=1, **more))
    model, processor = CoraForReasoningSegmentation.from_pretrained(out), load_trained(str(out))[1]
    expected = masks(trained[0], processor)
    assert torch.equal(masks(model, processor), expected)
    for earlier in (second, base):
        assert (masks(load_trained(str(earlier))[0], processor) - expected).abs().max() > 1e-2
    merge_adapter.main(["--adapter", str(out), "--out", str(tmp_path / "merged")])
    merged = masks(*load_trained(str(tmp_path / "merged")))
    torch.testing.assert_close(merged, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_r": 8}, "lora_r 8: adapter {first} has 4"),
        ({"lora_r": 0}, "lora_r 0: model {first} is an adapter"),
        ({"lora_alpha": 3}, "lora_alpha 3: adapter {first} has 16"),
        ({"lora_target_modules": ["q_proj"]}, "lora_target_modules "),
        ({"trained_parts": SOME_PARTS[1:]}, "has trained vlm.model.language_model.embed_tokens too"),
    ],
)
def test_another_adapter_than_the_recipes_takes_one_line(street, first, tmp_path, capsys, changes, message):
    line = refused(capsys, stage2.main, conditional(street, first, tmp_path / "out", **changes))
    assert message.format(first=first) in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "own", "bases"), [("embedding_pooling", 4, 1), ("seg_state", "at", "before")])
def test_an_adapter_answers_as_its_base_is_configured(street, base, first, tmp_path, capsys, name, own, bases):
    """Its folder has no place for another value: nothing trains one, and one that was is not used."""
    config = json.loads((base / "config.json").read_text())
    assert config.get(name, bases) == bases
    line = refused(capsys, stage1.main, options(street, base, tmp_path / "out", **{name: own}))
    assert f"{name} {own}: an adapter uses its base's, {bases}" in line and not (tmp_path / "out").exists()
    line = refused(capsys, stage2.main, conditional(street, first, tmp_path / "out", **{name: own}))
    assert f"{name} {own}: an adapter uses its base's, {bases}" in line
    old = tmp_path / "old"  # of a time when it was trained
    shutil.copytree(first, old)
    record = json.loads((old / "training.json").read_text())
    assert record["settings"][name] is None
    record["settings"][name] = own
    (old / "training.json").write_text(json.dumps(record))
    expected = f"model {old}: was trained with {name} {own}, but its base {base} has {bases}"
    assert expected in refused(capsys, stage2.main, conditional(street, old, tmp_path / "out"))
    with pytest.raises(UsageError, match=re.escape(expected)):
        load_trained(str(old))
    record["settings"][name] = bases
    (old / "training.json").write_text(json.dumps(record))
    load_trained(str(old))


def test_a_base_that_changed_or_is_gone_takes_one_line(street, plain, first, tmp_path, capsys):
    adapter = shutil.copytree(first, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())

    def with_base(base: Path) -> str:
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
        return refused(capsys, stage2.main, conditional(street, adapter, tmp_path / "out", trained_parts=SOME_PARTS))

    assert str(tmp_path / "gone") in with_base(tmp_path / "gone")
    model, processor = load_trained(str(plain))
    model.resize_token_embeddings(model.config.get_text_config().vocab_size + 7)
    model.add_anchors(processor.add_anchor_token())
    for part in (model, processor):
        part.save_pretrained(tmp_path / "larger")
    line = with_base(tmp_path / "larger")
    assert ("does not fit its base" in line and "embed_tokens" in line) or "lm_head" in line


@pytest.mark.parametrize("model", ["plain", "gone"])
def test_a_run_that_could_not_get_to_stage_2_never_begins(street, plain, tmp_path, capsys, model):
    start = plain if model == "plain" else tmp_path / "gone"
    argv = run_options(street, tmp_path / "out", stage1__model=start, stage1__lora_r=4)
    line = refused(capsys, run.main, argv)
    assert f"model {start}: " in line and ("add_anchors.py" in line) == (model == "plain")
    assert not (tmp_path / "out").exists()


def test_a_run_that_shows_no_anchors_needs_no_encoder(street, plain, tmp_path, monkeypatch):
    def begin(*_):
        raise InterruptedError

    monkeypatch.setattr(run.StepFolders, "run", begin)
    for method, ended in (("lisa", InterruptedError), ("cora", SystemExit)):
        with pytest.raises(ended):
            run.main(run_options(street, tmp_path / "out", stage1__model=plain, stage1__lora_r=4, method=method))


def test_an_adapter_of_a_model_with_tied_tables_is_taken_up_whole(tmp_path):
    config = cora_tiny(TEXTS, seed=0, clip_image_size=28, sam_image_size=128)[0].config
    config.vlm_config.text_config.tie_word_embeddings = config.vlm_config.tie_word_embeddings = True
    CoraForReasoningSegmentation(config).save_pretrained(tmp_path / "base")

    def wrapped():
        base = CoraForReasoningSegmentation.from_pretrained(tmp_path / "base")
        return select_trained_parts(base, TrainedPartsArguments(lora_r=4))

    before, after = wrapped(), wrapped()
    with torch.no_grad():
        for parameter in before.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    before.save_pretrained(tmp_path / "adapter")
    load_adapter(after, str(tmp_path / "adapter"))
    expected = before.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in after.state_dict().items())


def test_where_tables_are_tied_the_head_is_the_trained_table(tmp_path):
    """Against the base with another table in both places; as an adapter, loaded, and merged."""
    untied, processor = cora_tiny(TEXTS, seed=0, clip_image_size=28, sam_image_size=128)
    config = untied.config
    config.vlm_config.text_config.tie_word_embeddings = config.vlm_config.tie_word_embeddings = True
    CoraForReasoningSegmentation(config).save_pretrained(tmp_path / "base")
    base = CoraForReasoningSegmentation.from_pretrained(tmp_path / "base")
    model = select_trained_parts(base, TrainedPartsArguments(lora_r=4)).eval()
    table = model.get_input_embeddings().modules_to_save["default"].weight
    new = table.detach().clone() + 0.1 * torch.randn(table.shape, generator=torch.Generator().manual_seed(0))
    inputs = processor(noise_image(40, 30), QUERIES)

    def logits(model) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(**inputs, output_logits=True).logits

    unchanged = logits(model)
    with torch.no_grad():
        table.copy_(new)
    plain = CoraForReasoningSegmentation.from_pretrained(tmp_path / "base")
    plain.get_input_embeddings().weight.data.copy_(new)
    plain.get_output_embeddings().weight.data.copy_(new)
    expected = logits(plain)
    assert (expected - unchanged).abs().max() > 0.1
    torch.testing.assert_close(logits(model), expected)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits(load_trained(str(tmp_path / "adapter"))[0]), expected)
    merge_adapter.main(["--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")])
    merged = load_trained(str(tmp_path / "merged"))[0]
    torch.testing.assert_close(logits(merged), expected)
    assert merged.get_input_embeddings().weight is merged.get_output_embeddings().weight


@pytest.mark.parametrize("kind", ["base", "adapter"])
def test_without_anchors_one_line_names_the_commands(street, plain, tmp_path, monkeypatch, capsys, kind):
    """And what it names is enough to go on."""
    monkeypatch.chdir(tmp_path)
    start, programs = (
        Path(shutil.copytree(plain, "start")),
        {"add_anchors": add_anchors, "merge_adapter": merge_adapter},
    )
    if kind == "adapter":
        model, processor = load_trained("start")
        start = Path("adapter")
        select_trained_parts(model, TrainedPartsArguments(lora_r=4)).save_pretrained(start)
        processor.save_pretrained(start)
    line = refused(capsys, stage2.main, conditional(street, start, tmp_path / "out"))
    commands = line.partition("; ")[2].removesuffix(" makes a base that has one").split(" && ")
    assert len(commands) == (2 if kind == "adapter" else 1)
    for command in commands:
        _, program, *argv = command.split()
        programs[Path(program).stem].main(argv)
    assert load_trained(f"{start}-anchors")[0].config.anchor_token_id is not None
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_adapter_is_diagnosed(street, pseudo, second, tmp_path):
    argv = conditional(street, second, tmp_path, pseudo_labels=pseudo, embedding_batches=2, gradient_batches=1)
    argv += ["--out", str(tmp_path / "diagnosis")]
    diagnose.main(argv)
    assert (tmp_path / "diagnosis" / "report.md").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cora", "supervised"])
def test_a_run_with_lora_in_every_stage(street, base, tmp_path, method):
    """`supervised` has stage 1's program as its second stage."""
    argv = run_options(street, tmp_path / "run", method=method, stage1__model=base)
    for stage in ("stage1", "stage2", "stage3"):
        argv += [f"--{stage}.lora_r", "4", f"--{stage}.trained_parts", *PARTS]
    argv += ["--stage1.query_pretraining_steps", "0"]
    run.main(argv)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    folders = [Path(record["steps"][stage]) for stage in ("stage1", "stage2", "stage3")]
    for folder in folders:
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
        assert not (folder / "model.safetensors").exists()
    assert any(not torch.equal(tensors(folders[0])[n], t) for n, t in tensors(folders[1]).items())
