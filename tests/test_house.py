"""The house itself: which package may know which, and sizes that stay readable."""

from __future__ import annotations

import ast
import dataclasses
import importlib
from pathlib import Path

import pytest
from transformers import TrainingArguments

from .test_remote_code import CODE

ROOT = Path(__file__).resolve().parents[1]
OWN = ("publishing", "modeling_cora", "datasets_scripts", "metrics", "trainers", "benchmarks", "tests", "spaces")
ALLOWED = {
    "publishing": set(),
    "modeling_cora": {"publishing"},
    "datasets_scripts": {"publishing"},
    "metrics": set(),
    "trainers": {"modeling_cora", "datasets_scripts", "metrics", "publishing"},
    "spaces": {"modeling_cora", "publishing"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert not (imports(path) & set(OWN)) - ALLOWED[package] - {package}, path


def test_the_files_of_a_saved_model_know_no_house():
    for name in CODE:
        assert not imports(ROOT / "modeling_cora" / name) & set(OWN), name


def test_data_readers_do_not_need_torch():
    for path in (ROOT / "datasets_scripts").rglob("*.py"):
        assert "torch" not in imports(path), path


def test_only_the_page_needs_gradio():
    for path in (ROOT / "spaces").rglob("*.py"):
        assert "gradio" not in imports(path) or path.name in ("page.py", "serving.py", "uploads.py"), path


def test_files_and_functions_stay_readable():
    for package in OWN:
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert text.count("\n") <= 500, path
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef):
                    assert node.end_lineno - node.lineno < 80, (path, node.name)


def test_every_hyper_parameter_is_documented():
    """A field of a dataclass of arguments has a help text, or has it from transformers."""
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    checked = 0
    for path in (ROOT / "trainers").rglob("*.py"):
        names = [
            node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)
        ]
        for name in (name for name in names if name.endswith("Arguments")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for field in dataclasses.fields(getattr(importlib.import_module(module), name)):
                assert field.metadata.get("help") or field.name in known, (path.name, name, field.name)
                checked += field.name not in known
    assert checked > 100
