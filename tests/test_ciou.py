"""The metric against the stored results of the public code, closed forms and a loop over pixels."""

import math
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from metrics.ciou.ciou import Ciou, intersection_and_union, summarize

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT.parent / "shared" / "golden" / "metrics" / "metrics.safetensors"


@pytest.fixture
def metric(tmp_path):
    return Ciou(cache_dir=str(tmp_path))


@pytest.fixture
def stats(tmp_path):
    return Ciou("stats", cache_dir=str(tmp_path))


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.exists():
        pytest.skip(f"no stored results of the public code at {GOLDEN}")
    return load_file(GOLDEN)


def golden_masks(golden):
    """The 270 pairs of masks of the golden file."""
    spans = zip(golden["in.offsets"][:-1], golden["in.offsets"][1:], golden["in.shapes"], strict=True)
    spans = [(slice(start, stop), shape) for start, stop, shape in spans]
    predictions = [golden["in.pred_flat"][span].reshape(shape) for span, shape in spans]
    return predictions, [golden["in.target_flat"][span].reshape(shape) for span, shape in spans]


def loop(prediction, reference, protocol):
    """The slow obvious version: one pixel after another."""
    intersection = union = 0
    for row_p, row_r in zip(prediction, reference, strict=True):
        for p, r in zip(row_p, row_r, strict=True):
            if protocol == "lisa" and r == 255:
                continue
            intersection += bool(p) and r != 0
            union += bool(p) or r != 0
    return intersection, union


def pair_with(intersection, union):
    """A pair of 1 x 100 masks with these counts."""
    prediction, reference = np.zeros((1, 100), np.uint8), np.zeros((1, 100), np.uint8)
    prediction[0, :union] = 1
    reference[0, :intersection] = 1
    return prediction, reference


# -- the public code ---------------------------------------------------------------------------------------------------


def test_counts_equal_those_of_the_public_code(golden):
    failed = golden["segzero.in.parse_failure"]
    for k, (prediction, reference) in enumerate(zip(*golden_masks(golden), strict=True)):
        lisa = intersection_and_union(prediction, reference)
        assert lisa == (golden["lisa.intersection"][k, 1], golden["lisa.union"][k, 1]), k
        segzero = intersection_and_union(prediction * (not failed[k]), reference, protocol="segzero")
        # The file marks the counts of a skipped mask, both 0, by -1.
        stored = golden["segzero.intersection"][k], golden["segzero.union"][k]
        assert segzero == ((0, 0) if golden["segzero.status"][k] == 1 else stored), k


def test_lisa_protocol_equals_validate_of_lisa(golden, metric):
    predictions, references = golden_masks(golden)
    for start in range(0, 270, 7):
        metric.add_batch(predictions=predictions[start : start + 7], references=references[start : start + 7])
    result = metric.compute()
    # LISA sums in float32 and divides by count + 1e-5.
    assert result["giou"] == pytest.approx(golden["lisa.giou"].item(), abs=1e-6)
    assert result["ciou"] == pytest.approx(golden["lisa.ciou"].item(), abs=1e-6)
    assert result["giou"] == pytest.approx(golden["lisa.giou_exact_mean_64"].item(), abs=1e-7)
    assert result["ciou"] == pytest.approx(golden["lisa.ciou_exact_64"].item(), abs=1e-12)
    assert (result["count"], result["skipped"]) == (270, 0)


def test_segzero_protocol_equals_its_evaluation_script(golden, metric):
    predictions, references = golden_masks(golden)
    failed = golden["segzero.in.parse_failure"]
    predictions = [None if lost else prediction for prediction, lost in zip(predictions, failed, strict=True)]
    result = metric.compute(predictions=predictions, references=references, protocol="segzero")
    assert result["giou"] == pytest.approx(golden["segzero.giou_64"].item(), abs=1e-12)
    assert result["ciou"] == pytest.approx(golden["segzero.ciou_derived_64"].item(), abs=1e-12)
    assert result["skipped"] == 27 and result["count"] == 270 - 27


# -- an independent version --------------------------------------------------------------------------------------------


@st.composite
def mask_pairs(draw):
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    prediction = rng.random((height, width)) < draw(st.sampled_from([0, 0.3, 1]))
    return prediction, rng.choice(draw(st.sampled_from([[0], [0, 1], [0, 1, 255], [255]])), (height, width))


@settings(max_examples=150, deadline=None)
@given(pairs=st.lists(mask_pairs(), min_size=1, max_size=4), protocol=st.sampled_from(["lisa", "segzero"]))
def test_random_masks_equal_a_loop_over_pixels(pairs, protocol):
    counts = [loop(*pair, protocol) for pair in pairs]
    assert [intersection_and_union(*pair, protocol=protocol) for pair in pairs] == counts
    ious = [
        (i / (u + 1e-5) if u else 1.0) if protocol == "lisa" else i / u for i, u in counts if u or protocol == "lisa"
    ]
    result = summarize(*zip(*counts, strict=True), protocol)
    assert (result["count"], result["skipped"]) == (len(ious), len(pairs) - len(ious))
    if ious:
        assert result["giou"] == pytest.approx(sum(ious) / len(ious), abs=1e-12)
        assert result["ciou"] == pytest.approx(sum(i for i, _ in counts) / (sum(u for _, u in counts) + 1e-10))
    else:
        assert math.isnan(result["giou"]) and math.isnan(result["ciou"])


# -- closed forms ------------------------------------------------------------------------------------------------------


def test_ciou_weighs_pixels_and_giou_weighs_masks(metric):
    pairs = [pair_with(90, 100), pair_with(1, 10)]
    result = metric.compute(predictions=[p for p, _ in pairs], references=[r for _, r in pairs])
    assert result["ciou"] == pytest.approx(91 / 110)
    assert result["giou"] == pytest.approx((0.9 + 0.1) / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("prediction", "reference", "lisa", "segzero"),
    [
        ([[0, 0]], [[0, 0]], 1.0, math.nan),
        ([[1, 1]], [[1, 255]], 1.0, 1.0),
        ([[0, 1]], [[0, 255]], 1.0, 1.0),
        ([[0, 0]], [[0, 255]], 1.0, 0.0),
        ([[1, 0]], [[255, 1]], 0.0, 0.5),
        (None, [[0, 0]], 1.0, 0.0),
        (None, [[0, 1]], 0.0, 0.0),
    ],
)
def test_protocols_differ_in_ignored_pixels_empty_unions_and_failures(metric, prediction, reference, lisa, segzero):
    for protocol, expected in (("lisa", lisa), ("segzero", segzero)):
        metric.add(prediction=prediction, reference=reference)
        assert metric.compute(protocol=protocol)["giou"] == pytest.approx(expected, abs=1e-4, nan_ok=True)


def test_nothing_counted_is_not_a_number():
    assert math.isnan(summarize([], [])["ciou"]) and math.isnan(summarize([], [])["giou"])


def test_stats_equal_masks(metric, stats):
    pairs = [pair_with(90, 100), pair_with(1, 10), pair_with(0, 0)]
    for prediction, reference in pairs:
        metric.add(prediction=prediction, reference=reference)
        intersection, union = intersection_and_union(prediction, reference)
        stats.add(intersections=int(intersection), unions=int(union))
    assert metric.compute() == stats.compute()
    assert stats.compute(intersections=[1], unions=np.array([2]), protocol="segzero")["giou"] == 0.5


# -- inputs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cast",
    [
        lambda mask: mask.tolist(),
        lambda mask: mask.astype(np.int64),
        lambda mask: mask.astype(np.float32),
        torch.from_numpy,
        lambda mask: torch.from_numpy(mask.astype(np.float32)).requires_grad_(),
        lambda mask: torch.from_numpy(mask.astype(np.float32)).bfloat16(),
    ],
)
def test_lists_arrays_and_tensors_are_one(metric, cast):
    prediction, reference = pair_with(30, 40)
    assert metric.compute(predictions=[cast(prediction)], references=[cast(reference)])["giou"] == pytest.approx(0.75)


def test_batches_of_any_size_and_masks_of_any_size(metric):
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (40, 3), (17, 31), (5, 5), (64, 64)]
    predictions = [rng.random(shape) < 0.5 for shape in shapes]
    references = [rng.choice([0, 1, 255], shape) for shape in shapes]
    whole = metric.compute(predictions=predictions, references=references)
    metric.add_batch(predictions=predictions[:3], references=references[:3])
    metric.add_batch(predictions=[], references=[])
    metric.add(prediction=predictions[3], reference=references[3])
    metric.add_batch(predictions=predictions[4][None], references=torch.from_numpy(references[4][None]))
    assert metric.compute() == whole


def test_leading_axes_count_many_masks_at_once():
    rng = np.random.default_rng(0)
    predictions, references = rng.random((2, 3, 5, 7)) < 0.5, rng.choice([0, 1, 255], (2, 3, 5, 7))
    intersections, unions = intersection_and_union(predictions, references)
    assert intersections.shape == unions.shape == (2, 3) and intersections.dtype == np.int64
    assert (intersections[1, 2], unions[1, 2]) == loop(predictions[1, 2], references[1, 2], "lisa")


def test_inputs_are_left_as_they_were():
    prediction, reference = np.ones((2, 2), bool), np.full((2, 2), 255)
    for protocol in ("lisa", "segzero"):
        intersection_and_union(prediction, reference, protocol=protocol)
    assert prediction.all() and (reference == 255).all()


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        (np.ones((2, 3)), np.ones((3, 2)), r"mask 2: prediction is \(2, 3\) and reference \(3, 2\)"),
        (np.ones(3), np.ones(3), r"mask 2: .*one alone goes to add"),
        (np.ones((1, 2, 3)), np.ones((1, 2, 3)), r"mask 2: the reference is \(1, 2, 3\)"),
        ([[0.3, -2.0]], [[0, 1]], r"mask 2: prediction holds -2.0, 0.3; it must be binary"),
        ([[math.nan, 1]], [[0, 1]], r"mask 2: prediction holds nan"),
        ([[255, 0]], [[1, 0]], r"mask 2: prediction holds 255"),
        ([[1, 0]], [[7, 0]], r"mask 2: reference holds 7; it may hold 0, 1 and 255"),
        ([[1, 0], [1]], [[1, 0], [1, 0]], r"mask 2: the rows of a mask differ in length"),
    ],
)
def test_a_wrong_mask_is_named_and_nothing_is_added(metric, prediction, reference, message):
    good = [[1, 0]]
    metric.add(prediction=good, reference=good)
    with pytest.raises(ValueError, match=message) as error:
        metric.add_batch(predictions=[good, prediction], references=[good, reference])
    assert "\n" not in str(error.value)
    assert metric.compute()["count"] == 1


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"intersections": [1, 3], "unions": [1, 2]}, "mask 1: intersection 3, union 2"),
        ({"intersections": [-1], "unions": [2]}, "mask 0: intersection -1"),
        ({"intersections": [0.5], "unions": [2]}, "intersections are float64; pixel counts are integers"),
        ({"intersections": [1]}, r"intersections are \(1\) and unions \(0\)"),
    ],
)
def test_impossible_counts_are_refused(stats, counts, message):
    with pytest.raises(ValueError, match=message):
        stats.add_batch(**counts)


def test_unequal_batches_are_refused(metric):
    with pytest.raises(ValueError, match="1 predictions and 2 references"):
        metric.add_batch(predictions=[[[1]]], references=[[[1]], [[1]]])


def test_a_mistyped_protocol_costs_no_evaluation(metric):
    metric.add(prediction=[[1]], reference=[[1]])
    with pytest.raises(ValueError, match="'segzro' is unknown; it is one of lisa, segzero"):
        metric.compute(protocol="segzro")
    assert metric.compute()["count"] == 1


def test_unknown_config_is_refused():
    with pytest.raises(ValueError, match="one of masks, stats"):
        Ciou("pixels")


# -- evaluate ----------------------------------------------------------------------------------------------------------


def test_no_pixel_reaches_the_disk(metric):
    rng = np.random.default_rng(0)
    for _ in range(20):
        masks = rng.random((10, 512, 512)) < 0.5
        metric.add_batch(predictions=masks, references=masks.astype(np.uint8))
    metric.writer.write_examples_on_file()
    path = Path(metric.cache_file_name)
    metric.writer.stream.flush()
    assert 0 < path.stat().st_size < 50_000
    assert metric.compute()["ciou"] == pytest.approx(1)
    assert not path.exists()


def test_combine_with_itself(metric, tmp_path):
    both = evaluate.combine({"a": metric, "b": Ciou(cache_dir=str(tmp_path / "b"))})
    both.add(prediction=[[1, 1]], reference=[[1, 0]])
    both.add_batch(predictions=[[[1, 1]]], references=[[[1, 0]]])
    assert both.compute()["a_ciou"] == pytest.approx(0.5)


LOAD = "import evaluate, sys; print(evaluate.load(sys.argv[1]).compute(predictions=[[[1, 1]]], references=[[[1, 0]]]))"


def test_loads_offline_in_fresh_processes_by_relative_and_absolute_path(tmp_path):
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    loads = [("metrics/ciou", ROOT), (str(ROOT / "metrics" / "ciou"), tmp_path)]
    processes = [
        subprocess.Popen([sys.executable, "-c", LOAD, path], cwd=folder, env=env, stdout=subprocess.PIPE, text=True)
        for path, folder in loads
    ]
    for process in processes:
        assert "'giou': 0.4999" in process.communicate(timeout=100)[0]


def measure_share(rank, world, cache, results):
    """One of `world` processes: the last of several gets no mask at all."""
    masks = np.random.default_rng(0).integers(0, 2, (2, 9, 6, 8))
    metric = Ciou(num_process=world, process_id=rank, experiment_id="test", cache_dir=cache, timeout=30)
    with_masks = max(world - 1, 1)
    share = slice(rank, None, with_masks) if rank < with_masks else slice(0, 0)
    for prediction, reference in zip(masks[0, share], masks[1, share], strict=True):
        metric.add(prediction=prediction, reference=reference)
    results.put((rank, metric.compute()))


def run_processes(world, cache):
    """The result of every rank of `world` processes."""
    # Forked, for a fresh process would import for seconds.
    fork = multiprocessing.get_context("fork")
    results = fork.SimpleQueue()
    processes = [fork.Process(target=measure_share, args=(rank, world, str(cache), results)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * world
    return [result for _, result in sorted((results.get() for _ in processes), key=lambda item: item[0])]


def test_several_processes_equal_one(tmp_path):
    (alone,) = run_processes(1, tmp_path / "one")
    assert alone["count"] == 9
    first, *others = run_processes(3, tmp_path / "three")
    assert others == [None, None]
    assert first == pytest.approx(alone, abs=1e-15)


# -- the Space ---------------------------------------------------------------------------------------------------------


def test_space_scores_two_files(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.syspath_prepend(str(ROOT / "metrics" / "ciou"))
    import app

    prediction, reference = str(tmp_path / "p.png"), str(tmp_path / "r.png")
    Image.fromarray(np.array([[255, 255, 255, 0]], np.uint8)).save(prediction)
    Image.fromarray(np.array([[1, 0, 255, 0]], np.uint8)).save(reference)
    assert app.score(prediction, reference, app.BLACK_AND_WHITE, "lisa") == (2, 3, 0.6667)
    assert app.score(prediction, reference, app.LABELS, "lisa") == (1, 2, 0.5)
    assert app.score(prediction, reference, app.LABELS, "segzero") == (2, 3, 0.6667)
    with pytest.raises(ValueError, match="two files are needed"):
        app.score(None, reference, app.LABELS, "lisa")
