"""An adapter as the model to start from: what one stage wrote, the next one trains further, on the same base."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from peft import PeftConfig, PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from transformers.utils import find_adapter_config_file

from datasets_scripts.command_line import UsageError
from modeling_cora import CoraConfig
from modeling_cora.named_models import resolve_name
from publishing.command_line import first_line

from .training_record import read_record

ARGUMENT_OF = {"r": "lora_r", "target_modules": "lora_target_modules"}
"""What `TrainedPartsArguments` call a field of peft's configuration, where the names differ."""
MAY_DIFFER = {
    "base_model_name_or_path", "revision", "peft_version", "auto_mapping", "task_type", "inference_mode",
    "runtime_config", "init_lora_weights", "lora_dropout", "modules_to_save",
}  # fmt: skip
"""Fields on which the meaning of an adapter's weights does not depend, and `modules_to_save`, which may grow."""
OF_THE_BASE = ("seg_state", "embedding_pooling")
"""Fields of `CoraConfig` that change the answers and that an adapter's folder has no place for: whoever loads it takes
its base's."""


def adapter_config(model: str) -> PeftConfig | None:
    """What an adapter says of itself; None for a whole model, and for what cannot be found.

    Args:
        model: folder or Hub id.

    Raises:
        UsageError: an adapter's configuration that cannot be read, or names no base.
    """
    try:
        if find_adapter_config_file(resolve_name(model)) is None:
            return None
        config = PeftConfig.from_pretrained(resolve_name(model))
    except OSError:
        return None  # whoever loads the model says why it cannot be
    except (ValueError, TypeError) as error:
        raise UsageError(f"model {model}: adapter_config.json cannot be read ({first_line(error)})") from None
    if not config.base_model_name_or_path:
        raise UsageError(
            f"model {model}: adapter_config.json: base_model_name_or_path is empty; a folder or Hub id is needed"
        )
    return config


def base_of(model: str) -> str:
    """Folder or Hub id of an adapter's base; any other model is its own."""
    config = None if model == "cora-tiny" else adapter_config(model)
    return model if config is None else config.base_model_name_or_path


def check_record(adapter: str, config: CoraConfig) -> None:
    """An adapter is used with its base's configuration, so that must be the one it was trained with.

    Args:
        adapter: folder or Hub id; one without a `training.json` passes.
        config: of its base.

    Raises:
        UsageError: its record names another value of `OF_THE_BASE`, or cannot be read.
    """
    settings = read_record(adapter).get("settings", {})
    for name in OF_THE_BASE:
        if (was := settings.get(name)) is not None and was != (has := getattr(config, name)):
            raise UsageError(
                f"model {adapter}: was trained with {name} {was}, but its base {base_of(adapter)} has {has}; "
                f"{name} {was} in the config.json of the base would be right"
            )


def load_adapter(model: PeftModel, adapter: str) -> None:
    """Gives a model that was wrapped just now the weights of an adapter of the same base.

    A part that is trained in full now and was not before keeps the base's weights.

    Args:
        adapter: folder or Hub id.

    Raises:
        UsageError: adapter and model differ in what decides the meaning of the weights, or these cannot be read.
    """
    before, now = adapter_config(adapter), model.peft_config["default"]
    if type(before) is not type(now):
        raise UsageError(
            f"model {adapter}: is no LoRA adapter but {type(before).__name__}; only LoRA is trained further"
        )
    for name in (field.name for field in fields(now)):
        was, wanted = getattr(before, name), getattr(now, name)
        if name not in MAY_DIFFER and was != wanted:
            raise UsageError(f"{ARGUMENT_OF.get(name, name)} {wanted}: adapter {adapter} has {was}, which must stay")
    trained = [set(config.modules_to_save or ()) for config in (before, now)]
    if lost := sorted(trained[0] - trained[1]):
        raise UsageError(f"trained_parts: adapter {adapter} has trained {lost[0]} too, which would be lost; add it")
    try:
        weights = load_peft_weights(resolve_name(adapter), device="cpu")
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"model {adapter}: its weights cannot be read ({first_line(error)})") from None
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    new = tuple(f"base_model.model.{module}." for module in trained[1] - trained[0])
    expected = {name: tensor.shape for name, tensor in own.items() if not name.startswith(new)}
    found = {name: tensor.shape for name, tensor in weights.items()}
    if wrong := sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name)):
        shapes = " ".join(str(list(of.get(wrong[0], ()))) for of in (found, expected))
        raise UsageError(f"model {adapter}: {wrong[0]} does not fit its base ({shapes}); is it another base now?")
    set_peft_model_state_dict(model, {**own, **weights})


def anchors_needed(model: str) -> str:
    """One line for a model whose base has no anchor encoder: which commands make a base that has one.

    An adapter holds no more than changes of what its base has, and the embedding of `[ANCHOR]` may be a new row.
    """
    base, commands = base_of(model), []
    whole = model
    if base != model:
        whole = _beside(model, "merged")
        commands.append(f"python trainers/merge_adapter.py --adapter {model} --out {whole}")
    commands.append(f"python trainers/add_anchors.py --model {whole} --out {_beside(model, 'anchors')}")
    return (
        f"model {model}: {'' if base == model else f'its base {base} '}has no anchor encoder, and an adapter cannot "
        f"bring one along; {' && '.join(commands)} makes a base that has one"
    )


def refuse_base_without_anchors(model: str, rank: int | None) -> None:
    """For what ends in stages 2 and 3 and takes hours to get there.

    Args:
        model: that stage 1 starts from; a folder, a Hub id or `cora-tiny`.
        rank: `lora_r`; with 0 (and for `cora-tiny`) the whole model is trained, and gets anchors when it needs them.

    Raises:
        UsageError: an adapter would be trained on a base that has no anchor encoder, or there is no such base.
    """
    if model == "cora-tiny" or rank == 0:
        return
    try:
        config = CoraConfig.from_pretrained(resolve_name(base_of(model)))
    except Exception as error:  # a configuration checks every field in its own way
        raise UsageError(f"model {model}: {' '.join(str(error).split())[:300]}") from None
    if config.anchor_token_id is None:
        raise UsageError(anchors_needed(model))


def _beside(model: str, word: str) -> str:
    """A folder's name beside a folder, or here for a Hub id."""
    return f"{Path(model) if Path(model).is_dir() else Path(model).name}-{word}"
