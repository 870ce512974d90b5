"""UniMatch, UniMatch V2 and SemiVL on whole batches: which images go where, and CLIP's part in SemiVL."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPModel, CLIPVisionModelWithProjection

from datasets_scripts.cityscapes import CLASSES as CITYSCAPES
from datasets_scripts.command_line import UsageError
from datasets_scripts.records import SemanticClass
from trainers.pseudo_labels.arguments import MethodArguments, SegmenterArguments
from trainers.pseudo_labels.backbones import build_segmenter, concept_embeddings, frozen_clip
from trainers.pseudo_labels.clip import FrozenClip, dense_features, mean_of_concepts, word_embeddings
from trainers.pseudo_labels.concepts import CITYSCAPES_CONCEPTS, concepts_of
from trainers.pseudo_labels.losses import consistency, pseudo_labels
from trainers.pseudo_labels.methods import Step
from trainers.pseudo_labels.methods.semivl import SemiVL
from trainers.pseudo_labels.methods.unimatch import UniMatch
from trainers.pseudo_labels.methods.unimatch_v2 import UniMatchV2, swapped
from trainers.pseudo_labels.perturbation import channel_dropout_masks
from trainers.pseudo_labels.text_decoder import SimilarityDecoder, best_of_class

from . import small_backbones

CLASSES = (SemanticClass(0, "road"), SemanticClass(1, "sky"), SemanticClass(2, "car"))
SIZE = (24, 32)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return small_backbones.save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory, clip_folder):
    return {
        "segformer": small_backbones.save_segformer(tmp_path_factory.mktemp("segformer")),
        "dpt": small_backbones.save_dinov2(tmp_path_factory.mktemp("dinov2")),
        "semivl": clip_folder,
    }


def arguments_of(folders, architecture: str, **options) -> SegmenterArguments:
    return SegmenterArguments(
        architecture=architecture, backbone=str(folders[architecture]), decoder_channels=16, **options
    )


def segmenter_of(folders, architecture: str):
    return build_segmenter(arguments_of(folders, architecture), CLASSES, SIZE, 0)


def batch_of(count: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def noise():
        return torch.randint(0, 256, (count, 3, *SIZE), dtype=torch.uint8, generator=generator)

    names = ("labelled", "weak", "strong1", "strong2", "mix_weak", "mix_strong1", "mix_strong2")
    batch = {name: noise() for name in names}
    batch["labels"] = torch.randint(0, 3, (count, *SIZE), generator=generator).to(torch.uint8)
    batch["ignore"], batch["mix_ignore"] = torch.zeros(2, count, *SIZE, dtype=torch.uint8)
    batch["ignore"][:, :, -4:], batch["mix_ignore"][:, -5:] = 255, 255
    batch["box1"] = torch.tensor([[2, 3, 12, 20], [0, 0, 0, 0]] * (count // 2))
    batch["box2"] = torch.tensor([[10, 16, 24, 32], [5, 5, 20, 9]] * (count // 2))
    batch["feature_seed"], batch["dropped"] = torch.arange(count) + 7, torch.tensor([0, 1] * (count // 2))
    return batch


def pasted(own: torch.Tensor, other: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """The slow way, on numpy."""
    result = own.clone().numpy()
    for k, (top, left, bottom, right) in enumerate(boxes.tolist()):
        result[k][..., top:bottom, left:right] = other[k].numpy()[..., top:bottom, left:right]
    return torch.from_numpy(result)


def test_unimatch_on_a_batch_by_a_second_way(folders):
    """Each pass alone, in the slow way; without BatchNorm's batch statistics, passes together and alone are one."""
    segmenter = segmenter_of(folders, "dpt").train()
    batch, method = batch_of(), UniMatch(MethodArguments(confidence_threshold=0.35))
    terms = {k: v.value for k, v in method.terms(Step(segmenter, segmenter, batch)).items()}
    with torch.no_grad():
        confidence, labels = pseudo_labels(segmenter.logits(batch["weak"]))
        confidence_mix, labels_mix = pseudo_labels(segmenter.logits(batch["mix_weak"]))
        expected = {"labelled_loss": F.cross_entropy(segmenter.logits(batch["labelled"]), batch["labels"].long())}
        for k in (1, 2):
            box = batch[f"box{k}"]
            images = pasted(batch[f"strong{k}"], batch[f"mix_strong{k}"], box)
            target, sure = pasted(labels, labels_mix, box), pasted(confidence, confidence_mix, box)
            ignore = pasted(batch["ignore"], batch["mix_ignore"], box)
            loss = F.cross_entropy(segmenter.logits(images), target, reduction="none")
            kept = (sure >= 0.35) & (ignore == 0)
            expected[f"strong{k}_loss"] = (loss * kept).sum() / (ignore == 0).sum()
        masks = channel_dropout_masks(batch["feature_seed"].tolist(), segmenter.network.channels, 0.5)
        pixels = segmenter.normalised(batch["weak"])
        features = [f * m[:, :, None, None] for f, m in zip(segmenter.network.encode(pixels), masks, strict=True)]
        logits = F.interpolate(
            segmenter.network.decode(features), pixels.shape[-2:], mode="bilinear", align_corners=True
        )
        logits = logits[..., : SIZE[0], : SIZE[1]]
        expected["feature_loss"] = consistency(logits, labels, confidence, batch["ignore"], 0.35).value
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), abs=1e-5) and value > 0, name


def test_unimatch_v2_on_a_batch_by_a_second_way(folders):
    """Pseudo-labels are the teacher's; boxes are filled from the neighbour; one image keeps its features whole."""
    segmenter = segmenter_of(folders, "dpt").train()
    method = UniMatchV2(MethodArguments(confidence_threshold=0.35), segmenter)
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch = batch_of()
    terms = {k: v.value for k, v in method.terms(Step(segmenter, segmenter, batch)).items()}
    with torch.no_grad():
        confidence, labels = pseudo_labels(method.teacher.logits(batch["weak"]))
        for k in (1, 2):
            box, neighbour = batch[f"box{k}"], [1, 0]
            images = pasted(batch[f"strong{k}"], batch[f"strong{k}"][neighbour], box)
            target, sure = pasted(labels, labels[neighbour], box), pasted(confidence, confidence[neighbour], box)
            ignore = pasted(batch["ignore"], batch["ignore"][neighbour], box)
            features = segmenter.network.encode(segmenter.normalised(images))
            drawn = [torch.rand(16, generator=torch.Generator().manual_seed(seed)) < 0.5 for seed in (7, 8)]
            mask = torch.stack([torch.ones(16), 2.0 * (drawn[1] if k == 1 else ~drawn[1])])
            logits = segmenter.network.decode([f * mask[:, :, None, None] for f in features])
            logits = F.interpolate(logits, (28, 35), mode="bilinear", align_corners=True)[..., : SIZE[0], : SIZE[1]]
            value = consistency(logits, target, sure, ignore, 0.35).value
            assert terms[f"strong{k}_loss"].item() == pytest.approx(value.item(), abs=1e-5) and value > 0


def test_the_teacher_follows_the_student_and_takes_no_gradient(folders):
    segmenter = segmenter_of(folders, "segformer").train()
    method = UniMatchV2(MethodArguments(), segmenter)
    assert not any(p.requires_grad for p in method.teacher.parameters()) and not method.teacher.training
    weight = "network.decoder.classifier.weight"
    before = method.teacher.state_dict()[weight].clone()
    with torch.no_grad():
        segmenter.network.decoder.classifier.weight.add_(1.0)
    student = segmenter.state_dict()[weight]
    method.after_step(segmenter, 3)
    assert torch.allclose(method.teacher.state_dict()[weight], 0.75 * before + 0.25 * student)
    method.after_step(segmenter, 10_000)
    now = 0.75 * before + 0.25 * student
    assert torch.allclose(method.teacher.state_dict()[weight], 0.996 * now + 0.004 * student, atol=1e-6)
    assert method.trained(segmenter) is method.teacher


def test_neighbours_swap():
    assert swapped(torch.arange(6)).tolist() == [1, 0, 3, 2, 5, 4]
    assert torch.equal(swapped(torch.arange(2)), torch.arange(2).flip(0))  # the public code, 2 images per GPU


# -- SemiVL ------------------------------------------------------------------------------------------------------------


def test_there_are_54_concepts_for_19_classes():
    assert list(CITYSCAPES_CONCEPTS) == [c.name for c in CITYSCAPES]
    assert sum(map(len, CITYSCAPES_CONCEPTS.values())) == 54
    assert concepts_of((SemanticClass(0, "car"), SemanticClass(1, "gland"))) == [
        ["car", "jeep", "SUV", "van"],
        ["gland"],
    ]


def test_dense_features_are_those_of_clip_where_attention_is_the_identity(clip_folder):
    """With one patch and no class token to look at, attention has one choice; so its value path is all there is."""
    model = CLIPVisionModelWithProjection.from_pretrained(clip_folder, projection_dim=12).eval()
    pixels = torch.randn(2, 3, 32, 32)
    first, *_, last = model.vision_model.encoder.layers
    captured = {}
    hooks = [
        layer.register_forward_pre_hook(lambda module, inputs: captured.update({module: inputs[0]}))
        for layer in (first, last)
    ]
    with torch.no_grad():
        model.vision_model(pixels)
        for hook in hooks:
            hook.remove()
        found, skips = dense_features(model, pixels, (0,))
        # patch 4 of 16, alone
        skip, alone = (layer(captured[layer][:, 5:6], None) for layer in (first, last))
        expected = model.visual_projection(model.vision_model.post_layernorm(alone))[:, 0]
    assert found.shape == (2, 12, 4, 4) and skips[0].shape == (2, 16, 4, 4)
    assert torch.allclose(found[:, :, 1, 0], expected, atol=1e-5)
    assert torch.allclose(skips[0][:, :, 1, 0], skip[:, 0], atol=1e-5)


def test_word_embeddings_are_clips_text_features(clip_folder):
    from transformers import AutoTokenizer

    model, tokenizer = CLIPModel.from_pretrained(clip_folder).eval(), AutoTokenizer.from_pretrained(clip_folder)
    found = word_embeddings(model, tokenizer, ["road", "sky"])
    tokens = tokenizer("a photo of a sky", return_tensors="pt")
    with torch.no_grad():
        expected = model.text_projection(model.text_model(tokens["input_ids"]).pooler_output)[0]
    assert torch.allclose(found[1], expected / expected.norm(), atol=1e-5)
    mean = mean_of_concepts(torch.eye(3), [2, 1])
    assert torch.allclose(mean, torch.tensor([[0.5**0.5, 0.5**0.5, 0], [0, 0, 1.0]]))


def test_only_attention_and_positions_of_clip_train(folders):
    segmenter = segmenter_of(folders, "semivl")
    trained = {n for n, p in segmenter.network.backbone.named_parameters() if p.requires_grad}
    assert all("self_attn" in name or "position_embedding" in name for name in trained)
    layers = {name.split("layers.")[1][0] for name in trained if "layers." in name}
    assert layers == {"0", "1", "2"} and any("position_embedding" in name for name in trained)
    assert not any("layers.2" in name and ("q_proj" in name or "k_proj" in name) for name in trained)
    assert all(p.requires_grad for p in segmenter.network.decoder.parameters())
    assert not segmenter.network.text_embeddings.requires_grad


def test_the_decoder_knows_classes_by_their_words_alone():
    """Classes in another order give the same maps in that order: no output belongs to a class."""
    decoder = SimilarityDecoder(16, text_width=12, skip_widths=[8, 8]).eval()
    embeddings, text = torch.randn(2, 12, 6, 8), torch.randn(5, 12)
    skips = [torch.randn(2, 8, 6, 8) for _ in range(2)]
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        maps, reordered = decoder(embeddings, text, skips), decoder(embeddings, text[order], skips)
        assert maps.shape == (2, 5, 24, 32)
        assert torch.allclose(reordered, maps[:, order], atol=1e-5)
        assert torch.allclose(decoder(embeddings[:1], text, [s[:1] for s in skips]), maps[:1], atol=1e-5)
        fewer = decoder(embeddings, text[:4], skips)
    assert not torch.allclose(fewer, maps[:, :4], atol=1e-3)  # classes reason about one another


def test_a_class_is_its_best_concept():
    maps = torch.randn(2, 4, 3, 3)
    found = best_of_class(maps, [1, 3])
    assert torch.equal(found[:, 0], maps[:, 0])
    assert torch.equal(found[:, 1], torch.maximum(torch.maximum(maps[:, 1], maps[:, 2]), maps[:, 3]))


def test_each_concept_may_have_its_own_map(folders, tmp_path):
    path = tmp_path / "concepts.json"
    path.write_text('{"road": ["road", "street"], "sky": ["sky"], "car": ["car"]}')
    each = arguments_of(folders, "semivl", decoder_concepts="each", concepts=str(path))
    segmenter = build_segmenter(each, CLASSES, SIZE, 0)
    assert segmenter.network.text_embeddings.shape == (4, 12)
    assert segmenter.logits(batch_of()["weak"]).shape == (2, 3, *SIZE)
    embeddings = concept_embeddings(str(folders["semivl"]), [["road", "street"], ["sky"], ["car"]], 12)
    assert torch.allclose(segmenter.network.text_embeddings, embeddings)


def test_frozen_clip_says_nothing_where_it_is_not_sure(folders):
    clip = frozen_clip(arguments_of(folders, "semivl"), segmenter_of(folders, "semivl"))
    assert isinstance(clip, FrozenClip) and not any(p.requires_grad for p in clip.parameters())
    # words that are nearly one, so that a random tower is not sure of everything
    noise = torch.randn(clip.embeddings.shape, generator=torch.Generator().manual_seed(0))
    clip.embeddings.copy_(F.normalize(clip.embeddings[:1] + 0.02 * noise, dim=-1))
    images = batch_of()["weak"]
    every = clip.labels(images, 0.0)
    assert every.shape == (2, *SIZE) and (every != 255).all() and every.max() < 3
    pixels = (images.float() / 255 - clip.mean) / clip.std
    with torch.no_grad():
        dense, _ = dense_features(clip.model, pixels)
        cosine = torch.stack([torch.cosine_similarity(dense, e[:, None, None], dim=1) for e in clip.embeddings], 1)
    parts = list(cosine.split(clip.concepts_of_class, dim=1))
    scores = torch.stack([part.max(1).values for part in parts], 1)
    scores = F.interpolate(scores, SIZE, mode="bilinear", align_corners=False)
    sure = (100 * scores).softmax(1).max(1)
    # in the widest gap of the middle: rounding must not decide on which side a pixel is
    ordered = sure.values.flatten().sort().values
    middle = ordered[len(ordered) * 3 // 10 : len(ordered) * 7 // 10]
    threshold = middle[middle.diff().argmax() :][:2].mean().item()
    found = clip.labels(images, threshold)
    assert torch.equal(every, sure.indices) and 0.3 < (sure.values >= threshold).float().mean() < 0.7
    assert torch.equal(found, torch.where(sure.values >= threshold, sure.indices, 255))


@pytest.mark.parametrize("statistics", ["all", "clean"])
def test_strong_views_move_batch_norms_statistics_where_all_passes_do(folders, statistics):
    arguments = MethodArguments(confidence_threshold=0.0, batch_norm_statistics=statistics)
    batch = batch_of()
    one, other = (segmenter_of(folders, "segformer").train() for _ in range(2))
    method = UniMatch(arguments)
    method.terms(Step(one, one, batch))
    passes = method.passes(Step(other, other, batch), [insides(batch["box1"]), insides(batch["box2"])])
    other([passes[0]])
    same = torch.equal(one.network.decoder.batch_norm.running_mean, other.network.decoder.batch_norm.running_mean)
    assert same == (statistics == "clean")
    strong = UniMatchV2(arguments, other).passes(Step(other, other, batch), [insides(batch["box1"])] * 2)[1]
    assert strong.statistics == ("none" if statistics == "clean" else "all")


def test_guidance_decays_to_nothing_and_joins_the_loss(folders):
    segmenter = segmenter_of(folders, "semivl").train()
    clip = frozen_clip(arguments_of(folders, "semivl"), segmenter)
    method = SemiVL(MethodArguments(method="semivl", guidance_threshold=0.0), clip)
    assert method.arguments.confidence == "image_mean"
    start, middle, end = method.weights(0.0), method.weights(0.5), method.weights(1.0)
    assert start["strong1_guidance"] == start["strong2_guidance"] == pytest.approx(0.025)
    assert start["feature_guidance"] == pytest.approx(0.05)
    assert middle["feature_guidance"] == pytest.approx(0.025) and end["feature_guidance"] == 0
    assert start["labelled_loss"] == end["labelled_loss"] == 0.5
    batch = batch_of()
    step = Step(segmenter, segmenter, batch)
    terms = method.terms(step)
    assert terms.keys() == start.keys()
    logits, strong = segmenter(method.passes(step, [torch.zeros(2, *SIZE, dtype=torch.bool)] * 2))
    own = clip.labels(batch["weak"], 0.0)
    own[batch["ignore"] == 255] = 255
    expected = F.cross_entropy(logits[-2:], own, ignore_index=255, reduction="sum") / own.numel()
    assert terms["feature_guidance"].value.item() == pytest.approx(expected.item(), rel=1e-4)
    mix = clip.labels(batch["mix_weak"], 0.0)
    mix[batch["mix_ignore"] == 255] = 255
    _, strong = segmenter(method.passes(step, [insides(batch["box1"]), insides(batch["box2"])]))
    target = pasted(own, mix, batch["box2"])
    expected = F.cross_entropy(strong[2:], target, ignore_index=255, reduction="sum") / own.numel()
    assert terms["strong2_guidance"].value.item() == pytest.approx(expected.item(), rel=1e-4)
    unguided = SemiVL(MethodArguments(method="semivl"), None)
    assert set(unguided.weights(0.0)) == set(unguided.terms(step)) == set(start) - {n for n in start if "guid" in n}


def insides(boxes: torch.Tensor) -> torch.Tensor:
    inside = np.zeros((len(boxes), *SIZE), bool)
    for k, (top, left, bottom, right) in enumerate(boxes.tolist()):
        inside[k, top:bottom, left:right] = True
    return torch.from_numpy(inside)


def test_a_random_start_has_nothing_to_guide_by():
    arguments = SegmenterArguments(architecture="semivl", backbone="clip-vit-tiny", decoder_channels=16)
    segmenter = build_segmenter(arguments, CLASSES, SIZE, 0)
    with pytest.raises(UsageError, match="guidance_weight 0"):
        frozen_clip(arguments, segmenter)
    # there is nothing worth keeping frozen either
    assert all(p.requires_grad for n, p in segmenter.named_parameters() if "mlp" in n)
