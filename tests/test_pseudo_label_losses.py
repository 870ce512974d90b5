"""Losses, CutMix, dropout and teacher against numbers that the public UniMatch and UniMatch V2 codes computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from trainers.pseudo_labels.arguments import StrongViewArguments
from trainers.pseudo_labels.cutmix import NO_BOX, box_masks, cutmix_box, paste
from trainers.pseudo_labels.losses import (
    consistency,
    cross_entropy,
    guidance,
    image_confidence_consistency,
    image_ratio_consistency,
    ohem_cross_entropy,
    pseudo_labels,
    weighted_sum,
)
from trainers.pseudo_labels.methods.unimatch import unimatch_weights
from trainers.pseudo_labels.methods.unimatch_v2 import ema_ratio, unimatch_v2_weights, update_teacher
from trainers.pseudo_labels.perturbation import channel_dropout_masks, complementary_masks, draws_dropout

from .conftest import SHARED

GOLDEN = SHARED / "golden" / "unimatch"
golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"the public code's numbers are not here ({GOLDEN.name}/)")


@pytest.fixture(scope="module")
def v1():
    return load_file(GOLDEN / "unimatch_v1.safetensors")


@pytest.fixture(scope="module")
def v2():
    return load_file(GOLDEN / "unimatch_v2.safetensors")


class StoredDraws:
    """Stands for the generator: gives back what the public code drew."""

    def __init__(self, apply: float, area: float, attempts):
        self.apply, self.area = apply, area
        self.numbers = [number for attempt in attempts for number in attempt]

    def random(self):
        return self.apply

    def uniform(self, low, high):
        if self.area is not None:
            area, self.area = self.area, None
            return area
        return self.numbers.pop(0)

    def integers(self, low, high):
        return int(self.numbers.pop(0))


@golden
@pytest.mark.parametrize("size", [33, 64, 321, 801])
def test_cutmix_boxes_are_those_of_the_public_code(v1, size):
    draws, attempts = v1[f"cutmix{size}.draw_apply_size_attempts64"], v1[f"cutmix{size}.attempts_k_ratio_x_y64"]
    expected = v1[f"cutmix{size}.out.box_y0x0y1x1"]
    boxes = []
    for call, (apply, area, count) in enumerate(draws.tolist()):
        own = attempts[attempts[:, 0] == call, 1:].tolist()
        assert len(own) == count
        rng = StoredDraws(apply, area, own)
        boxes.append(cutmix_box(size, size, StrongViewArguments(), rng))
        assert not rng.numbers
    assert torch.equal(torch.tensor(boxes), expected)
    assert (expected.sum(1) > 0).sum() > 5
    if size < 100:
        assert torch.equal(box_masks(expected, size, size), v1[f"cutmix{size}.out.mask"] == 1)


@golden
@pytest.mark.parametrize(
    "case",
    ["hard", "easy_minkept_active", "min_kept_above_valid", "min_kept_0", "thresh03", "min_kept_gt_len"],
)
def test_ohem_keeps_the_pixels_of_the_public_code(v1, case):
    read = {name: v1[f"ohem.{case}.{name}"] for name in ("in.pred", "in.target", "in.thresh_minkept")}
    threshold, min_kept = read["in.thresh_minkept"].tolist()
    mean = ohem_cross_entropy(read["in.pred"], read["in.target"], threshold, int(min_kept))
    assert mean.count.item() == v1[f"ohem.{case}.out.kept_pixels"].item()
    assert mean.value.item() == pytest.approx(v1[f"ohem.{case}.out.loss"].item(), abs=1e-6)


@golden
@pytest.mark.parametrize("case", ["all_ignored", "all_ignored_min0"])
def test_nothing_labelled_is_a_loss_of_zero_where_the_public_code_has_nan(v1, case):
    logits, labels = v1[f"ohem.{case}.in.pred"].requires_grad_(), v1[f"ohem.{case}.in.target"]
    assert v1[f"ohem.{case}.out.loss"].isnan()
    value = ohem_cross_entropy(logits, labels, 0.7, int(v1[f"ohem.{case}.in.thresh_minkept"][1])).value
    value.backward()
    assert value.item() == 0 and logits.grad.abs().max() == 0


def unimatch_terms(v1, threshold: float, ohem: bool, leaves: dict | None = None) -> dict:
    data = {name: v1[f"uni.in.{name}"] for name in ("logits_x", "logits_w", "logits_s1", "logits_s2", "logits_fp")}
    data |= leaves or {}
    confidence, labels = pseudo_labels(data["logits_w"])
    confidence_mix, labels_mix = pseudo_labels(v1["uni.in.logits_w_mix"])
    ignore, ignore_mix = v1["uni.in.ignore_mask"], v1["uni.in.ignore_mask_mix"]
    supervised = ohem_cross_entropy if ohem else cross_entropy
    options = dict(threshold=0.7, min_kept=60) if ohem else {}
    terms = {"labelled_loss": supervised(data["logits_x"], v1["uni.in.mask_x"], **options).value}
    for k in (1, 2):
        inside = v1[f"uni.in.cutmix_box{k}"] == 1
        pasted = [paste(labels, labels_mix, inside), paste(confidence, confidence_mix, inside)]
        pasted.append(paste(ignore, ignore_mix, inside))
        terms[f"strong{k}_loss"] = consistency(data[f"logits_s{k}"], *pasted, threshold).value
    terms["feature_loss"] = consistency(data["logits_fp"], labels, confidence, ignore, threshold).value
    return terms


NAMES = {
    "labelled_loss": "loss_x",
    "strong1_loss": "loss_u_s1",
    "strong2_loss": "loss_u_s2",
    "feature_loss": "loss_u_w_fp",
}


@golden
@pytest.mark.parametrize("threshold", ["0.95", "0"])
@pytest.mark.parametrize("criterion", ["ce", "ohem"])
def test_unimatch_terms_and_total(v1, criterion, threshold):
    terms = unimatch_terms(v1, float(threshold), criterion == "ohem")
    where = f"uni.{criterion}_thr{threshold}.out"
    for ours, theirs in NAMES.items():
        assert terms[ours].item() == pytest.approx(v1[f"{where}.{theirs}"].item(), abs=1e-6), ours
    assert weighted_sum(terms, unimatch_weights()).item() == pytest.approx(v1[f"{where}.loss"].item(), abs=1e-6)


@golden
def test_unimatch_gradients_and_none_into_the_weak_view(v1):
    names = {"x": "logits_x", "s1": "logits_s1", "s2": "logits_s2", "fp": "logits_fp", "w": "logits_w"}
    leaves = {name: v1[f"uni.in.{name}"].clone().requires_grad_() for name in names.values()}
    weighted_sum(unimatch_terms(v1, 0.95, False, leaves), unimatch_weights()).backward()
    for short, name in names.items():
        if short != "w":
            assert torch.allclose(leaves[name].grad, v1[f"uni.ce_thr0.95.out.grad_{short}"], atol=1e-8, rtol=1e-4)
    assert leaves["logits_w"].grad is None


@golden
def test_unimatch_pastes_labels_confidences_ignore_maps_and_images_alike(v1):
    confidence, labels = pseudo_labels(v1["uni.in.logits_w"])
    confidence_mix, labels_mix = pseudo_labels(v1["uni.in.logits_w_mix"])
    assert torch.equal(labels, v1["uni.out.mask_u_w"])
    for k in (1, 2):
        inside = v1[f"uni.in.cutmix_box{k}"] == 1
        assert torch.equal(paste(labels, labels_mix, inside), v1[f"uni.out.mask_u_w_cutmixed{k}"])
        pasted = paste(confidence, confidence_mix, inside)
        assert torch.allclose(pasted, v1[f"uni.out.conf_u_w_cutmixed{k}"], atol=1e-6)
        ignore = paste(v1["uni.in.ignore_mask"], v1["uni.in.ignore_mask_mix"], inside)
        assert torch.equal(ignore, v1[f"uni.out.ignore_mask_cutmixed{k}"])
        images = paste(v1[f"uni.in.img_u_s{k}"], v1[f"uni.in.img_u_s{k}_mix"], inside)
        assert torch.equal(images, v1[f"uni.out.img_u_s{k}_mixed"])


@golden
@pytest.mark.parametrize("threshold", ["0.95", "0"])
def test_unimatch_v2_terms_total_and_gradients(v2, threshold):
    leaves = {k: v2[f"v2.in.logits_{k}"].clone().requires_grad_() for k in ("x", "s1", "s2")}
    confidence, labels = pseudo_labels(v2["v2.in.logits_ema_w"])
    ignore = v2["v2.in.ignore_mask"]
    terms = {"labelled_loss": cross_entropy(leaves["x"], v2["v2.in.mask_x"]).value}
    for k in (1, 2):
        inside = v2[f"v2.in.cutmix_box{k}"] == 1
        pasted = [paste(one, one.flip(0), inside) for one in (labels, confidence, ignore)]
        terms[f"strong{k}_loss"] = consistency(leaves[f"s{k}"], *pasted, float(threshold)).value
    total = weighted_sum(terms, unimatch_v2_weights())
    total.backward()
    where = f"v2.thr{threshold}.out"
    for ours, theirs in {"labelled_loss": "loss_x", "strong1_loss": "loss_u_s1", "strong2_loss": "loss_u_s2"}.items():
        assert terms[ours].item() == pytest.approx(v2[f"{where}.{theirs}"].item(), abs=1e-6)
    assert total.item() == pytest.approx(v2[f"{where}.loss"].item(), abs=1e-6)
    for name, leaf in leaves.items():
        if f"{where}.grad_{name}" in v2:
            assert torch.allclose(leaf.grad, v2[f"{where}.grad_{name}"], atol=1e-8, rtol=1e-4)


@golden
@pytest.mark.parametrize("batch", [2, 4, 6, 8])
def test_complementary_masks(v2, batch):
    where = f"v2.compdrop_bs{batch}"
    undropped = v2[f"{where}.in.perm"][: int(batch // 2 * 0.5)]
    dropped = torch.ones(batch // 2, dtype=torch.bool)
    dropped[undropped] = False
    masks = torch.cat(complementary_masks(v2[f"{where}.in.binomial"], dropped))
    assert torch.equal(masks, v2[f"{where}.out.mask"])
    features = v2[f"{where}.in.feature0"] * masks[:, None]
    assert torch.allclose(features, v2[f"{where}.out.feature0"], atol=1e-6)


@golden
def test_ema_ratios(v2):
    ratios = torch.tensor([ema_ratio(step) for step in range(1001)], dtype=torch.float64)
    assert torch.allclose(ratios, v2["v2.ema_ratio_0_1000_64"], atol=1e-12)


@golden
def test_the_teacher_averages_weights_and_running_statistics(v2):
    student, teacher = torch.nn.BatchNorm1d(6), torch.nn.BatchNorm1d(6)
    with torch.no_grad():
        teacher.weight.copy_(v2["v2.ema.in.teacher_weight0"])
        for step in range(300):
            student.weight.copy_(v2["v2.ema.in.student_weight"][step])
            student.running_mean.copy_(v2["v2.ema.in.student_running_mean"][step])
            update_teacher(teacher, student, ema_ratio(step))
            assert torch.allclose(teacher.weight, v2["v2.ema.out.teacher_weight"][step], atol=1e-6), step
            assert torch.allclose(teacher.running_mean, v2["v2.ema.out.teacher_running_mean"][step], atol=1e-6), step


def test_hardest_pixels_are_those_of_all_processes():
    """Two halves with a gathered threshold keep what the whole batch keeps."""
    logits, labels = torch.randn(4, 3, 8, 8), torch.randint(0, 3, (4, 8, 8))
    labels[0, :4] = 255
    whole = ohem_cross_entropy(logits, labels, 0.1, 150)
    probabilities = (-F.cross_entropy(logits, labels, ignore_index=255, reduction="none")).exp()
    probabilities = probabilities.masked_fill(labels == 255, 1.0).flatten()
    halves = []
    for part in (slice(0, 2), slice(2, 4)):
        counts = iter([probabilities, (labels != 255).sum()[None]])
        halves.append(ohem_cross_entropy(logits[part], labels[part], 0.1, 150, lambda own, c=counts: next(c)))
    assert whole.count.item() == 150
    assert sum(half.count for half in halves).item() == 150
    assert sum(half.total for half in halves).item() == pytest.approx(whole.total.item(), rel=1e-6)


def test_image_mean_confidence_by_a_slow_second_way():
    logits, labels = torch.randn(3, 4, 5, 6), torch.randint(0, 4, (3, 5, 6))
    confidence, ignore = torch.rand(3, 5, 6), torch.zeros(3, 5, 6, dtype=torch.long)
    ignore[0, :2] = 255
    total, count = 0.0, 0
    for b in range(3):
        pixels = [(y, x) for y in range(5) for x in range(6) if ignore[b, y, x] == 0]
        mean = sum(confidence[b, y, x].item() for y, x in pixels) / len(pixels)
        for y, x in pixels:
            total += mean * -logits[b, :, y, x].log_softmax(0)[labels[b, y, x]].item()
        count += len(pixels)
    value = image_confidence_consistency(logits, labels, confidence, ignore).value
    assert value.item() == pytest.approx(total / count, rel=1e-5)
    # SemiVL's code with one image: sum of the loss * mean confidence / pixels
    one = image_confidence_consistency(logits[1:2], labels[1:2], confidence[1:2], ignore[1:2]).value
    expected = F.cross_entropy(logits[1:2], labels[1:2]) * confidence[1].mean()
    assert one.item() == pytest.approx(expected.item(), rel=1e-5)
    ratio = image_ratio_consistency(logits[1:2], labels[1:2], confidence[1:2], ignore[1:2], 0.5).value
    expected = F.cross_entropy(logits[1:2], labels[1:2]) * (confidence[1] >= 0.5).float().mean()
    assert ratio.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_pixel_of_just_the_threshold_counts():
    logits, ignore = torch.randn(1, 3, 1, 2), torch.zeros(1, 1, 2)
    mean = consistency(logits, logits.argmax(1), torch.tensor([[[0.5, 0.25]]]), ignore, 0.5)
    expected = -logits.log_softmax(1).amax(1)[0, 0, 0]
    assert mean.total.item() == pytest.approx(expected.item()) and mean.count == 2


def test_no_gradient_flows_through_a_confidence():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    confidence, _ = pseudo_labels(logits)
    assert not confidence.requires_grad
    assert torch.allclose(confidence, logits.softmax(1).max(1).values)


def test_guidance_counts_all_pixels_or_the_sure_ones():
    logits, labels = torch.randn(1, 3, 4, 4), torch.full((1, 4, 4), 255)
    labels[0, 0, :2] = 1
    sure = F.cross_entropy(logits, labels, ignore_index=255)
    assert guidance(logits, labels, "sure").value.item() == pytest.approx(sure.item(), rel=1e-5)
    assert guidance(logits, labels, "all").value.item() == pytest.approx(sure.item() * 2 / 16, rel=1e-5)


def test_boxes_fit_any_crop_and_have_the_area_they_should():
    rng = np.random.default_rng(0)
    boxes = [cutmix_box(180, 240, StrongViewArguments(), rng) for _ in range(400)]
    drawn = [box for box in boxes if box != NO_BOX]
    assert 150 < len(drawn) < 250
    for top, left, bottom, right in drawn:
        assert 0 <= top < bottom <= 180 and 0 <= left < right <= 240
        assert 0.015 < (bottom - top) * (right - left) / (180 * 240) <= 0.4
        assert 0.28 < (bottom - top) / (right - left) < 3.6


def test_dropout_depends_on_the_sample_alone_and_keeps_the_mean():
    both = channel_dropout_masks([5, 9], [400, 600], 0.5)
    alone = channel_dropout_masks([9], [400, 600], 0.5)
    assert all(torch.equal(b[1:], a) for b, a in zip(both, alone, strict=True))
    assert not torch.equal(both[0][0], both[0][1])
    assert set(both[1].unique().tolist()) == {0.0, 2.0} and both[1].mean().item() == pytest.approx(1, abs=0.1)


def test_one_of_two_neighbours_is_dropped():
    for pair, coin in enumerate([0, 1, 1, 0]):
        assert draws_dropout(2 * pair, coin) + draws_dropout(2 * pair + 1, coin) == 1
    assert draws_dropout(0, 0) != draws_dropout(0, 1)
