"""What the README tells people to type exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from datasets_scripts.files import write_image
from datasets_scripts.scenes import draw_scene
from modeling_cora.presets import cora_tiny

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def blocks(language: str) -> list[str]:
    return [b for page in PAGES for b in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)]


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make ([a-z-]+)", "\n".join(blocks("bash")), re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def test_scripts_recipes_and_options_exist():
    commands = "\n".join(blocks("bash"))
    paths = re.findall(r"(?:trainers|benchmarks)/\S+\.(?:py|yaml)", commands)
    assert paths
    for path in paths:
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m ((?:modeling_cora|datasets_scripts)\.\w+)", commands):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    sources = "\n".join(
        path.read_text()
        for house in ("trainers", "modeling_cora", "datasets_scripts")
        for path in (ROOT / house).rglob("*.py")
    )
    for option in re.findall(r"--([a-z_-]+)", commands):
        assert option in sources, option


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "results").glob("*.md"))], ids=lambda page: page.name)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_every_page_of_results_is_in_their_index():
    # what `experiment.py` and `measure.py` write has its curve or its scores beside it; a page says more
    pages = {
        page.name
        for page in (ROOT / "results").glob("*.md")
        if not any(page.with_suffix(suffix).exists() for suffix in (".csv", ".png"))
    } - {"README.md"}
    assert pages == set(re.findall(r"\]\((\w+\.md)\)", (ROOT / "results/README.md").read_text()))


def test_python_block_runs(tmp_path, monkeypatch):
    """As it stands, in a folder with a (random) model and a scene where `make demo` puts them."""
    (block,) = blocks("python")
    scene = draw_scene(1, (48, 64)).image
    model, processor = cora_tiny(["the road"], sam_image_size=128)
    model.save_pretrained(tmp_path / "runs/demo/model")
    processor.save_pretrained(tmp_path / "runs/demo/model")
    write_image(tmp_path / "runs/demo/scenes/val/images/scene_200000.png", scene)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["answer"].masks.shape == (2, scene.height, scene.width)
    assert names["answer"].masks.dtype == torch.bool
    assert names["answer"].scores.shape == (2,)
    assert names["pipe"](scene, "the road")[0]["mask"].shape == (scene.height, scene.width)
