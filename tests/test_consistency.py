"""Eq. 6 against slow sums, and the uncertainty that users see."""

from __future__ import annotations

import math

import pytest
import torch

from modeling_cora.consistency import REPHRASINGS, consistency_weight, mask_variance, rephrase
from modeling_cora.segmentation import segment

from .conftest import noise_image


def test_variance_is_equation_six():
    """lambda = 1/(k-1) sum_j (M_j - mean_l M_l)^2 over the k-1 other queries, pixel by pixel in plain Python."""
    logits = torch.randn(6, 3, 4) * 3
    expected = torch.zeros(3, 4)
    for row in range(3):
        for column in range(4):
            values = [1 / (1 + math.exp(-v)) for v in logits[:, row, column].tolist()]
            mean = sum(values) / len(values)
            expected[row, column] = sum((v - mean) ** 2 for v in values) / len(values)
    assert torch.allclose(mask_variance(logits), expected, atol=1e-6)


def test_variance_at_its_ends():
    opposite = torch.tensor([[[100.0]], [[-100.0]]])
    assert mask_variance(opposite).item() == pytest.approx(0.25)
    assert mask_variance(opposite[:1].repeat(5, 1, 1)).item() == 0
    with pytest.raises(ValueError, match="at least 2"):
        mask_variance(opposite[:1])


def test_weights_fall_with_the_variance_unless_literal():
    variance = torch.linspace(0, 0.25, 5)
    assert consistency_weight(variance).tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    expected = [math.exp(-v / 0.1) for v in variance.tolist()]
    assert consistency_weight(variance, "exp", 0.1).tolist() == pytest.approx(expected)
    assert torch.equal(consistency_weight(variance, "literal"), variance)
    with pytest.raises(ValueError, match="inverse, exp, literal"):
        consistency_weight(variance, "invers")


def test_the_weight_has_no_gradient():
    logits = torch.randn(3, 2, 2, requires_grad=True)
    assert not consistency_weight(mask_variance(logits)).requires_grad


def test_rephrasings_keep_the_query_whole():
    texts = rephrase(" the car {left} of the van ")
    assert len(set(texts)) == len(REPHRASINGS) == 6
    assert all("the car {left} of the van" in text for text in texts)


def test_uncertainty_is_the_variance_over_single_answers(tiny):
    """Packed with other queries, against a call for each rephrasing alone and the processor's own resizing."""
    model, processor = tiny
    image, queries = noise_image(50, 30), ["the road", "Where is the tree?"]
    result = segment(model, processor, image, queries, uncertainty=True, queries_per_pass=5)
    plain = segment(model, processor, image, queries)
    assert plain.uncertainty is None
    assert torch.equal(result.masks, plain.masks) and torch.allclose(result.scores, plain.scores, atol=1e-5)
    assert result.uncertainty.shape == (2, 30, 50)
    for query, found in zip(queries, result.uncertainty, strict=True):
        answers = []
        for text in rephrase(query):
            inputs = processor(image, text)
            with torch.no_grad():
                output = model(**inputs)
            sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
            (logits,) = processor.post_process_masks(output.pred_masks, output.seg_batch_index, *sizes, threshold=None)
            answers.append(logits[0].sigmoid())
        expected = torch.stack(answers).var(0, unbiased=False)
        assert expected.max() > 1e-4  # else zeros would pass
        assert torch.allclose(found, expected, atol=1e-5)
