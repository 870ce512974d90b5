"""The processor: what becomes a token, what never does, and masks back at image size."""

from __future__ import annotations

import tracemalloc
from copy import deepcopy

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing

from modeling_cora import SEG_TOKEN, CoraProcessor

from .conftest import noise_image


def test_seg_is_one_id(tiny):
    _, processor = tiny
    assert len(processor.tokenizer.encode(SEG_TOKEN, add_special_tokens=False)) == 1


@pytest.mark.parametrize("query", ["the [SEG] road", "<image> and <image>", "a</s>b<s>", "[SEG]", "<pad>", "<unk>"])
def test_text_of_the_user_never_becomes_a_special_token(tiny, query):
    _, processor = tiny
    inputs = processor(noise_image(20, 20), query)
    ids = inputs["input_ids"][0]
    tokenizer = processor.tokenizer
    assert (ids == tokenizer.convert_tokens_to_ids(SEG_TOKEN)).sum() == 1  # that of the answer
    assert (ids == tokenizer.convert_tokens_to_ids("<image>")).sum() == processor.num_image_tokens
    assert (ids == tokenizer.eos_token_id).sum() == 1
    branch = ids[inputs["branch_ids"][0] == 1]
    assert query in tokenizer.decode(branch)


def test_labels_are_the_answer_and_nothing_else(tiny):
    _, processor = tiny
    for answer in ("It is [SEG].", "[SEG].", "Sure, the result is [SEG]", "No.", "[SEG] and [SEG]"):
        inputs = processor(noise_image(20, 20), "the road", answers=[[answer]])
        learned = inputs["labels"][0][inputs["labels"][0] != -100]
        assert processor.tokenizer.decode(learned).strip() == answer + "</s>"
        assert torch.equal(learned, inputs["input_ids"][0][inputs["labels"][0] != -100])


def test_the_prompt_is_what_the_tokenizer_makes_of_the_whole_text(tiny):
    _, processor = tiny
    ids = processor(noise_image(20, 20), "Where is the tree?")["input_ids"][0].tolist()
    image = "<image>" * processor.num_image_tokens
    text = f"USER: {image}\nWhere is the tree? ASSISTANT: It is [SEG].</s>"
    assert ids == processor.tokenizer(text)["input_ids"]


@pytest.mark.parametrize("of_template", [False, True])
def test_a_prompt_has_one_first_token_whoever_writes_it(tiny, of_template):
    """The tokenizer as it makes each text longer, or the chat template, as those of Llama 3."""
    _, processor = tiny
    tokenizer = deepcopy(processor.tokenizer)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = tokenizer.bos_token_id
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    assert tokenizer("road")["input_ids"][0] == bos
    template = ("{{ bos_token }}" if of_template else "") + processor.chat_template
    own = CoraProcessor(
        processor.image_processor, processor.sam_image_processor, tokenizer, processor.num_image_tokens,
        chat_template=template,
    )  # fmt: skip
    ids = own(noise_image(20, 20), "the road")["input_ids"][0].tolist()
    assert ids[0] == bos and ids.count(bos) == 1
    assert ids[1:] == processor(noise_image(20, 20), "the road")["input_ids"][0].tolist()


LLAMA_3_TEMPLATE = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{% for part in m.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}<|eot_id|>{% endfor %}"
)
LLAMA_3_TOKENS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def test_tokens_that_only_the_tokenizers_file_marks_as_special_are_tokens(tiny):
    """As Llama 3's: they have no role, so transformers does not list them. A user's are characters all the same."""
    _, processor = tiny
    tokenizer = deepcopy(processor.tokenizer)
    tokenizer._tokenizer.add_special_tokens(LLAMA_3_TOKENS)
    assert not set(LLAMA_3_TOKENS) & set(tokenizer.all_special_tokens)
    own = CoraProcessor(
        processor.image_processor, processor.sam_image_processor, tokenizer, processor.num_image_tokens,
        chat_template=LLAMA_3_TEMPLATE,
    )  # fmt: skip
    image = "<image>" * processor.num_image_tokens
    text = (
        f"<|start_header_id|>user<|end_header_id|>\n\n{image}the road<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nIt is [SEG].<|eot_id|>"
    )
    ids = own(noise_image(20, 20), "the road")["input_ids"][0].tolist()
    assert ids == tokenizer(text)["input_ids"]
    said = own(noise_image(20, 20), "the road<|eot_id|><|start_header_id|>")["input_ids"][0].tolist()
    for token in tokenizer.convert_tokens_to_ids(LLAMA_3_TOKENS):
        assert said.count(token) == ids.count(token) == 2


def test_a_prompt_follows_the_template_and_the_tokenizer_as_they_are_now(tiny):
    _, processor = tiny
    image = noise_image(20, 20)
    processor(image, "the road")
    processor.chat_template = LLAMA_3_TEMPLATE
    text = processor.tokenizer.decode(processor(image, "the road")["input_ids"][0])
    assert "USER" not in text and "<|eot_id|>" in text
    size = len(processor.tokenizer)
    processor.tokenizer.add_special_tokens({"additional_special_tokens": LLAMA_3_TOKENS})
    assert (processor(image, "the road")["input_ids"] >= size).sum() == 6


@pytest.mark.parametrize(
    ("queries", "message"),
    [("word " * 2500, "tokens"), ("", "empty"), ("   ", "empty"), ([], "none|lists"), ([["a"], ["b"]], "2 lists")],
)
def test_bad_queries_get_one_line(tiny, queries, message):
    _, processor = tiny
    with pytest.raises(ValueError, match=message) as error:
        processor(noise_image(20, 20), queries)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (100, 1), (640, 480), (33, 47)])
def test_any_shape_of_image_gets_masks_of_its_own_size(tiny, size):
    model, processor = tiny
    inputs = processor(noise_image(*size), ["the road", "the sky"])
    with torch.no_grad():
        out = model(**inputs)
    (masks,) = processor.post_process_masks(
        out.pred_masks, out.seg_batch_index, inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )
    assert masks.shape == (2, size[1], size[0]) and masks.dtype == torch.bool


def test_logits_at_image_size_are_fp32_also_where_there_are_none(tiny):
    _, processor = tiny
    logits = torch.zeros(1, 32, 32, dtype=torch.bfloat16)
    sizes = torch.tensor([[30, 40], [30, 40]]), torch.tensor([[96, 128], [96, 128]])
    one, none = processor.post_process_masks(logits, torch.tensor([0]), *sizes, threshold=None)
    assert one.shape == (1, 30, 40) and none.shape == (0, 30, 40) and one.dtype == none.dtype == torch.float32


def test_an_image_too_narrow_for_sam_is_refused(tiny):
    _, processor = tiny
    with pytest.raises(ValueError, match="1x2000 pixels"):
        processor(noise_image(1, 2000), "the road")


def test_the_vision_tower_sees_the_whole_width_of_a_wide_image(tiny):
    _, processor = tiny
    pixels = np.zeros((40, 160, 3), np.uint8)
    pixels[:, :8], pixels[:, -8:] = (255, 0, 0), (0, 0, 255)
    seen = processor(Image.fromarray(pixels), "the road")["pixel_values"][0]
    assert seen[0, 28, 0] > 1.0 and seen[2, 28, -1] > 1.0


def test_a_long_strip_takes_no_room_for_the_square_around_it(tiny):
    """12000 x 60 pixels, padded to a square: 430 MB a copy. Of the strip as of a smaller one the same is seen."""
    _, processor = tiny
    strip = Image.fromarray(np.repeat(np.linspace(0, 255, 12000).astype(np.uint8)[None, :, None], 60, 0).repeat(3, 2))
    tracemalloc.start()
    seen = processor.image_inputs([strip])["pixel_values"]
    anchored = processor.anchor_inputs([strip], [[[np.ones((60, 12000), bool)]]])["anchor_pixel_values"]
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()
    smaller = strip.resize((4000, 20), Image.Resampling.BICUBIC)
    assert (seen - processor.image_inputs([smaller])["pixel_values"]).abs().max() < 0.05
    expected = processor.anchor_inputs([smaller], [[[np.ones((20, 4000), bool)]]])["anchor_pixel_values"]
    assert (anchored - expected).abs().max() < 0.05


def test_masks_of_images_without_seg_are_empty(tiny):
    _, processor = tiny
    sizes = torch.tensor([[10, 12], [7, 5]])
    masks = processor.post_process_masks(torch.ones(1, 32, 32), torch.tensor([1]), sizes, sizes)
    assert masks[0].shape == (0, 10, 12) and masks[1].shape == (1, 7, 5) and masks[1].all()
