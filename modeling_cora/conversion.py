"""What the converters share: finding checkpoints, matching them with the model, and writing its folder whole."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer, LlamaTokenizer
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from publishing.command_line import ArgumentParser, first_line

from .checkpoint_keys import Rules, is_droppable, rename
from .checkpoint_shards import ConversionError, read_json, write_shards
from .configuration_cora import CoraConfig
from .modeling_cora import CoraForReasoningSegmentation, CoraSegProjector
from .processing_cora import CoraProcessor

INPUT_TABLE = "vlm.model.language_model.embed_tokens.weight"
OUTPUT_TABLE = "vlm.lm_head.weight"
IMAGE_TOKEN = "<image>"
SAM_HELP = "folder or Hub id of a SamModel, or segment-anything's or MobileSAM's .pth"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ConversionParser(ArgumentParser):
    """Has the options of all converters."""

    def __init__(self, description: str, clip_preprocessing: str):
        super().__init__(description=description)
        self.add_argument("--output", required=True, metavar="DIR", help="new folder")
        self.add_argument("--dtype", choices=DTYPES, help="of all weights; the language model's own where not given")
        self.add_argument("--max-shard-size", default="5GB", help="of one file (default: 5GB)")
        self.add_argument(
            "--clip-preprocessing",
            choices=("letterbox", "centre_crop"),
            default=clip_preprocessing,
            help="how the vision tower sees images that are not square: whole, or their middle (default: %(default)s)",
        )
        self.add_argument(
            "--sam-decoder-heads",
            type=int,
            default=8,
            help="of SAM's mask decoder where segment-anything's own weights are read (default: 8, all published ones)",
        )


def find_checkpoint(name: str) -> Path:
    """A file or folder on this machine, or a Hub id, which is downloaded.

    Raises:
        ConversionError: there is neither.
    """
    path = Path(name)
    if path.exists():
        return path
    if (
        name.count("/") > 1
        or name.startswith((".", "/", "~"))
        or path.suffix in (".pt", ".pth", ".bin", ".safetensors")
    ):
        raise ConversionError(f"{name}: no such file or folder")
    try:
        others = ["*.json", "*.model", "*.jinja", "merges.txt"]
        folder = Path(snapshot_download(name, allow_patterns=[*others, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*others, "*.bin"]))
    except Exception as error:  # the Hub's client raises errors of many libraries
        where = "no such folder here, and not to be had from the Hub"
        raise ConversionError(f"{name}: {where} ({first_line(error)})") from None
    return folder


def parse_config(config_class: Any, values: Mapping[str, Any], where: str) -> Any:
    """
    Raises:
        ConversionError: a field that the class refuses.
    """
    try:
        return config_class.from_dict(dict(values))
    except Exception as error:  # the configuration classes check every field in their own way
        raise ConversionError(f"{where}: {' '.join(str(error).split())[:200]}") from None


def load_tokenizer(path: Path) -> Any:
    """
    Raises:
        ConversionError: the folder holds none, or one without an end of answers.
    """
    sentencepiece_alone = (path / "tokenizer.model").is_file() and not (path / "tokenizer.json").is_file()
    try:
        if sentencepiece_alone:
            # for a model of type llava AutoTokenizer takes a class that drops the space before a text; a folder that
            # does not say `legacy` is older than the word
            legacy = read_json(path / "tokenizer_config.json").get("legacy")
            tokenizer = LlamaTokenizer.from_pretrained(path, legacy=True if legacy is None else legacy)
        else:
            tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # whatever the tokenizers' library raises
        needed = "; sentencepiece and protobuf are needed: pip install -e '.[convert]'" if sentencepiece_alone else ""
        raise ConversionError(f"{path}: no tokenizer can be loaded from it ({first_line(error)}){needed}") from None
    if tokenizer.eos_token is None:
        raise ConversionError(f"{path}: its tokenizer has no eos_token, with which answers end")
    return tokenizer


def normalisation(folder: Path) -> dict[str, Any]:
    """Mean and standard deviation of the folder's own image processor; nothing where it has none."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            values = read_json(folder / name)
            values = values.get("image_processor", values)
            return {key: values[key] for key in ("image_mean", "image_std") if key in values}
    return {}


def add_special_tokens(tokenizer: Any, tokens: Sequence[str]) -> None:
    """Makes them special, so that text of a user never becomes one; those that are there keep their ids."""
    tokenizer.add_special_tokens({"extra_special_tokens": list(tokens)}, replace_extra_special_tokens=False)


def renamed(
    tensors: Mapping[str, torch.Tensor], rules: Rules, droppable: Sequence[str], where: str
) -> dict[str, torch.Tensor]:
    """The tensors under CORA's names.

    Raises:
        ConversionError: keys that no rule knows, or two for one name.
    """
    result: dict[str, torch.Tensor] = {}
    unexpected = []
    for key, tensor in tensors.items():
        if is_droppable(key, droppable):
            continue
        name = rename(key, rules)
        if name is None:
            unexpected.append(key)
        elif name in result:
            raise ConversionError(f"{where}: {key} is the second key for {name}")
        else:
            result[name] = tensor
    if unexpected:
        raise ConversionError(f"{where}: {_listed('unexpected key', unexpected)}")
    return result


def grow_rows(tensors: dict[str, torch.Tensor], rows: int, input_table: str = INPUT_TABLE) -> bool:
    """Makes the embedding and the language head hold at least `rows` rows; a new one is the mean of the others.

    Args:
        input_table: name of the embedding's weight.

    Returns:
        whether anything was added.
    """
    added = False
    for name in (input_table, OUTPUT_TABLE):
        table = tensors.get(name)
        if table is not None and table.shape[0] < rows:
            mean = table.mean(0, keepdim=True, dtype=torch.float32).to(table.dtype)
            tensors[name] = torch.cat([table, mean.expand(rows - len(table), *table.shape[1:])])
            added = True
    return added


def state_scale(tensors: Mapping[str, torch.Tensor], input_table: str = INPUT_TABLE) -> float:
    """Root mean square of a language model's last states, which is that of its final norm's weights.

    Raises:
        ConversionError: there are none.
    """
    name = input_table.replace("embed_tokens", "norm")
    if name not in tensors:
        raise ConversionError(f"the weights do not fit the model: {_listed('missing key', [name])}")
    return float(tensors[name].float().square().mean().sqrt())


def new_weights(config: CoraConfig, seed: int, scale: float, connector: bool = False) -> dict[str, torch.Tensor]:
    """What no checkpoint has, with weights that keep the scale of what passes through; the same for the same seed.

    Args:
        scale: of the language model's states, see `state_scale`. SAM listens to prompts of a standard deviation of
            about 0.7, whatever the scale of the states.
        connector: besides the projection from `[SEG]` to SAM, that from the vision tower to the language model.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = {"vlm.model.multi_modal_projector": LlavaMultiModalProjector(config.vlm_config)} if connector else {}
        parts["seg_projector"] = projection = CoraSegProjector(config)
        for linear in (one for part in parts.values() for one in (part.linear_1, part.linear_2)):
            torch.nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            torch.nn.init.zeros_(linear.bias)
    projection.linear_1.weight.data /= scale
    return {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}


def empty_model(config: CoraConfig) -> CoraForReasoningSegmentation:
    """The model without memory for its weights: their names, shapes and ties."""
    with torch.device("meta"):
        return CoraForReasoningSegmentation(config)


def match_model(model: CoraForReasoningSegmentation, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Exactly the tensors that `save_pretrained` would write, each of the right shape.

    Raises:
        ConversionError: missing or unexpected keys, other shapes, or two values for weights that are one.
    """
    tensors = dict(tensors)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for copy, original in (model.all_tied_weights_keys or {}).items():
        if (second := tensors.pop(copy, None)) is None:
            expected.pop(copy, None)
            continue
        first = tensors.setdefault(original, second)
        if first is not second and not torch.equal(first, second):
            raise ConversionError(f"{copy} differs from {original}, though the configuration ties them")
        expected.pop(copy, None)
    problems = [
        _listed("missing key", [name for name in expected if name not in tensors]),
        _listed("unexpected key", [name for name in tensors if name not in expected]),
        _listed(
            "key of another shape",
            [
                f"{name} {list(tensor.shape)} instead of {list(expected[name])}"
                for name, tensor in tensors.items()
                if name in expected and tensor.shape != expected[name]
            ],
        ),
    ]
    if any(problems):
        raise ConversionError("the weights do not fit the model: " + "; ".join(filter(None, problems)))
    return tensors


def _listed(what: str, names: Sequence[str]) -> str:
    """ "2 missing keys: a, b" or "" for none."""
    if not names:
        return ""
    noun = what if len(names) == 1 else what.replace("key", "keys", 1)
    return f"{len(names)} {noun}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"


def write_model_folder(
    options: argparse.Namespace,
    config: CoraConfig,
    tensors: dict[str, torch.Tensor],
    processor: CoraProcessor,
    input_table: str = INPUT_TABLE,
) -> None:
    """Writes what `from_pretrained` of model and processor read; the folder appears whole or not at all.

    Args:
        options: `output`, `dtype` and `max_shard_size` of `ConversionParser`.
        tensors: under CORA's names.
        input_table: name of the embedding's weight, whose type all weights get where `dtype` names none.
    """
    dtype = DTYPES[options.dtype] if options.dtype else tensors[input_table].dtype
    for part in (config, config.vlm_config, config.get_text_config(), config.vlm_config.vision_config):
        part.dtype = dtype
    config.sam_config.dtype = dtype
    config.architectures = [CoraForReasoningSegmentation.__name__]
    model = empty_model(config)
    tensors = match_model(model, tensors)
    # where the chat template ends an answer, which is not always what the language model's folder says
    model.generation_config.eos_token_id = processor.end_token_id
    model.generation_config.pad_token_id = processor.pad_token_id
    with whole_folder(options.output, "--output") as folder:
        write_shards(folder, tensors, dtype, options.max_shard_size)
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        processor.save_pretrained(folder)
    count = sum(tensor.numel() for tensor in tensors.values())
    print(f"{options.output}: {count:,} weights as {str(dtype).removeprefix('torch.')}")


@contextmanager
def whole_folder(out: str | Path, option: str) -> Iterator[Path]:
    """A folder to write to, which becomes `out` at the end of the block, or nothing where that fails.

    Args:
        out: new, or an empty folder.
        option: by which it was named.

    Raises:
        ConversionError: it is a file or holds something, at once; it cannot be written.
    """
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        what = "is a file" if out.is_file() else "is not empty"
        raise ConversionError(f"{option} {out}: {what}; a new folder would be right")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as place:
            folder = Path(place) / out.name  # that one is its owner's alone
            folder.mkdir()
            yield folder
            for file in folder.rglob("*"):
                if file.is_file():  # safetensors makes files that nobody else may read
                    file.chmod(folder.stat().st_mode & 0o666)
            os.replace(folder, out)
    except OSError as error:
        raise ConversionError(f"{option} {out}: {error.strerror or error}") from None
