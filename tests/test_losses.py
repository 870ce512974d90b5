"""Losses and mask sizes: closed forms, and the numbers of LISA's and segment-anything's own code where they lie."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file

from modeling_cora.losses import bce_per_mask, dice_per_mask, iou_per_mask, next_token_loss
from modeling_cora.masks import resize_mask_logits

from .conftest import SHARED

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
