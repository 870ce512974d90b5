"""Losses and mask sizes: closed forms, and the numbers of LISA's and segment-anything's own code where they lie."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file

from modeling_cora import CoraOutput
from modeling_cora.losses import bce_per_mask, dice_per_mask, iou_per_mask, mask_losses, next_token_loss
from modeling_cora.masks import resize_mask_logits, shrink_masks, uncertain_points, values_at_points

from .conftest import SHARED, noise_image

CASES = (
    "basic",
    "nonsquare",
    "single",
    "extreme",
    "empty_and_full",
    "num_masks_10",
    "empty_target_neutral",
    "empty_target_confident_bg",
)


def golden(name: str) -> dict[str, torch.Tensor]:
    path = SHARED / "golden" / name
    if not path.exists():
        pytest.skip(f"no stored results of the public code at {path}")
    return load_file(path)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "per_mask"), [("bce", bce_per_mask), ("dice", dice_per_mask)])
def test_values_and_gradients_are_lisas(case, name, per_mask):
    tensors = golden("losses/mask_losses.safetensors")
    logits = tensors[f"{case}.in.logits"].requires_grad_()
    loss = per_mask(logits, tensors[f"{case}.in.targets"]).sum() / (tensors[f"{case}.in.num_masks"] + 1e-8)
    loss.sum().backward()
    torch.testing.assert_close(loss, tensors[f"{case}.out.{name}"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits.grad, tensors[f"{case}.out.grad_{name}"], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(("name", "per_mask", "weight"), [("bce", bce_per_mask, 2.0), ("dice", dice_per_mask, 0.5)])
def test_a_batch_of_images_of_two_sizes_is_lisas(name, per_mask, weight):
    """LISA sums over all masks of the batch and divides by their number: a mean over masks, not over images."""
    tensors = golden("losses/mask_losses.safetensors")
    losses = [per_mask(tensors[f"batch.in.logits_{i}"], tensors[f"batch.in.targets_{i}"]) for i in range(2)]
    ours = weight * torch.cat(losses).mean()
    torch.testing.assert_close(ours, tensors[f"batch.out.{name}_weighted"].squeeze(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("case", ["raw", "point", "box"])
def test_masks_at_image_size_are_sams(case):
    tensors = golden("sam_tiny/sam_tiny.safetensors")
    masks = resize_mask_logits(
        tensors[f"{case}.out.low_res_single"][:, 0], 256, tensors["in.input_size"].tolist(), (150, 211)
    )
    torch.testing.assert_close(masks, tensors[f"{case}.out.masks_original_size"][:, 0], rtol=1e-5, atol=1e-5)


def test_bce_of_constant_logits_is_softplus():
    logits = torch.full((1, 3, 4), 2.0)
    targets = torch.zeros(1, 3, 4, dtype=torch.uint8)
    targets[0, 0] = 1
    expected = (8 * math.log1p(math.exp(2)) + 4 * math.log1p(math.exp(-2))) / 12
    assert bce_per_mask(logits, targets).item() == pytest.approx(expected, rel=1e-6)


def test_dice_of_half_a_target():
    logits = torch.full((1, 2, 4), -50.0)
    logits[0, 0, :2] = 50.0
    targets = torch.zeros(1, 2, 4, dtype=torch.uint8)
    targets[0, 0] = 1
    # 2 * |A and B| / (|A| + |B|) = 2 * 2 / 6
    assert dice_per_mask(logits, targets).item() == pytest.approx(1 - 4 / 6, abs=1e-3)


@pytest.mark.parametrize("per_mask", [bce_per_mask, dice_per_mask, iou_per_mask])
def test_ignored_pixels_count_as_if_they_were_not_there(per_mask):
    logits, targets = torch.randn(2, 5, 6), torch.randint(0, 2, (2, 5, 6), dtype=torch.uint8)
    targets[:, :, 4:] = 255
    altered = logits.clone()
    altered[:, :, 4:] = 1e3
    torch.testing.assert_close(per_mask(altered, targets), per_mask(logits[:, :, :4], targets[:, :, :4]))


@pytest.mark.parametrize("per_mask", [bce_per_mask, dice_per_mask])
def test_weights_are_constants(per_mask):
    logits, weights = torch.randn(2, 4, 4, requires_grad=True), torch.rand(2, 4, 4, requires_grad=True)
    per_mask(logits, torch.randint(0, 2, (2, 4, 4), dtype=torch.uint8), weights=weights).sum().backward()
    assert weights.grad is None and logits.grad.abs().sum() > 0


@pytest.mark.parametrize("per_mask", [bce_per_mask, dice_per_mask])
def test_a_mask_of_ignored_pixels_alone_has_no_gradient(per_mask):
    logits = torch.randn(1, 4, 4, requires_grad=True)
    loss = per_mask(logits, torch.full((1, 4, 4), 255, dtype=torch.uint8)).sum()
    loss.backward()
    assert torch.isfinite(loss) and not logits.grad.abs().sum()


def test_iou_of_counts():
    targets = torch.tensor([[[1, 1, 0, 255]], [[0, 0, 0, 0]], [[0, 0, 0, 0]]], dtype=torch.uint8)
    logits = torch.tensor([[[1.0, -1, 1, 1]], [[-1.0, -1, -1, -1]], [[1.0, -1, -1, -1]]])
    assert iou_per_mask(logits, targets).tolist() == pytest.approx([1 / 3, 1.0, 0.0])


def test_no_label_gives_a_zero_with_a_graph():
    logits = torch.zeros(0, 7, requires_grad=True)
    loss = next_token_loss(logits, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0.0


def test_masks_at_image_size_cover_the_image_and_not_the_padding():
    """A ramp over SAM's square stays a ramp whose ends lie where the image's do."""
    size, low = 128, 32
    ramp = torch.arange(low, dtype=torch.float32)
    for axis, reshaped, image in ((0, (64, 128), (30, 60)), (1, (128, 48), (256, 96))):
        mask = (ramp[:, None] if axis == 0 else ramp[None]).expand(low, low)[None]
        result = resize_mask_logits(mask, size, reshaped, image)[0]
        assert result.shape == image
        along = result[:, image[1] // 2] if axis == 0 else result[image[0] // 2]
        places = (torch.arange(image[axis]) + 0.5) * reshaped[axis] / image[axis] * low / size - 0.5
        inner = slice(image[axis] // 8, -image[axis] // 8)  # bilinear interpolation is flat at the very ends
        torch.testing.assert_close(along[inner], places[inner], rtol=0, atol=1e-3)


@pytest.mark.parametrize(("reshaped", "size"), [((64, 128), (50, 100)), ((128, 48), (256, 96)), ((128, 128), (7, 7))])
def test_shrunk_labels_are_read_where_the_pixels_lie(reshaped, size):
    """Every low-resolution pixel by itself: its centre in the image, and the label there; padding is ignored."""
    labels = torch.randint(0, 2, (2, *size), dtype=torch.uint8)
    labels[:, :2] = 255
    small, _ = shrink_masks(labels, (32, 32), 128, reshaped)
    assert small.shape == (2, 32, 32) and small.dtype == torch.uint8
    rows, columns = reshaped[0] // 4, reshaped[1] // 4
    for y in range(32):
        for x in range(32):
            if y >= rows or x >= columns:
                assert (small[:, y, x] == 255).all()
            else:
                expected = labels[:, int((y + 0.5) / rows * size[0]), int((x + 0.5) / columns * size[1])]
                assert torch.equal(small[:, y, x], expected)


def test_padding_is_ignored_of_masks_that_are_bool_too():
    """True has no 255: SAM's padding would be trained as part of the mask."""
    labels = torch.rand(2, 50, 100) > 0.5
    small, _ = shrink_masks(labels, (32, 32), 128, (64, 128))
    assert torch.equal(small, shrink_masks(labels.to(torch.uint8), (32, 32), 128, (64, 128))[0])
    assert (small[:, 16:] == 255).all() and small[:, :16].max() == 1


def test_a_target_between_the_pixels_that_are_looked_at_is_not_lost():
    """It has the cells that it touches, with the largest of its own weights; others and what is ignored stay."""
    labels = torch.zeros(4, 100, 200, dtype=torch.uint8)  # looked at in rows and columns 3, 9, 15, ...
    labels[0, 5, 1] = 1
    labels[1, :, 5], labels[1, :, 9] = 1, 255
    labels[2, 5, 1], labels[2, 9, 9] = 1, 1
    weights = torch.full(labels.shape, 0.25)
    weights[:, 5, 1], weights[1, 7, 5], weights[1, 7, 4] = 0.5, 0.75, 1.0
    small, small_weights = shrink_masks(labels, (32, 32), 128, (64, 128), weights)
    expected = torch.zeros(4, 16, 32, dtype=torch.uint8)
    expected[0, 0, 0] = 1
    expected[1, :, 0], expected[1, :, 1] = 1, 255
    expected[2, 1, 1] = 1  # it is seen, if not all of it
    assert torch.equal(small[:, :16], expected) and not small_weights[:, 16:].any()
    expected = torch.full((4, 16, 32), 0.25)
    expected[0, 0, 0], expected[1, 1, 0] = 0.5, 0.75
    assert torch.equal(small_weights[:, :16], expected)


def test_values_at_points_of_a_ramp():
    """Bilinear values of a linear function are the function; (x, y) are parts of width and height."""
    rows, columns = torch.arange(20.0), torch.arange(30.0)
    ramp = (rows[:, None] * 2 + columns[None] * 5)[None]
    points = 0.1 + 0.8 * torch.rand(1, 50, 2)
    expected = (points[..., 1] * 20 - 0.5) * 2 + (points[..., 0] * 30 - 0.5) * 5
    torch.testing.assert_close(values_at_points(ramp, points, "bilinear"), expected, rtol=1e-4, atol=1e-3)


def test_uncertain_points_lie_at_the_edge_and_inside_of_the_image():
    """A mask that is undecided along x = 1/2 of the image, and in all of the padding, which must not attract points."""
    x = (torch.arange(64) + 0.5) / 64 / 0.75  # of the image's width; the image fills 3/4 of the square
    logits = torch.where(x < 1, (x - 0.5) * 100, 0.0)[None, None].expand(2, 64, 64)
    points = uncertain_points(logits, 1000, torch.tensor([0.75, 1.0]), oversampling=4, importance=0.8)
    assert points.shape == (2, 1000, 2) and points.min() >= 0 and points.max() <= 1
    near = (points[..., 0] - 0.5).abs() < 0.15
    # 800 of 4000 uniform ones: the fifth nearest to the edge, within 0.1 of it; and 3 of 10 of the other 200
    assert near.float().mean(1).min() > 0.8
    even = uncertain_points(logits, 1000, torch.tensor([0.75, 1.0]), importance=0.0)
    assert ((even[..., 0] - 0.5).abs() < 0.15).float().mean().item() == pytest.approx(0.3, abs=0.05)


def test_losses_at_points_and_low_res_are_those_at_labels(tiny):
    """Smooth masks: uniform points estimate the mean over pixels, and the small grid hardly differs."""
    model, _ = tiny
    labels = torch.zeros(2, 80, 120, dtype=torch.uint8)
    labels[0, :, 60:], labels[1, 40:], labels[:, :8] = 1, 1, 255
    ramp = (torch.arange(32.0) - 14) / 4
    output = CoraOutput(
        pred_masks=torch.stack([ramp[None].expand(32, 32), 0.5 * ramp[:, None].expand(32, 32)]),
        iou_scores=torch.zeros(2),
        seg_embeddings=torch.zeros(2, 1),
        seg_batch_index=torch.zeros(2, dtype=torch.long),
    )
    model.config.mask_loss_points, model.config.mask_loss_importance = 200_000, 0.0
    terms = {}
    for where in ("labels", "low_res", "points"):
        model.config.mask_loss_at = where
        of_batch = mask_losses(model.config, output, [labels], torch.tensor([[85, 128]]))
        terms[where] = torch.stack(list(of_batch.values()))
    assert terms["labels"][0] > 0.2
    torch.testing.assert_close(terms["points"][:2], terms["labels"][:2], rtol=0.01, atol=0.0)
    torch.testing.assert_close(terms["low_res"], terms["labels"], rtol=0.05, atol=0.0)
    assert terms["points"][2] == terms["low_res"][2]


def test_gradients_flow_from_points(tiny):
    model, processor = tiny
    model.config.mask_loss_at, model.config.mask_loss_points = "points", 64
    labels = torch.zeros(1, 30, 40, dtype=torch.uint8)
    labels[0, :10] = 1
    output = model(**processor(noise_image(40, 30), "the road", mask_labels=[labels]))
    output.loss.backward()
    assert model.seg_projector.linear_1.weight.grad.abs().sum() > 0
