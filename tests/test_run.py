"""A whole run: which steps it has, which of them are done anew, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from huggingface_hub import ModelCard
from PIL import Image

from datasets_scripts.command_line import UsageError
from datasets_scripts.records import DataError
from datasets_scripts.scenes import write_scenes
from modeling_cora.hub.push import publication
from modeling_cora.hub.run_folder import read_run as read_finished
from trainers.arguments import EmbeddingCacheArguments
from trainers.base_trainer import last_checkpoint
from trainers.methods import method_named
from trainers.recipe_parser import parse_recipe
from trainers.report import Stage, _curves, write_report
from trainers.run import STAGES, main, picture_of, plan, read_run
from trainers.stage import ARGUMENTS
from trainers.steps import Step, StepFolders

from .test_stage1 import ROOT, SMALL, largest_difference

CPU_2 = str(ROOT / "trainers/accelerate/cpu_2.yaml")
RECIPE = str(ROOT / "trainers/recipes/demo_run.yaml")
COMMON = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": 1,
          "max_steps": 2, "save_steps": 1, "warmup_steps": 1}  # fmt: skip
SECTIONS = {
    "pseudo_labels": {
        **COMMON,
        "per_device_train_batch_size": 2,
        "crop_height": 64,
        "crop_width": 64,
        "decoder_channels": 8,
    },
    "stage1": {**COMMON, **SMALL, "query_pretraining_steps": 2},
    "stage2": COMMON,
    "stage3": {**COMMON, "unlabelled_queries": 1},
    "evaluation": {"queries_per_kind": 2, "examples": 1},
    "consistency": {"longest_side": 32},
}


def options(street: Path, out: Path, **changes) -> list[str]:
    """A recipe and the smallest training that touches everything; `changes` as `section__field`."""
    argv = [RECIPE, "--data", str(street), "--out", str(out)]
    for section, given in SECTIONS.items():
        argv += [text for name, value in given.items() for text in (f"--{section}.{name}", str(value))]
    return argv + [t for name, value in changes.items() for t in (f"--{name.replace('__', '.')}", str(value))]


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("street")
    write_scenes(folder, labelled=2, unlabelled=1, val=1, size=(64, 96), progress=False)
    return folder


PROGRAM = """
import sys
import time
from pathlib import Path
def main(argv):
    fields = dict(zip(argv[::2], argv[1::2]))
    out = Path(fields["--out"])
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "calls", "a") as file:
        file.write("called\\n")
    for _ in range(2400 if "--until" in fields else 0):
        if Path(fields["--until"]).exists():
            break
        time.sleep(0.05)
    if "--fail" in fields:
        print("it fails")
        raise SystemExit(2)
"""


@pytest.fixture
def program(tmp_path, monkeypatch) -> str:
    """A program that counts its calls."""
    (tmp_path / "counting_program.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(tmp_path)
    return "counting_program"


@pytest.mark.parametrize("recipe", sorted((ROOT / "trainers/recipes").glob("*_run.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("method", ["supervised", "cora"])
def test_every_field_of_the_recipes_is_one_of_its_program(tmp_path, recipe, method):
    """Also of those that nothing here can run."""
    (tmp_path / "data").mkdir()
    argv = [str(recipe), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--method", method]
    planned = plan(*read_run(argv))
    folders = StepFolders(tmp_path / "steps")
    for step in planned.steps:
        if step.arguments:
            command = folders.command(step)
            if "trainers.stage" in step.module or step.name == "segmenter":
                command += ["--use_cpu", "true"]  # where there is no GPU, bf16 has to be asked for on the CPU
            assert parse_recipe(step.arguments, command)


def test_one_embedding_cache_is_of_every_step_that_encodes_and_changes_no_folder(tmp_path):
    (tmp_path / "data").mkdir()
    argv = [RECIPE, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    cached = plan(*read_run([*argv, "--embedding_cache", "cache", "--embedding_cache_gigabytes", "5"]))
    encode = [step for step in cached.steps if EmbeddingCacheArguments in step.arguments]
    assert {step.name for step in encode} == {*STAGES, "consistency", *(f"evaluation_{name}" for name in STAGES)}
    for name, value in {"embedding_cache": "cache", "embedding_cache_gigabytes": 5.0}.items():
        given = {step.name: step.fields[name] for step in cached.steps if name in step.fields}
        assert given == dict.fromkeys([step.name for step in encode], value)
    folders = StepFolders(tmp_path / "steps")
    for step, other in zip(cached.steps, plan(*read_run(argv)).steps, strict=True):
        assert folders.folder(step) == folders.folder(other)


def test_a_stage_that_is_not_evaluated_is_trained_all_the_same(tmp_path):
    (tmp_path / "data").mkdir()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("evaluated_stages: [stage1, stage3]\n")
    given = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    every = [step.name for step in plan(*read_run([str(recipe), *given, "--evaluated_stages", *STAGES])).steps]
    some = [step.name for step in plan(*read_run([str(recipe), *given])).steps]
    assert set(every) - set(some) == {"evaluation_stage2"} and [name for name in every if name in some] == some


def test_a_report_shows_the_stages_that_were_evaluated(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "overlays.png")
    scores = {"ciou": 0.25, "giou": 0.5, "queries": 3, "trivial": {}}
    summary = {"all": scores, "by_kind": {"semantic, class": scores}, "by_class": {}, "by_claim": {}, "miou": None}
    history = [{"step": step, "loss": 1.0} for step in (1, 2)]
    found = (summary, tmp_path / "overlays.png")
    write_report(tmp_path / "one.html", "t", "i", [Stage("stage1", history), Stage("stage3", history, *found)])
    one = (tmp_path / "one.html").read_text()
    assert "What each stage brought" not in one and "after stage1" not in one and "after stage3" in one
    assert one.count("<polyline") == 2  # curves of both
    write_report(tmp_path / "two.html", "t", "i", [Stage("stage1", history, *found), Stage("stage3", history, *found)])
    two = (tmp_path / "two.html").read_text()
    assert "What each stage brought" in two and "after stage1" in two
    without = [Stage("stage1", history, summary, None), Stage("stage3", history, summary, None)]
    write_report(tmp_path / "three.html", "t", "i", without)
    three = (tmp_path / "three.html").read_text()
    assert "<img" not in three and "No pictures were asked for" in three and "What each stage brought" in three


def test_a_training_without_any_loss_has_a_curve():
    assert "nan" not in _curves([{"loss": 0.0, "step": step} for step in (1, 2)])


def test_there_is_a_picture_only_where_one_was_written(tmp_path):
    assert picture_of(tmp_path) is None
    (tmp_path / "overlays.png").touch()
    assert picture_of(tmp_path) == tmp_path / "overlays.png"


def calls(folder: Path) -> int:
    return len((folder / "calls").read_text().splitlines())


def test_a_step_is_done_once_and_again_only_after_a_change(program, tmp_path):
    file = tmp_path / "data" / "a.txt"
    file.parent.mkdir()
    file.write_text("1")

    def steps(first=1, second=1):
        one = Step("one", program, {"data": file.parent, "field": first})
        return one, Step("two", program, {"before": one, "field": second})

    def done(*changes) -> tuple[Path, Path]:
        folders, pair = StepFolders(tmp_path / "steps"), steps(*changes)
        folders.run(pair)
        return folders.folder(pair[0]), folders.folder(pair[1])

    one, two = done()
    assert done() == (one, two) and (calls(one), calls(two)) == (1, 1)
    same, other = done(1, 2)  # a change of the second alone
    assert same == one and other != two and (calls(one), calls(two), calls(other)) == (1, 1, 1)
    changed = done(2, 1)  # of the first: both
    assert changed[0] != one and changed[1] not in (two, other)
    os.utime(file, (1, 1))  # of the data's time alone: none
    assert done() == (one, two)
    file.write_text("2")  # of the data: both
    assert not set(done()) & {one, two, other, *changed}


def test_a_copy_of_the_data_is_the_same_data(tmp_path):
    """Wherever it lies and whatever its files' times are; another name of a file is another data set."""
    for name in ("here", "there", "renamed"):
        (tmp_path / name / "images").mkdir(parents=True)
        (tmp_path / name / "images" / ("a.png" if name != "renamed" else "b.png")).write_text("1")
    (tmp_path / "there" / "images" / "b.png.0123456789ab.partial").write_text("1")  # of a program that was killed
    os.utime(tmp_path / "there" / "images" / "a.png", (1, 1))
    folders = [StepFolders(tmp_path / "steps").folder(Step("one", "any", {"data": tmp_path / name}))
               for name in ("here", "there", "renamed")]  # fmt: skip
    assert folders[0] == folders[1] != folders[2]


@pytest.mark.parametrize("field", ["model", "backbone", "concepts"])
def test_a_model_of_this_machine_is_known_by_its_files(tmp_path, monkeypatch, field):
    """Its name is the same, and evaluations in its folder change nothing; of a Hub id there is the name alone."""
    monkeypatch.chdir(tmp_path)
    step = Step("one", "any", {field: "org/model"})

    def folder() -> Path:
        return StepFolders(tmp_path / "steps").folder(step)

    on_the_hub = folder()
    weights = tmp_path / "org" / "model" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_text("1")
    first = folder()
    (weights.parent / "evaluation").mkdir()
    (weights.parent / "evaluation" / "metrics.json").write_text("{}")
    assert on_the_hub != first == folder()
    weights.write_text("2")
    assert folder() not in (on_the_hub, first)


def test_a_step_that_failed_is_done_again_in_its_folder(program, tmp_path, capsys):
    step = Step("one", program, {"fail": 1})
    folders = StepFolders(tmp_path)
    for times in (1, 2):
        with pytest.raises(SystemExit) as ended:
            folders.run([step])
        assert ended.value.code == 2 and calls(folders.folder(step)) == times
    assert not folders.done(step).exists()


SHARED = """
import sys
from pathlib import Path
from trainers.steps import Step, StepFolders
StepFolders(Path(sys.argv[1])).run([Step("one", "counting_program", {"until": sys.argv[2]})])
"""


@pytest.mark.parametrize("killed", [False, True], ids=["ended", "killed"])
def test_of_runs_that_share_a_step_one_does_it_and_the_others_wait(program, tmp_path, killed):
    """Real processes; a run that is killed leaves the step to one that waits."""
    until = tmp_path / "until"
    run = [sys.executable, "-c", SHARED, str(tmp_path / "steps"), str(until)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}

    def start() -> subprocess.Popen:
        return subprocess.Popen(run, env=environment, stdout=subprocess.PIPE, text=True)

    first = start()
    while not list(tmp_path.glob("steps/*/calls")):
        assert first.poll() is None
        time.sleep(0.05)
    second = start()
    said = [second.stdout.readline() for _ in range(2)]
    assert said[0].startswith("1/1  one-") and said[1] == "another run is at it; waiting for it\n"
    (folder,) = (path for path in tmp_path.glob("steps/*") if path.is_dir())
    if killed:
        first.kill()
        first.wait()
    until.touch()
    assert second.wait(timeout=60) == 0 and first.wait(timeout=60) == (-signal.SIGKILL if killed else 0)
    assert calls(folder) == (2 if killed else 1)
    first.stdout.close(), second.stdout.close()


@pytest.mark.parametrize("launched", [True, False])
def test_machines_of_one_run_do_not_wait_for_each_other(program, tmp_path, launched):
    """accelerate starts a step on all of them, and each waits for the others; what it does not start one does."""
    step, held = Step("one", program, {}, launched=launched), set()
    for rank in (0, 1):
        config = tmp_path / f"{rank}.yaml"
        config.write_text(f"num_machines: 2\nnum_processes: 4\nmachine_rank: {rank}\n")
        with StepFolders(tmp_path / "steps", str(config))._lock(step) as lock:
            held.add(lock.lock_file)
    assert len(held) == (2 if launched else 1)


def test_a_comment_in_a_recipe_changes_nothing(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    keys = []
    for text in ("max_steps: 5\n", "# a word\nmax_steps: 5\n", "max_steps: 6\n"):
        recipe.write_text(text)
        keys.append(StepFolders(tmp_path).folder(Step("one", "any", {}, recipe=recipe, arguments=ARGUMENTS)))
    assert keys[0] == keys[1] != keys[2]


def test_options_of_sections_override_the_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: lisa\nstage1: {recipe: stage1.yaml, max_steps: 5, flip: 0.5}\n")
    argv = [
        str(recipe),
        "--stage1.max_steps",
        "6",
        "--stage1.max_steps",
        "7",
        "--stage2.kinds",
        "semantic",
        "attribute",
        "--seed",
        "3",
    ]
    arguments, sections = read_run([*argv, "--stage3.learning_rate", "1e-3"])
    assert (arguments.method, arguments.seed) == ("lisa", 3)
    assert sections["stage1"] == {"recipe": str(tmp_path / "stage1.yaml"), "max_steps": 7, "flip": 0.5}
    assert sections["stage2"] == {"kinds": ["semantic", "attribute"]}
    assert float(sections["stage3"]["learning_rate"]) == 1e-3


@pytest.mark.parametrize(
    ("recipe", "argv", "error", "message"),
    [
        ("methods: lisa", [], DataError, "unknown field 'methods'; did you mean 'method'?"),
        ("seed: many", [], DataError, "recipe.yaml: seed: invalid int value: 'many'"),
        ("stage1: 3", [], DataError, "stage1: holds 3; a section is a mapping"),
        ("", ["--stage4.max_steps", "3"], UsageError, "unknown argument '--stage4.max_steps'; did you mean 'stage3'?"),
        ("evaluated_stages: [stage4]", [], UsageError, "evaluated_stages: 'stage4' is not one of stage1"),
        ("", ["--evaluated_stages", "stage1"], UsageError, "evaluated_stages: stage1: without stage3"),
        ("", ["--stage1.max_steps"], UsageError, "--stage1.max_steps: a value is missing"),
        ("", ["--data", "x", "--out", "y", "--method", "cvi+more"], UsageError, "method 'cvi+more': 'more' is none of"),
        ("", ["--data", "x"], UsageError, "--out: not given"),
        ("stage1: {recipe: 3}", [], DataError, "stage1: recipe: 3 is no path"),
        ("", ["--pseudo_labels.folder", "3"], UsageError, "--pseudo_labels.folder: 3 is no path"),
        ("{stage1: {max_steps: 1}, stage1: {max_steps: 2}}", [], DataError, "stage1 is given twice"),
        ("", ["--data", "x", "recipe.yaml", "--out", "y"], UsageError, "'recipe.yaml' belongs to no argument; a "),
    ],
)
def test_bad_recipes_get_one_line(tmp_path, recipe, argv, error, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    with pytest.raises(error, match=r"^[^\n]+$") as raised:
        plan(*read_run([str(path), *argv]))
    assert message in str(raised.value)


def test_a_bad_field_of_the_last_section_stops_the_run_before_its_first_step(street, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*options(street, tmp_path / "run"), "--evaluation.limits", "3"])
    assert "unknown argument '--limits'; did you mean 'limit'?" in capsys.readouterr().err
    for short in ("--stage2.see", "--stage1.max_step"):  # an abbreviation would pass by what the run decides
        with pytest.raises(SystemExit):
            main([*options(street, tmp_path / "run"), short, "7"])
        section, name = short.removeprefix("--").split(".")
        assert f"{section}: unknown argument '--{name}'" in capsys.readouterr().err
    write_scenes(tmp_path / "alone", labelled=2, unlabelled=0, val=1, size=(48, 64), progress=False)
    with pytest.raises(SystemExit):
        main(options(tmp_path / "alone", tmp_path / "run"))
    assert "alone: no unlabelled training image, and method cora learns from some; unlab" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def stage_fields(method: str) -> tuple[str, dict, list[str]]:
    """Program of stage 2, fields of stage 3, names of all steps."""
    arguments, sections = read_run([RECIPE, "--data", "data", "--out", "out", "--method", method])
    run = plan(arguments, sections)
    return run.stages["stage2"].module, dict(run.stages["stage3"].fields), [step.name for step in run.steps]


def test_methods_differ_in_their_components_alone():
    without = ["instructions", "stage1", "evaluation_stage1", "stage2", "evaluation_stage2", "stage3",
               "evaluation_stage3"]  # fmt: skip
    labels = ["instructions", "segmenter", "pseudo_labels", "audit", *without[1:]]
    expected = {
        # stage 2, kinds of stage 3, sigma, consistency, pseudo_confidence, alignment, steps
        "supervised": ("stage1", False, 0, "none", None, False, without),
        "segllm": ("stage2", True, 0, "none", None, False, without),
        "lisa": ("stage1", False, None, "none", 0.95, False, labels),
        "cvi": ("stage2", True, None, "none", 0.95, False, labels),
        "tfca": ("stage1", False, None, "none", 0.95, True, labels),
        "ocpl": ("stage1", False, None, None, 0, False, [*labels[:8], "consistency", *labels[8:]]),
        "cora": ("stage2", True, None, None, 0, True, [*labels[:8], "consistency", *labels[8:]]),
    }
    for method, (program, conditional, sigma, consistency, confidence, alignment, steps) in expected.items():
        module, fields, names = stage_fields(method)
        assert module == f"trainers.{program}", method
        assert fields.get("kinds") == (None if conditional else ["semantic", "attribute"]), method
        found = [fields.get(name) for name in ("sigma", "consistency", "pseudo_confidence", "alignment")]
        assert found == [sigma, consistency, confidence, alignment], method
        assert names == steps, method
    assert method_named("cora") == method_named("tfca+cvi+ocpl")


def test_methods_share_the_steps_that_they_have_in_common(street, tmp_path):
    def folders(method: str) -> dict[str, Path]:
        run = plan(*read_run(options(street, tmp_path, method=method)))
        return {step.name: StepFolders(tmp_path).folder(step) for step in run.steps}

    cora, lisa, supervised = folders("cora"), folders("lisa"), folders("supervised")
    shared = {"instructions", "segmenter", "pseudo_labels", "audit", "stage1", "evaluation_stage1"}
    assert {name for name in lisa if lisa[name] == cora[name]} == shared
    assert lisa["stage2"] == supervised["stage2"] and lisa["stage3"] != supervised["stage3"]


def test_a_run_from_masks_to_a_report(street, tmp_path, capsys):
    out = tmp_path / "run"
    main(options(street, out))
    record = json.loads((out / "run.json").read_text())
    assert set(record["summaries"]) == set(STAGES)
    page = (out / "report.html").read_text()
    for name, summary in record["summaries"].items():
        assert name in page and {"semantic, class", "conditional, instance"} <= summary["by_kind"].keys()
        assert f"{summary['by_kind']['semantic, class']['ciou']:.3f}" in page
    assert (out / "model").resolve() == Path(record["steps"]["stage3"]).resolve()
    assert (out / "model/model.safetensors").exists() and (out / "evaluation/metrics.json").exists()
    files = publication(read_finished(out), "org/name")
    card = ModelCard(files["README.md"].decode())
    last = record["summaries"]["stage3"]["all"]
    assert {r.metric_value for r in card.data.eval_results if r.dataset_config == "all"} == {last["ciou"], last["giou"]}
    assert (card.data.license, card.data.eval_results[0].dataset_name) == ("apache-2.0", street.name)
    assert "| stage | stage3 |" in card.text and {"model.safetensors", "evaluation/overlays.jpg"} < files.keys()
    capsys.readouterr()
    # another sigma: everything up to stage 3 is kept, and the links go to the new one
    main(options(street, out, stage3__sigma=0.25))
    told = capsys.readouterr().out
    assert told.count("done before") == 9 and "stage3" in told
    assert (out / "model").resolve() != Path(record["steps"]["stage3"]).resolve()


def test_a_checkpoint_that_was_cut_short_does_not_count(tmp_path):
    assert last_checkpoint(tmp_path / "nothing") is None
    for step, state in ((5, "{}"), (10, "{}"), (20, '{"global'), (40, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_processes_and_precision_make_other_folders_of_what_they_share(program, tmp_path):
    one = Step("one", program, {"field": 1}, launched=False)
    two = Step("two", program, {"before": one})
    alone, both = StepFolders(tmp_path), StepFolders(tmp_path, CPU_2)
    assert alone.folder(one) == both.folder(one) and alone.folder(two) != both.folder(two)
    (tmp_path / "half.yaml").write_text("{num_processes: 2, mixed_precision: bf16}")
    half = StepFolders(tmp_path, str(tmp_path / "half.yaml"))
    assert half.folder(one) == both.folder(one) and half.folder(two) != both.folder(two)
    with pytest.raises(UsageError, match="accelerate_config: nothing"):
        StepFolders(tmp_path, "nothing.yaml").folder(one)


@pytest.mark.parametrize("path", sorted((ROOT / "trainers/accelerate").glob("*.yaml")), ids=lambda path: path.name)
def test_accelerate_reads_its_configurations(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == int(path.stem[-1])


@pytest.mark.slow
def test_two_processes_equal_one_over_a_whole_run(street, tmp_path):
    """Each with a batch of one, against one process with a batch of two, step by step on the same weights before it.

    What little differs in the last bits, Adam's first steps make large where a gradient is all but zero; therefore SGD.
    """
    common = {f"{name}__optim": "sgd" for name in STAGES} | {"pseudo_labels__optimizer": "sgd"}
    of_one, of_two = (
        {f"{name}__per_device_train_batch_size": size for name in ("pseudo_labels", *STAGES)} for size in (2, 1)
    )
    run = [sys.executable, str(ROOT / "trainers/run.py")]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    for argv in (
        options(street, tmp_path / "one", **common, **of_one),
        options(street, tmp_path / "two", **common, **of_two, accelerate_config=CPU_2),
    ):
        ended = subprocess.run([*run, *argv], capture_output=True, text=True, env=one_thread)
        assert ended.returncode == 0, ended.stderr[-5000:]
    assert largest_difference(tmp_path / "one/model", tmp_path / "two/model") < 2e-6
    tables = [json.loads((tmp_path / name / "run.json").read_text())["summaries"] for name in ("one", "two")]
    for stage in STAGES:
        assert tables[0][stage]["all"]["queries"] == tables[1][stage]["all"]["queries"]


@pytest.mark.slow
def test_a_killed_run_ends_at_the_same_weights(street, tmp_path):
    program = [sys.executable, str(ROOT / "trainers/run.py")]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # two add up in any order
    subprocess.run([*program, *options(street, tmp_path / "whole")], check=True, capture_output=True, env=one_thread)
    command = [*program, *options(street, tmp_path / "killed")]
    for step in ("stage1", "stage3"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=one_thread)
        while not list((tmp_path / "killed/steps").glob(f"{step}-*/checkpoint-1")):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, capture_output=True, env=one_thread)
    assert largest_difference(tmp_path / "whole/model", tmp_path / "killed/model") == 0
