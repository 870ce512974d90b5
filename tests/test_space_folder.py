"""The demo Space as a program: its settings, its folder, and what it finds beside itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cora_space.answering import Answering
from cora_space.settings import Settings, read_settings
from modeling_cora.hub.space import space_files
from modeling_cora.loading import ModelLoadError
from publishing.command_line import OneLineError

ROOT = Path(__file__).resolve().parents[1]


# -- settings ----------------------------------------------------------------------------------------------------------


def test_settings_come_from_arguments_then_the_environment():
    environment = {"CORA_SPACE_MODEL": "a/b", "CORA_SPACE_MAX_QUERIES": "3"}
    assert read_settings([], {}) == Settings()
    assert read_settings([], environment) == Settings(model="a/b", max_queries=3)
    assert read_settings(["--model", "c"], environment) == Settings(model="c", max_queries=3)


@pytest.mark.parametrize(
    ("argv", "environment", "said"),
    [
        (["--max_queries", "many"], {}, "--max_queries: invalid int value: 'many'"),
        (["--max_megabytes", "0"], {}, "--max_megabytes 0.0: a number above 0"),
        (["--max_megabytes", "nan"], {}, "--max_megabytes nan: a number above 0"),
        (["--port", "70000"], {}, "--port 70000: ports end at 65535"),
        (["--model", ""], {}, "--model: not given"),
        (["--colour", "red"], {}, "--colour"),
        ([], {"CORA_SPACE_PORT": "here"}, "--port: invalid int value: 'here'"),
    ],
)
def test_bad_settings_are_named(argv, environment, said):
    with pytest.raises(OneLineError, match=re.escape(said)):
        read_settings(argv, environment)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--port", "-1"], "error: --port -1: a number above 0 is needed"),
        (["--model", "runs/nowhere"], "error: --model runs/nowhere: cannot be loaded as a CORA model"),
    ],
)
def test_a_process_with_bad_settings_ends_in_one_line(argv, said, tmp_path):
    command = [sys.executable, str(ROOT / "spaces/app.py"), *argv]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}  # else the Hub is asked again and again
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error:"))
    assert line.startswith(said)


@pytest.mark.parametrize("device", ["abacus", "cuda:77"])
def test_a_device_that_is_not_here_is_named(device):
    with pytest.raises(ModelLoadError, match=f"--device {device}: not to be had here"):
        Answering.load(Settings(device=device))


# -- the folder --------------------------------------------------------------------------------------------------------


def test_versions_agree():
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in constraints if "==" in line and "#" not in line)
    lines = (ROOT / "spaces/requirements.txt").read_text().splitlines()
    for line in lines:
        if line and not line.startswith("#") and line != "torch":
            name, version = line.split("==")
            assert pins[name] == version, name
    front = yaml.safe_load((ROOT / "spaces/README.md").read_text().split("---")[1])
    assert front["sdk"] == "gradio" and front["sdk_version"] == pins["gradio"]
    assert (ROOT / "spaces" / front["app_file"]).exists()
    assert len(front["short_description"]) <= 60  # the Hub's limit


WITHOUT_THE_REST = """
import json, sys
missing = "trainers", "datasets_scripts", "metrics", "accelerate", "peft", "datasets", "evaluate", "spaces"
sys.modules.update(dict.fromkeys(missing))  # not to be found by any import
import app
from cora_space import serving, settings
import modeling_cora
blocks = serving.serve(settings.Settings(model=sys.argv[1], port=int(sys.argv[2])), app.on_gpu, block=False)
blocks.close()
print(json.dumps([modeling_cora.__file__, serving.__file__, app.on_gpu(1)]))
"""


def test_the_folder_is_whole_with_the_model_code_beside_it(saved, tmp_path, free_port):
    """As on the Hub: no other package of the repository, none that `requirements.txt` does not bring."""
    space = tmp_path / "space"
    for name, content in space_files(ROOT / "spaces", "org/demo")[0].items():
        (space / name).parent.mkdir(parents=True, exist_ok=True)
        (space / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    command = [sys.executable, "-c", WITHOUT_THE_REST, str(saved), str(free_port)]
    result = subprocess.run(command, cwd=space, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    model_code, page_code, same = json.loads(result.stdout.splitlines()[-1])
    assert Path(model_code).is_relative_to(space) and Path(page_code).is_relative_to(space)
    assert same == 1


@pytest.mark.parametrize("installed", [False, True])
def test_the_folder_does_not_hide_the_package_of_its_name(tmp_path, installed):
    """From the root of the repository, where `import spaces` finds this folder unless the package is installed."""
    if installed:
        (tmp_path / "spaces").mkdir()
        (tmp_path / "spaces/__init__.py").write_text("def GPU(function): return ('lent', function)\n")
    code = "import runpy, sys; names = runpy.run_path('spaces/app.py'); print(names['on_gpu']('f'))"
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == ("('lent', 'f')" if installed else "f"), result.stderr
