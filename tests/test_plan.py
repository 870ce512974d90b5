"""What the steps of a run are given: by the run, its method, a section of its recipe, and what may not be."""

from __future__ import annotations

import gc
import sys
import weakref
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from datasets_scripts.command_line import UsageError
from datasets_scripts.scenes import write_scenes
from trainers.arguments import UnlabelledArguments
from trainers.methods import OF_COMPONENT
from trainers.recipe_parser import parse_recipe
from trainers.run import Run, main, plan, read_run
from trainers.steps import Step, StepFolders

from .test_run import RECIPE, options
from .test_stage1 import ROOT


def test_lists_over_built_tables_reach_every_step_that_reads_them(tmp_path):
    """A run that builds the tables gives them to the builder alone, and tables that are there have all images."""
    (tmp_path / "tables/scenes").mkdir(parents=True)
    (tmp_path / "tables/scenes/train.parquet").write_text("")
    (tmp_path / "data").mkdir()
    steps = {}
    for name in ("1_8", "1_4"):
        lists = tmp_path / name
        lists.mkdir()
        (lists / "labeled.txt").write_text(name)
        argv = [RECIPE, "--out", str(tmp_path / "out"), "--split_lists", str(lists)]
        planned = plan(*read_run([*argv, "--data", str(tmp_path / "tables")])).steps
        folders = StepFolders(tmp_path / "steps")
        steps[name] = {step.name: folders.folder(step).name for step in planned}
        for step in planned:
            # the audit looks at the truth of images that the lists call unlabelled
            if step.name != "audit":
                command = [*folders.command(step), *(["--use_cpu", "true"] if step.output == "output_dir" else [])]
                groups = parse_recipe(step.arguments, command)
                assert [g.split_lists for g in groups if hasattr(g, "split_lists")] == [str(lists)], step.name
        built = plan(*read_run([*argv, "--data", str(tmp_path / "data")])).steps
        assert [step.name for step in built if step.fields.get("split_lists")] == ["instructions"]
    assert steps["1_8"].keys() == steps["1_4"].keys() == {step.name for step in built} - {"instructions"}
    assert not set(steps["1_8"].values()) & set(steps["1_4"].values())


def planned_with(tmp_path: Path, method: str, *more: str, recipe: str = RECIPE) -> Run:
    (tmp_path / "data").mkdir(exist_ok=True)
    argv = [recipe, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--method", method, *more]
    return plan(*read_run(argv))


@pytest.mark.parametrize(
    ("method", "option", "message"),
    [
        ("cora", "--stage3.alignment=false", "stage3.alignment: False, but method cora decides True; another method, "
         "or nothing here, would be right"),
        ("lisa", "--stage3.alignment=true", "stage3.alignment: True, but method lisa decides False"),
        ("cora", "--stage3.pseudo_confidence=0.8", "stage3.pseudo_confidence: 0.8, but method cora decides 0"),
        ("lisa", "--stage2.kinds=[semantic]", "stage2.kinds: ['semantic'], but method lisa decides ['semantic', "),
        ("lisa", "--stage3.kinds=semantic", "stage3.kinds: 'semantic', but method lisa decides"),
        ("cora", "--stage1.seed=5", "stage1.seed: 5, but the run decides 42; --seed, or nothing here, would be right"),
        ("cora", "--pseudo_labels.seed=5", "pseudo_labels.seed: 5, but the run decides 42; --seed"),
        ("cora", "--stage2.model=X", "stage2.model: 'X', but the run decides the folder of the step stage1; "
         "--stage1.model, or nothing here, would be right"),
        ("cora", "--prediction.model=X", "prediction.model: 'X', but the run decides the folder of the step segmenter; "
         "nothing here would be right"),
        ("cora", "--stage3.data=X", "stage3.data: 'X', but the run decides the folder of the step instructions; "
         "--data, or nothing"),
        ("cora", "--stage3.pseudo_labels=X", "folder of the step pseudo_labels; --pseudo_labels.folder, or nothing"),
        ("cora", "--stage1.data_name=X", "stage1.data_name: 'X', but the run decides data; --data_name"),
        ("cora", "--stage1.output_dir=X", "stage1.output_dir: 'X', but steps lie in --steps; --out or --steps would"),
        ("cora", "--evaluation.out=X", "evaluation.out: 'X', but steps lie in --steps"),
        ("cora", "--evaluation.model=X", "evaluation.model: 'X', but the run decides the folder of the step stage3"),
        ("cora", "--evaluation.data=X", "evaluation.data: 'X', but the run decides"),
        ("cora", "--consistency.model=X", "consistency.model: 'X', but the run decides the folder of the step stage2"),
    ],
)  # fmt: skip
def test_what_is_decided_elsewhere_is_refused_in_a_section(tmp_path, method, option, message):
    with pytest.raises(UsageError, match=r"^[^\n]+$") as raised:
        planned_with(tmp_path, method, option)
    assert message in str(raised.value)


def test_no_stage_sees_the_draws_of_another_again(tmp_path):
    """Each program draws by its `data_seed`; with one seed for all, a later stage would begin with the same images."""
    for method in ("lisa", "cora"):
        stages = planned_with(tmp_path, method, "--seed=7").stages.values()
        assert [stage.fields["seed"] for stage in stages] == [7] * 3
        assert len({stage.fields["data_seed"] for stage in stages}) == 3
    own = planned_with(tmp_path, "cora", "--stage2.data_seed=5").stages["stage2"]
    assert own.fields["data_seed"] == 5


def test_a_section_may_say_what_is_decided_and_what_other_methods_need(tmp_path):
    """One recipe is for all methods: those without a component do without its fields, and it is said."""
    same = ["--stage1.seed=42", "--stage3.pseudo_confidence=0", "--stage1.data_name=data"]
    assert planned_with(tmp_path, "cora", *same, "--stage3.alignment=true").notes == ()
    lisa = planned_with(tmp_path, "lisa", *same, "--stage2.kinds", "conditional", "semantic", "attribute",
                        "--stage3.kinds=conditional", "--stage3.consistency=online")  # fmt: skip
    assert lisa.stages["stage3"].fields["pseudo_confidence"] == 0  # not decided: a threshold of one's own
    for stage in ("stage2", "stage3"):
        assert lisa.stages[stage].fields["kinds"] == ["semantic", "attribute"]
    assert lisa.notes == ("stage3.consistency: online does not count; method lisa decides none",)
    supervised = planned_with(tmp_path, "supervised", "--stage3.sigma=0.1")
    assert supervised.stages["stage3"].fields["sigma"] == 0
    assert supervised.notes == ("stage3.sigma: 0.1 does not count; method supervised decides 0",)
    assert planned_with(tmp_path, "cora", "--stage3.sigma=0.1").stages["stage3"].fields["sigma"] == 0.1


@pytest.mark.parametrize(
    ("more", "methods"),
    [
        (["--stage3.unlabelled_queries=12", "--stage3.unlabelled_parts=true"], {"lisa", "cvi", "ocpl", "tfca", "cora"}),
        (["--stage3.weight_kind=exp", "--stage3.rephrasings=4", "--stage3.weight_temperature=2"], {"ocpl", "cora"}),
        (["--stage3.alignment_temperature=.1", "--stage3.bank_size=64", "--stage3.aligned_queries=classes"],
         {"tfca", "cora"}),
        (["--stage3.max_steps=7"], {"supervised", "segllm", "lisa", "cvi", "ocpl", "tfca", "cora"}),
    ],
)  # fmt: skip
def test_options_of_what_a_method_does_not_have_do_not_train_it_anew(tmp_path, more, methods):
    """Full-size baselines take days."""
    assert set().union(*OF_COMPONENT.values()) < {field.name for field in fields(UnlabelledArguments)}
    for method in ("supervised", "segllm", "lisa", "cvi", "ocpl", "tfca", "cora"):
        one, other = (planned_with(tmp_path, method, *given).stages["stage3"] for given in ([], more))
        assert (one.fields != other.fields) == (method in methods), method


def test_what_changes_no_weights_makes_no_other_step(tmp_path):
    """A training that was interrupted for want of memory goes on with fewer workers, and not from its beginning."""

    def folders(*more: str) -> list[str]:
        run = plan(*read_run([*options(tmp_path / "data", tmp_path / "out"), *more]))
        return [StepFolders(tmp_path).folder(step).name for step in run.steps]

    (tmp_path / "data").mkdir()
    same = ["--stage1.dataloader_num_workers=2", "--stage1.scene_cache_gigabytes=.1", "--stage2.save_steps=3",
            "--stage3.save_total_limit=1", "--pseudo_labels.save_steps=7", "--instructions.workers=2"]  # fmt: skip
    assert folders(*same) == folders()
    assert folders() != folders("--stage1.flip=.25")


def test_options_of_instructions_have_no_effect_on_built_tables(tmp_path):
    (tmp_path / "data/scenes").mkdir(parents=True)
    (tmp_path / "data/scenes/train.parquet").write_text("")
    argv = options(tmp_path / "data", tmp_path / "out")
    assert plan(*read_run(argv)).steps  # of a recipe that names a layout
    with pytest.raises(UsageError, match=r"instructions\.kinds: has no effect on .*/data, which holds tables already"):
        plan(*read_run([*argv, "--instructions.kinds", "semantic"]))


@pytest.mark.parametrize("recipe", sorted((ROOT / "trainers/recipes").glob("*_run.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("method", ["lisa", "segllm", "cvi", "ocpl", "tfca"])
def test_the_recipes_are_for_all_methods(tmp_path, recipe, method):
    assert planned_with(tmp_path, method, recipe=str(recipe)).steps


@pytest.mark.parametrize("where", ["recipe of the stage", "section"])
@pytest.mark.parametrize("value", ["online", "none"])
def test_weights_are_computed_only_for_a_stage_that_reads_them(tmp_path, where, value):
    stage = tmp_path / "stage3.yaml"
    stage.write_text(f"consistency: {value if where != 'section' else 'ahead'}\n")
    more = [f"--stage3.recipe={stage}", *([f"--stage3.consistency={value}"] if where == "section" else [])]
    without = planned_with(tmp_path, "cora", *more)
    assert without.weights is None and "consistency_weights" not in without.stages["stage3"].fields
    assert planned_with(tmp_path, "cora", more[0], "--stage3.consistency=ahead").weights is not None


def test_whom_anchors_are_shown_is_left_to_the_evaluation(tmp_path):
    """Which knows what a stage has learned; `tests/test_stage2.py` has what it does."""
    for method in ("cora", "lisa"):
        for step in planned_with(tmp_path, method).evaluations.values():
            asked, _ = parse_recipe(step.arguments, StepFolders(tmp_path).command(step))
            assert asked.anchors == "learned"
    own = planned_with(tmp_path, "cora", "--evaluation.anchors=none").evaluations["stage3"]
    assert own.fields["anchors"] == "none"


def test_weights_are_asked_for_as_stage_3_would_ask(tmp_path):
    stage = tmp_path / "stage3.yaml"
    stage.write_text("{rephrasings: 3, unlabelled_kinds: [semantic]}\n")

    def asked(*more: str) -> tuple:
        fields = planned_with(tmp_path, "cora", f"--stage3.recipe={stage}", *more).weights.fields
        return fields["rephrasings"], fields["kinds"], *([fields["seed"]] if "--seed=5" in more else [])

    assert asked("--seed=5") == (3, ["semantic"], 5)
    assert asked() == (3, ["semantic"]) and asked("--stage3.rephrasings=4") == (4, ["semantic"])
    assert asked("--stage3.rephrasings=4", "--consistency.rephrasings=5") == (5, ["semantic"])


def test_a_recipe_of_a_stage_comes_before_what_a_run_takes_where_nothing_is_said(tmp_path):
    stage = tmp_path / "stage3.yaml"
    stage.write_text("{pseudo_confidence: 0.8, data_seed: 7}\n")
    for more, expected in (([f"--stage3.recipe={stage}"], (0.8, 7)), ([], (0.95, 2042))):
        step = planned_with(tmp_path, "lisa", *more, recipe=str(ROOT / "trainers/recipes/camvid_small_run.yaml"))
        step = step.stages["stage3"]
        *_, training, unlabelled = parse_recipe(
            step.arguments, [*StepFolders(tmp_path).command(step), "--use_cpu=true"]
        )
        assert (unlabelled.pseudo_confidence, training.data_seed) == expected


def test_null_of_a_recipe_is_what_is_not_given(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{embedding_cache: null, split_lists: null, seed: null, stage3: {bank_negatives: null}}")
    arguments, sections = read_run([str(recipe)])
    assert (arguments.embedding_cache, arguments.split_lists, arguments.seed) == (None, None, 42)
    assert sections["stage3"] == {"bank_negatives": None}
    recipe.write_text("embedding_cache: cache")
    assert read_run([str(recipe), "--embedding_cache", "null"])[0].embedding_cache is None
    recipe.write_text("{stage1: {recipe: null}, pseudo_labels: {folder: labels}, stage2: {recipe: stage2.yaml}}")
    _, sections = read_run([str(recipe), "--pseudo_labels.folder", "null", "--stage2.recipe=null"])
    assert not any(sections.values())


def test_a_step_leaves_no_model_beside_that_of_the_next(tmp_path, monkeypatch):
    """A trainer's model refers to itself; Python frees such a thing when it pleases, and never since a GPU is full."""
    models = []

    def main(argv: list[str]) -> None:
        model = torch.nn.Linear(2, 2)
        model.itself = [model]
        models.append(weakref.ref(model))

    monkeypatch.setitem(sys.modules, "a_training", SimpleNamespace(main=main))
    gc.disable()
    try:
        StepFolders(tmp_path).run([Step("one", "a_training", {})])
        assert [model() for model in models] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize("option", ["--out", "--steps", "--embedding_cache"])
def test_a_run_does_not_write_into_what_it_reads(tmp_path, capsys, option):
    """Its own files would make the data other data."""
    (tmp_path / "data/images").mkdir(parents=True)
    place = tmp_path / "data/runs/one"
    argv = [RECIPE, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), option, str(place)]
    with pytest.raises(SystemExit) as ended:
        main(argv)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1
    assert f"{option}: {place} lies in {tmp_path / 'data'}, which the run reads" in error
    assert not place.exists()


@pytest.mark.parametrize(
    ("config", "sharded"),
    [
        ("cpu_2", False),
        ("ddp_4", False),
        ("deepspeed_zero1_4", False),
        ("fsdp_4", True),
        ("zero2", True),
        ("zero3", True),
        ("zero", True),
    ],
)
def test_sharded_gradients_are_refused_before_the_first_step(tmp_path, capsys, config, sharded):
    path = ROOT / "trainers/accelerate" / f"{config}.yaml"
    if config.startswith("zero"):  # the last one names no stage, and accelerate takes ZeRO-2
        path = tmp_path / f"{config}.yaml"
        stage = f"zero_stage: {config[4:]}" if config[4:] else ""
        path.write_text(f"distributed_type: DEEPSPEED\ndeepspeed_config: {{{stage}}}\n")
    assert StepFolders(tmp_path / "steps", str(path)).sharded == sharded
    if sharded:
        street = tmp_path / "street"
        write_scenes(street, labelled=1, unlabelled=1, val=1, size=(64, 96), progress=False)
        argv = [RECIPE, "--data", str(street), "--out", str(tmp_path / "out"), "--accelerate_config", str(path)]
        with pytest.raises(SystemExit) as ended:
            main(argv)
        error = capsys.readouterr().err
        assert ended.value.code == 2 and f"accelerate_config: {path}: stages 2 and 3 do not run" in error
        assert not (tmp_path / "out").exists()


def test_values_of_later_programs_are_checked_before_the_first_step(tmp_path, capsys):
    street = tmp_path / "street"
    write_scenes(street, labelled=1, unlabelled=1, val=1, size=(64, 96), progress=False)
    argv = [RECIPE, "--data", str(street), "--out", str(tmp_path / "out"), "--pseudo_labels.use_cpu", "true"]
    with pytest.raises(SystemExit) as ended:
        main([*argv, "--method", "lisa", "--prediction.window_stride", "0"])
    assert ended.value.code == 2 and "window_stride: 0.0 is not above 0" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.done.json"))


def test_added_instructions_are_known_by_what_their_files_hold(tmp_path):
    (tmp_path / "data").mkdir()
    files = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    for path in files:
        path.write_text("old")
    argv = [RECIPE, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--instructions.instructions"]

    def built(given: list[Path]) -> tuple[str, list[str]]:
        step = plan(*read_run([*argv, *map(str, given)])).steps[0]
        folders = StepFolders(tmp_path / "steps")
        return folders.folder(step).name, folders.command(step)

    (one, command), (two, commands) = built(files[:1]), built(files)
    assert command[command.index("--instructions") + 1 :][:1] == [str(files[0])]
    assert commands[commands.index("--instructions") + 1 :][:2] == list(map(str, files))
    files[0].write_text("new")
    assert len({one, two, built(files[:1])[0], built(files)[0]}) == 4


def test_data_that_the_evaluation_cannot_ask_about_stop_the_run_before_its_first_step(tmp_path, capsys):
    write_scenes(tmp_path / "street", labelled=2, unlabelled=1, val=0, size=(64, 96), progress=False)
    with pytest.raises(SystemExit):
        main(options(tmp_path / "street", tmp_path / "run"))
    assert f"{tmp_path / 'street'}: split 'val' has no labelled image to be asked about" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    argv = options(tmp_path / "street", tmp_path / "run", evaluation__split="train", stage1__max_steps=0.5)
    with pytest.raises(SystemExit):  # what is wrong then is another thing, which is told next
        main(argv)
    assert "max_steps" in capsys.readouterr().err
