"""Recipes and command lines: what they are read as, and the one line for what cannot be."""

from __future__ import annotations

import ast
import runpy
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from datasets_scripts.command_line import UsageError
from datasets_scripts.records import DataError
from trainers.arguments import (
    CoraTrainingArguments,
    DataArguments,
    EmbeddingCacheArguments,
    QueryPretrainingArguments,
    UnlabelledArguments,
)
from trainers.consistency_weights import ConsistencyArguments
from trainers.evaluate import EvaluationArguments
from trainers.recipe_parser import parse_recipe, split_sections
from trainers.stage import ARGUMENTS
from trainers.steps import Step, StepFolders, code_digest


def test_null_overrides_a_recipe_and_a_default(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{embedding_cache: cache, bank_negatives: 5, trained_parts: [lm_head]}")
    types = (*ARGUMENTS, UnlabelledArguments)
    given = [str(recipe), "--use_cpu", "true", "--embedding_cache", "null", "--bank_negatives", "7"]
    _, parts, _, _, caching, _, unlabelled = parse_recipe(
        types, [*given, "--bank_negatives=null", "--trained_parts", "null", "--sigma", "0.1", "--sigma", "null"]
    )
    assert (caching.embedding_cache, unlabelled.bank_negatives, parts.trained_parts) == (None, None, None)
    assert unlabelled.sigma is None and unlabelled.rephrasings == 6
    *_, unlabelled = parse_recipe(types, [*given, "--bank_negatives", "null", "--bank_negatives", "7"])
    assert unlabelled.bank_negatives == 7  # the last one counts
    with pytest.raises(UsageError, match="rephrasings: null: a value is needed"):
        parse_recipe((UnlabelledArguments,), ["--rephrasings", "null"])


@dataclass
class Fields:
    some: int | None = field(default=3)
    others: list[str] | None = field(default_factory=lambda: ["a"])
    name: str = field(default="b")


def test_null_in_a_step_reaches_its_program(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("some: 5")
    folders = StepFolders(tmp_path / "steps")

    def read(**given: Any) -> tuple:
        step = Step("one", "any", given, output="name", recipe=recipe, arguments=(Fields,))
        (found,) = parse_recipe(step.arguments, folders.command(step))
        return found.some, found.others

    assert read() == (5, ["a"]) and read(some=None, others=None) == (None, None) and read(some=4) == (4, ["a"])
    # of steps that nobody keeps, each has its own folder
    assert len({folders.folder(Step("one", "any", {"some": number})) for number in range(9)}) == 9
    # a program of another kind has no such word
    assert folders.command(Step("one", "any", {"some": None, "flag": False}))[:1] == ["--out"]
    assert folders.command(Step("one", "any", {"flag": True, "seed": 0}))[:4] == ["--flag", "--seed", "0", "--out"]


def test_code_is_known_by_its_modules(tmp_path):
    """Of two trees: where they lie does not count, what a module or its name is does, and other files do not."""
    trees = []
    for number, (name, text) in enumerate((("a", "1"), ("a", "1"), ("a", "2"), ("b", "1"))):
        (tmp_path / str(number) / "trainers/deeper").mkdir(parents=True)
        (tmp_path / str(number) / f"trainers/deeper/{name}.py").write_text(text)
        (tmp_path / str(number) / "trainers/note.md").write_text(str(number))
        trees.append(code_digest(tmp_path / str(number)))
    assert trees[0] == trees[1] and len(set(trees)) == 3
    assert code_digest() not in trees


def test_fields_of_sections_are_split_from_a_programs_own():
    argv = ["--data=/x/v1.0", "--stage1.max_steps=5", "--data", "/y/v2.0", "--stage2.kinds", "a", "b", "--seeds", "1",
            "2", "--stage3.model=/x/v=1.0", "--stage2.kinds=[c, d]", "--evaluation.limit=null"]  # fmt: skip
    own, dotted = split_sections(argv)
    assert own == ["--data=/x/v1.0", "--data", "/y/v2.0", "--seeds", "1", "2"]
    assert dotted == {
        "stage1.max_steps": 5,
        "stage2.kinds": ["c", "d"],
        "stage3.model": "/x/v=1.0",
        "evaluation.limit": None,
    }
    assert split_sections(["--stage1.max_steps=5", "6"])[0] == ["6"]  # no value of it, as for any other field


@pytest.mark.parametrize("given", [["semantic", "attribute"], ["[semantic, attribute]"]])
def test_a_list_is_written_as_in_a_recipe_or_word_by_word(given):
    (read,) = parse_recipe((UnlabelledArguments,), ["--unlabelled_kinds", *given])
    assert read.unlabelled_kinds == ["semantic", "attribute"]


def test_a_list_that_does_not_end_gets_one_line():
    with pytest.raises(UsageError, match=r"^--unlabelled_kinds: '\[semantic' is not a YAML value; a list is `a b`"):
        parse_recipe((UnlabelledArguments,), ["--unlabelled_kinds", "[semantic"])


@pytest.mark.parametrize("value", [["[semantic,", "attribute]"], ["{a"], ["2024-13-45"]])
def test_a_value_that_is_not_yaml_gets_one_line(value):
    with pytest.raises(UsageError, match=r"^--evaluation\.kinds: [^\n]+ is not a YAML value; a list is `a b`"):
        split_sections(["--evaluation.kinds", *value])


def test_what_is_no_recipe_gets_one_line(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary").write_bytes(b"\x89PNG\xff")
    (tmp_path / "date").write_text("max_steps: 2024-13-45")
    for name, message in (
        ("folder", r"folder: cannot be read as a recipe \(Is a directory\)"),
        ("binary", "binary: not a text file"),
        ("date", "date: not YAML"),
        ("none", "none: no such recipe"),
    ):
        with pytest.raises(DataError, match=rf"^[^\n]*{message}[^\n]*$"):
            parse_recipe((DataArguments,), [str(tmp_path / name)])


@dataclass
class Lists:
    seeds: list[int] = field(default_factory=list)
    fractions: list[str] = field(default_factory=list)
    more: dict = field(default_factory=dict)
    title: str = field(default="")


def test_a_recipe_is_read_as_a_command_line(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("{seeds: 0, fractions: ['1_30', '[a'], more: {a: [1]}, title: '[b'}")
    (read,) = parse_recipe((Lists,), [str(path)])
    assert read == Lists(seeds=[0], fractions=["1_30", "[a"], more={"a": [1]}, title="[b")
    (read,) = parse_recipe((Lists,), [str(path), "--fractions=[1_30]", "--seeds", "1", "2", "--title", "5"])
    assert read == Lists(seeds=[1, 2], fractions=["1_30"], more={"a": [1]}, title="5")
    path.write_text("{query_pretraining_learning_rate: 3e-4, query_pretraining_steps: 7}")
    (read,) = parse_recipe((QueryPretrainingArguments,), [str(path)])
    assert (read.query_pretraining_learning_rate, read.query_pretraining_steps) == (3e-4, 7)


@pytest.mark.parametrize(
    ("group", "recipe", "message"),
    [
        (Lists, "fractions: [1_30]", 'fractions: 130 is no text; YAML keeps what is in quotes, as "1_30"'),
        (Lists, "title: 2020-01-01", "title: 2020-01-01 is no text"),
        (Lists, "seeds: [0, a]", "seeds: invalid int value: 'a'"),
        (Lists, "seeds: '[0'", "seeds: --seeds: '[0' is not a YAML value; a list is"),
        (CoraTrainingArguments, "_n_gpu: 1", "unknown field '_n_gpu'"),
        (Lists, "seeds: null", "seeds: null: a value is needed"),
        (Lists, "more: [1]", "more: invalid dict value: '[1]'"),
        (CoraTrainingArguments, "max_steps: null", "max_steps: null: a value is needed"),
        (CoraTrainingArguments, "max_steps: [1, 2]", "max_steps: invalid int value: '[1, 2]'"),
        (QueryPretrainingArguments, "query_pretraining_steps: 1.7", "query_pretraining_steps: invalid int value"),
        (DataArguments, "queries_per_image: null", "queries_per_image: null: a value is needed"),
    ],
)  # fmt: skip
def test_a_recipes_value_that_does_not_fit_gets_one_line(tmp_path, group, recipe, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    with pytest.raises(DataError, match=r"^[^\n]+$") as raised:
        parse_recipe((group,), [str(path)])
    assert str(raised.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("group", "given", "message"),
    [
        (DataArguments, {"queries_per_image": 0}, "queries_per_image: 0 is less than 1"),
        (DataArguments, {"max_label_size": 0}, "max_label_size: 0 is less than 1"),
        (DataArguments, {"scene_cache_gigabytes": -1}, "scene_cache_gigabytes: -1 is less than 0"),
        (DataArguments, {"flip": 50}, "flip: 50 is outside of [0, 1]"),
        (DataArguments, {"crop": -0.5}, "crop: -0.5 is outside of [0, 1]"),
        (DataArguments, {"crop_scale": 3}, "crop_scale: 3 is outside of [0, 1]"),
        (DataArguments, {"crop_scale": 0}, "crop_scale: 0 is not above 0"),
        (DataArguments, {"colour_jitter": 1}, "colour_jitter: 1 is outside of [0, 1)"),
        (QueryPretrainingArguments, {"query_pretraining_steps": -1}, "query_pretraining_steps: -1 is less than 0"),
        (QueryPretrainingArguments, {"query_pretraining_queries": 0}, "query_pretraining_queries: 0 is less than 1"),
        (UnlabelledArguments, {"bank_negatives": 0}, "bank_negatives: 0 is less than 1"),
        (UnlabelledArguments, {"sigma": -1}, "sigma: -1 is less than 0"),
        (ConsistencyArguments, {"seed": -1}, "seed: -1 is less than 0"),
        (DataArguments, {"flipped_queries": "some"}, "flipped_queries: 'some' is not one of classes, all"),
        (UnlabelledArguments, {"weight_temperature": 0}, "weight_temperature: 0 is not above 0"),
        (UnlabelledArguments, {"alignment_temperature": -0.1}, "alignment_temperature: -0.1 is not above 0"),
        (UnlabelledArguments, {"alignment_temperature": float("nan")}, "alignment_temperature: nan is not above 0"),
        (UnlabelledArguments, {"unlabelled_kinds": ["semantics"]}, "unlabelled_kinds: 'semantics' is not one of "
         "semantic, attribute; did you mean 'semantic'?"),
        (UnlabelledArguments, {"unlabelled_kinds": ["conditional"]}, "unlabelled_kinds: 'conditional' is not one of"),
        (UnlabelledArguments, {"unlabelled_kinds": []}, "unlabelled_kinds: none is given"),
        (ConsistencyArguments, {"kinds": ["semantic", "atribute"]}, "kinds: 'atribute' is not one of semantic, "
         "attribute; did you mean 'attribute'?"),
        (ConsistencyArguments, {"rephrasings": 1}, "rephrasings: 1 is less than 2"),
        (ConsistencyArguments, {"queries_per_pass": 0}, "queries_per_pass: 0 is less than 1"),
        (ConsistencyArguments, {"longest_side": 0}, "longest_side: 0 is less than 1"),
        (EvaluationArguments, {"kinds": ["semantic", "conditionl"]}, "kinds: 'conditionl' is not one of semantic, "
         "attribute, conditional, reasoning; did you mean 'conditional'?"),
        (EvaluationArguments, {"examples": -1}, "examples: -1 is less than 0"),
        (EvaluationArguments, {"limit": 0}, "limit: 0 is less than 1"),
        (EvaluationArguments, {"queries_per_kind": 0}, "queries_per_kind: 0 is less than 1"),
        (EvaluationArguments, {"anchors": "some"}, "anchors: 'some' is not one of learned, given, none"),
        (EvaluationArguments, {"protocol": "liza"}, "liza"),
        (EmbeddingCacheArguments, {"embedding_cache_gigabytes": 0}, "embedding_cache_gigabytes: 0 is not above 0"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_gets_one_line(group, given, message):
    with pytest.raises(UsageError, match=r"^[^\n]+$") as raised:
        group(**given)
    assert message in str(raised.value)


def test_kinds_that_a_data_set_brings_can_be_asked():
    assert EvaluationArguments(kinds=["reasoning", "conditional"]).kinds == ["reasoning", "conditional"]


@pytest.mark.parametrize(("gpus", "used"), [(0, 0), (1, 1), (4, 1)])
def test_one_process_takes_one_gpu(tmp_path, monkeypatch, gpus, used):
    """transformers would wrap the model in nn.DataParallel, and scatter lists of masks."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    arguments = CoraTrainingArguments(output_dir=str(tmp_path), bf16=False)
    assert arguments.n_gpu == used and arguments.train_batch_size == arguments.per_device_train_batch_size


def test_parameters_without_gradients_are_looked_for(tmp_path):
    """Also with activation checkpointing, where Trainer would not; whoever says no gets no."""
    given = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    assert CoraTrainingArguments(**given, activation_checkpointing=True).ddp_find_unused_parameters is True
    assert CoraTrainingArguments(**given, ddp_find_unused_parameters=False).ddp_find_unused_parameters is False


@pytest.mark.parametrize("program", ["run.py", "stage3.py", "nouns.py", "pseudo_labels/audit.py"])
def test_help_begins_with_what_the_program_is_for(program, monkeypatch, capsys):
    file = Path(__file__).resolve().parents[1] / "trainers" / program
    monkeypatch.setattr(sys, "argv", [str(file), "--help"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(file), run_name="__main__")
    usage, _, what_for = capsys.readouterr().out.partition("\n\n")
    assert not stopped.value.code and len(usage) < 80
    assert what_for.startswith(ast.get_docstring(ast.parse(file.read_text())))
