"""Every command of the README, run as it is printed: on small data under the README's names, with short trainings."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from datasets_scripts.files import write_image
from datasets_scripts.folder import read_folder
from datasets_scripts.instructions.build import build_instructions, write_instructions
from datasets_scripts.scenes import draw_scene, write_scenes
from datasets_scripts.splits import write_split

from .local_hub import RIGHT, LocalHub, environment
from .test_readme import ROOT
from .test_run import COMMON, SECTIONS
from .test_stage1 import SMALL

ELSEWHERE = {
    "make": "what runs this test, or what takes minutes",
    "export": "no program",
    ".venv/bin/pip": "what `make` has done",
    "modeling_cora.convert_vlm_sam": "public weights; tests/test_convert_vlm_sam.py has small ones",
    "modeling_cora.convert_lisa": "public weights; tests/test_convert_lisa.py has small ones",
    "modeling_cora.compose": "public weights; tests/test_compose.py has small ones",
    "datasets_scripts.ask_llm": "somebody's endpoint; tests/test_llm.py has a server",
    "trainers/experiment.py": "CamVid and hours; tests/test_experiment.py has a small one",
    "trainers/add_anchors.py": "public weights; tests/test_adapters.py has small ones",
    "trainers/recipes/cityscapes_run.yaml": "four GPUs; tests/test_run.py reads it, and runs small ones",
    "trainers/recipes/camvid_small_run.yaml": "public weights; tests/test_run.py reads it, and runs small ones",
    "runs/lora": "an adapter; tests/test_publish.py has one, tests/test_adapters.py trains one in all stages",
}
"""What is not run here, and where it is, by what the command is told from."""


def commands() -> list[list[str]]:
    text = (ROOT / "README.md").read_text()
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def options(fields: dict, prefix: str = "") -> list[str]:
    return [text for name, value in fields.items() for text in (f"--{prefix}{name}", str(value))]


SHORTER = {
    "trainers/run.py": [text for name, fields in SECTIONS.items() for text in options(fields, f"{name}.")],
    "trainers/stage1.py": options({**COMMON, **SMALL, "query_pretraining_steps": 2}),
    "trainers/stage2.py": options(COMMON),
    "trainers/stage3.py": options({**COMMON, "unlabelled_queries": 1}),
    "trainers/pseudo_labels/train.py": options(SECTIONS["pseudo_labels"] | {"absent_classes": "keep"}),
    "trainers/evaluate.py": options(SECTIONS["evaluation"]),
    "trainers/consistency_weights.py": options(SECTIONS["consistency"]),
    "trainers/diagnose.py": options({"use_cpu": True, "embedding_batches": 2, "gradient_batches": 1}),
}
"""By program, what is added to its command."""


def test_every_command_is_run_here_or_elsewhere():
    for words in commands():
        told = [name for name in ELSEWHERE if name in words]
        assert told or words[0] in (".venv/bin/python", ".venv/bin/accelerate"), words
    used = {name for words in commands() for name in ELSEWHERE if name in words}
    assert used == set(ELSEWHERE)


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path):
    for name in (".venv", "trainers", "metrics", "spaces", "modeling_cora", "publishing", "datasets_scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_scenes(tmp_path / "DIR", labelled=8, unlabelled=2, val=1, size=(64, 96), progress=False)
    stems = sorted(path.stem for path in (tmp_path / "DIR/images").glob("*.png"))
    rows = [f"{stem}.png {stem}.png" for stem in stems]
    write_split(tmp_path / "LISTS", rows[:4], rows[4:])
    write_image(tmp_path / "street.jpg", draw_scene(1, (64, 96)).image)
    # what `ask_llm` would have written
    scene_set = read_folder(tmp_path / "DIR")
    (tmp_path / "asked").mkdir()
    asked = build_instructions(scene_set, scene_set.split("train", labelled=True))
    write_instructions(tmp_path / "asked/instructions.jsonl", asked)
    # what earlier chapters of the README leave
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/demo").symlink_to("mine")
    with LocalHub(token=RIGHT) as hub:
        env = {**environment(hub.address, tmp_path / "home", RIGHT), "OMP_NUM_THREADS": "1"}
        todo = [words for words in commands() if not any(name in words for name in ELSEWHERE)]
        # the first picture is asked of the model that comes next
        todo.sort(key=lambda words: "trainers/run.py" not in words)
        for words in todo:
            program = next((word for word in words if word in SHORTER), None)
            command = [word.replace("PSEUDO", "runs/mine/steps/pseudo_labels") for word in words]
            command = [word.replace("ORG", "org").replace("me/name", "someone/name") for word in command]
            command = [_only(tmp_path, word) if word.startswith("runs/mine/steps/") else word for word in command]
            command += SHORTER.get(program, [])
            done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
            assert done.returncode == 0, (command, done.stderr[-2000:])
    assert (tmp_path / "overlay.png").exists() and (tmp_path / "runs/stage3/model.safetensors").exists()
    assert {"org/NAME", "org/ciou", "org/demo", "someone/name"} <= {name for _, name in hub.repositories}


def _only(folder: Path, word: str) -> str:
    """A step's folder by its name without the key."""
    (found,) = (path for path in folder.glob(word + "-*") if path.is_dir())
    return str(found.relative_to(folder))
