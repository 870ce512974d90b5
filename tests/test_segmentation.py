"""An image that is encoded once and asked many times; logits that give masks at any threshold and size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_cora.consistency import mask_variance
from modeling_cora.segmentation import Segmentation, answer_batch, encode, query_logits, segment, segment_batch

from .conftest import noise_image

QUERIES = ["Segment the road.", "Where is the tree?", "the sky"]


@pytest.fixture
def passes(tiny):
    """How often SAM's encoder and the language model ran."""
    model, _ = tiny
    counts = {"encoder": 0, "language": 0}

    def count(name):
        return lambda *_: counts.update({name: counts[name] + 1})

    hooks = [
        model.sam.vision_encoder.register_forward_hook(count("encoder")),
        model.vlm.base_model.register_forward_hook(count("language")),
    ]
    yield counts
    for hook in hooks:
        hook.remove()


def test_an_encoded_image_is_asked_without_the_encoder(tiny, passes):
    model, processor = tiny
    image = noise_image(90, 60)
    expected = segment(model, processor, image, QUERIES, uncertainty=True)
    assert passes == {"encoder": 1, "language": 1}
    encoded = encode(model, processor, [image])
    first = segment(model, processor, encoded, QUERIES, uncertainty=True)
    segment(model, processor, encoded, QUERIES[:1])
    assert passes == {"encoder": 2, "language": 3}
    assert torch.equal(first.masks, expected.masks) and torch.equal(first.scores, expected.scores)
    assert torch.equal(first.uncertainty, expected.uncertainty)


def test_an_encoded_image_takes_anchors(tiny):
    model, processor = tiny
    model.add_anchors(processor.add_anchor_token())
    image, mask = noise_image(90, 60), np.zeros((60, 90), bool)
    mask[10:30, 20:50] = True
    anchors = [[], [mask], []]
    expected = segment(model, processor, image, QUERIES, anchors=anchors)
    found = segment(model, processor, encode(model, processor, [image]), QUERIES, anchors=anchors)
    assert torch.equal(found.masks, expected.masks) and torch.equal(found.scores, expected.scores)


def test_thresholds_and_sizes_need_no_pass(tiny, passes):
    model, processor = tiny
    image = noise_image(90, 60)
    answer = query_logits(model, processor, image, QUERIES, uncertainty=True)
    before = dict(passes)
    owner = torch.zeros(3, dtype=torch.long)
    inputs = processor.image_inputs([image])
    for size in ((60, 90), (31, 47)):
        logits = processor.post_process_masks(
            answer.logits, owner, torch.tensor([size]), inputs["reshaped_input_sizes"], threshold=None
        )[0]
        for threshold in (-0.5, 0.0, 0.5):
            assert torch.equal(answer.masks(threshold, size), logits > threshold)
    assert torch.equal(answer.masks(), answer.masks(0.0, (60, 90)))
    assert not torch.equal(answer.masks(-0.5), answer.masks(0.5))
    maps = answer.uncertainty((31, 47))
    assert maps.shape == (3, 31, 47) and passes == before
    others = answer.resized(answer.rephrased[1], (31, 47))
    assert len(others) == 6 and torch.equal(maps[1], mask_variance(others))


def test_half_precision_keeps_the_masks(tiny):
    model, processor = tiny
    answer = query_logits(model, processor, noise_image(90, 60), QUERIES, uncertainty=True)
    half = answer.to("cpu", torch.float16)
    assert half.logits.dtype == torch.float16 and all(one.dtype == torch.float16 for one in half.rephrased)
    assert (half.masks() != answer.masks()).float().mean() < 1e-3
    assert (half.uncertainty() - answer.uncertainty()).abs().max() < 1e-2


def test_bytes_are_those_of_pixels_and_tensors(tiny):
    model, processor = tiny
    encoded = encode(model, processor, [noise_image(90, 60), noise_image(50, 40)])
    pixel_values = 2 * 3 * 56 * 56 * 4
    assert encoded.nbytes == 3 * (90 * 60 + 50 * 40) + pixel_values + encoded.embeddings.numel() * 4


def test_a_text_is_one_query(tiny):
    model, processor = tiny
    image = noise_image(40, 30)
    one = segment(model, processor, image, "the road")
    assert one.masks.shape == (1, 30, 40)
    assert torch.equal(one.masks, segment(model, processor, image, ["the road"]).masks)


@pytest.mark.parametrize("kind", ["alpha", "sixteen bits", "turned"])
def test_a_picture_as_pillow_opens_it_is_asked_as_the_one_that_it_shows(tiny, tmp_path, kind):
    model, processor = tiny
    file, shown = tmp_path / "picture.png", noise_image(90, 60)
    if kind == "alpha":
        picture = shown.copy()
        picture.putalpha(noise_image(90, 60, seed=1).convert("L"))
        picture.save(file)
    elif kind == "sixteen bits":
        grey = np.asarray(shown.convert("L"))
        Image.fromarray(grey.astype(np.uint16) * 257).save(file)
        shown = Image.fromarray(grey).convert("RGB")
    else:
        exif = Image.Exif()
        exif[0x0112] = 6  # turn it by a quarter to the right
        Image.fromarray(np.rot90(np.asarray(shown)).copy()).save(file, exif=exif)
    expected = segment(model, processor, shown, QUERIES)
    with Image.open(file) as opened:
        found = segment(model, processor, opened, QUERIES)
        (in_batch,) = segment_batch(model, processor, [opened], [QUERIES])
    in_batch = Segmentation(*(torch.cat([getattr(one, name) for one in in_batch]) for name in ("masks", "scores")))
    assert found.masks.shape == (3, 60, 90)
    for one in (found, in_batch):
        assert torch.equal(one.masks, expected.masks) and torch.equal(one.scores, expected.scores)


def test_several_encoded_images_are_not_asked_as_one(tiny):
    model, processor = tiny
    both = encode(model, processor, [noise_image(40, 30), noise_image(40, 30, seed=1)])
    with pytest.raises(ValueError, match="image: 2 encoded images"):
        segment(model, processor, both, QUERIES)


@pytest.mark.parametrize("ask", [segment_batch, answer_batch])
def test_batches_have_a_list_of_queries_for_each_image(tiny, ask):
    model, processor = tiny
    image = noise_image(40, 30)
    assert ask(model, processor, [], []) == []
    for images, queries, message in (
        ([image, image], [["a"]], "1 lists of queries for 2 images"),
        ([image], [["a"], ["b"]], "2 lists of queries for 1 images"),
        ([image], ["road"], "image 0 has the text 'road'; a list of texts would be right"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(model, processor, images, queries)
