"""Segmenters: backbones from folders and from names, features in between, sliding windows, scores."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Backbone, ResNetModel, SegformerModel
from transformers.modeling_layers import GradientCheckpointingLayer

from datasets_scripts.command_line import UsageError
from datasets_scripts.records import DataError, Scene, SceneSet, SemanticClass
from trainers.pseudo_labels import batch_norm, evaluation
from trainers.pseudo_labels.arguments import SegmenterArguments
from trainers.pseudo_labels.backbones import build_segmenter, random_start
from trainers.pseudo_labels.batch_norm import CrossProcessBatchNorm2d, synchronise_batch_norm
from trainers.pseudo_labels.evaluation import (
    confusion_matrix,
    evaluate_scenes,
    predict_probabilities,
    predict_scene,
    scores,
    window_starts,
)
from trainers.pseudo_labels.networks import dilate_last_stage
from trainers.pseudo_labels.segmenter import SemanticSegmenter, View
from trainers.pseudo_labels.trainer import SemiSupervisedSegmentationTrainer

from . import small_backbones

CLASSES = (SemanticClass(2, "road"), SemanticClass(5, "sky"), SemanticClass(9, "car"))
FAMILIES = {
    "segformer": small_backbones.save_segformer,
    "dpt": small_backbones.save_dinov2,
    "deeplabv3plus": small_backbones.save_resnet,
    "semivl": small_backbones.save_clip,
}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    return {name: save(tmp_path_factory.mktemp(name)) for name, save in FAMILIES.items()}


def segmenter_of(backbones, architecture: str, **options) -> SemanticSegmenter:
    arguments = SegmenterArguments(
        architecture=architecture, backbone=str(backbones[architecture]), decoder_channels=16, **options
    )
    return build_segmenter(arguments, CLASSES, (32, 40), seed=0)


WITH_SKIPS = "semivl, skip encoder"


def any_segmenter(backbones, name: str) -> SemanticSegmenter:
    if name == WITH_SKIPS:
        return segmenter_of(backbones, "semivl", skip_encoder=str(backbones["deeplabv3plus"]))
    return segmenter_of(backbones, name)


def images(count=2, height=45, width=58) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize("architecture", [*FAMILIES, WITH_SKIPS])
def test_logits_have_the_image_size_and_survive_saving(backbones, tmp_path, architecture):
    """45 x 58 is a multiple of no patch size."""
    segmenter = any_segmenter(backbones, architecture).eval()
    batch = images()
    with torch.no_grad():
        logits = segmenter.logits(batch)
        assert logits.shape == (2, 3, 45, 58)
        assert logits.std() > 0 and not torch.equal(logits[0], logits[1])
        segmenter.save_pretrained(tmp_path)
        again = SemanticSegmenter.from_pretrained(tmp_path).eval()
        assert torch.equal(again.logits(batch), logits)
    assert again.config.class_ids == [2, 5, 9] and again.config.window == [32, 40]
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("architecture", [*FAMILIES, WITH_SKIPS])
def test_every_trained_parameter_gets_a_gradient(backbones, architecture):
    """Otherwise several processes would wait for one another."""
    segmenter = any_segmenter(backbones, architecture).train()
    (logits,) = segmenter([View(images())])
    (logits * torch.randn_like(logits)).sum().backward()
    silent = [n for n, p in segmenter.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent


@pytest.mark.parametrize("architecture", ["segformer", "dpt", "semivl"])
def test_activation_checkpointing_changes_no_gradient(backbones, architecture):
    """Also with the network's own stochastic depth, and none of what is drawn or counted is done twice."""
    batch, found = images(), []
    for checkpointed in (False, True):
        segmenter = segmenter_of(backbones, architecture, dropout=True).train()
        calls = []
        layer = next(m for m in segmenter.modules() if isinstance(m, GradientCheckpointingLayer))
        if checkpointed:
            segmenter.activation_checkpointing_enable()
        next(m for m in layer.modules() if isinstance(m, torch.nn.LayerNorm)).register_forward_hook(
            lambda *given, calls=calls: calls.append(1)
        )
        torch.manual_seed(3)
        clean, masks = View(batch), [torch.ones(2, width) / 2 for width in segmenter.network.channels]
        logits = segmenter([clean, View(batch, masks, statistics="none")])
        torch.cat(logits).square().mean().backward()
        gradients = {n: p.grad for n, p in segmenter.named_parameters() if p.grad is not None}
        found.append((gradients, dict(segmenter.named_buffers()), len(calls)))
    (plain, buffers, once), (again, buffers_again, twice) = found
    assert twice > once and plain.keys() == again.keys()
    assert all(torch.allclose(again[name], plain[name], atol=1e-7) for name in plain)
    assert all(torch.equal(buffers_again[name], buffers[name]) for name in buffers)


def test_the_skip_encoder_is_a_resnets_first_stage_with_its_own_normalisation(backbones):
    segmenter = any_segmenter(backbones, WITH_SKIPS).eval()
    network, batch = segmenter.network, images(2, 48, 64)
    reference = ResNetModel.from_pretrained(backbones["deeplabv3plus"]).eval()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = (batch.float() / 255 - mean) / std
    with torch.no_grad():
        finer, coarser, embeddings = network.encode(segmenter.normalised(batch))
        expected = reference(pixels, output_hidden_states=True).hidden_states[1]
    assert finer.shape == (2, 8, 12, 16) and coarser.shape == (2, 16, 6, 8) and embeddings.shape == (2, 12, 6, 8)
    torch.testing.assert_close(finer, expected, atol=1e-5, rtol=1e-4)
    assert network.channels == [8, 16, 12]
    assert not any(name.startswith("encoder.stages.1") for name, _ in network.skip_encoder.named_parameters())


def test_the_skip_encoder_decides_what_is_answered_and_trains_as_a_backbone(backbones):
    segmenter = any_segmenter(backbones, WITH_SKIPS).eval()
    batch = images()
    rates = SimpleNamespace(learning_rate=1.0, head_learning_rate_multiplier=100.0, weight_decay=0.01)
    groups = SemiSupervisedSegmentationTrainer.parameter_groups(SimpleNamespace(args=rates), segmenter)
    of_rate = {group["lr"]: {id(p) for p in group["params"]} for group in groups}
    own = {id(p) for p in segmenter.network.skip_encoder.parameters()}
    assert set(of_rate) == {1.0, 100.0} and own < of_rate[1.0]
    assert {group["weight_decay"] for group in groups} == {0.01}  # as mmcv reads SemiVL's configuration
    with torch.no_grad():
        before = segmenter.logits(batch)
        for parameter in segmenter.network.skip_encoder.parameters():
            parameter.mul_(1.5)
        assert not torch.allclose(segmenter.logits(batch), before)


def test_weights_come_from_the_folder(backbones):
    own = segmenter_of(backbones, "segformer").network.backbone.state_dict()
    theirs = SegformerModel.from_pretrained(backbones["segformer"]).state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in theirs)


def test_weights_stored_in_half_precision_are_trained_in_fp32(backbones, tmp_path):
    Dinov2Backbone.from_pretrained(backbones["dpt"]).half().save_pretrained(tmp_path)
    segmenter = segmenter_of({"dpt": tmp_path}, "dpt")
    assert {p.dtype for p in segmenter.parameters()} == {torch.float32}


def test_dpt_sees_the_backbones_four_levels_with_the_final_norm(backbones):
    segmenter = segmenter_of(backbones, "dpt").eval()
    own = dict(out_indices=[1, 2, 3, 4], apply_layernorm=True, reshape_hidden_states=True)
    reference = Dinov2Backbone.from_pretrained(backbones["dpt"], **own)
    pixels = torch.randn(1, 3, 28, 35)
    with torch.no_grad():
        for own, theirs in zip(segmenter.network.encode(pixels), reference(pixels).feature_maps, strict=True):
            assert own.shape == (1, 16, 4, 5) and torch.allclose(own, theirs, atol=1e-6)


def test_dpt_attends_as_the_backbone_alone_does(backbones):
    backbone = segmenter_of(backbones, "dpt").network.backbone
    assert backbone.config._attn_implementation == "sdpa" == Dinov2Backbone(backbone.config).config._attn_implementation


@pytest.mark.parametrize("grid", [(4, 6), (5, 7), (13, 18)])
def test_dpt_goes_up_to_the_size_of_each_level(backbones, grid):
    """As UniMatch V2's head does: on an odd grid each level keeps its values, where transformers' neck blurs them."""
    network = segmenter_of(backbones, "dpt").network.eval()
    features = [torch.randn(2, 16, *grid) for _ in range(4)]

    def unit(layer, x):
        return layer.convolution2(layer.convolution1(x.relu()).relu()) + x

    with torch.no_grad():
        layers = zip(network.neck.convs, network.neck.reassemble_stage.layers, features, strict=True)
        levels = [conv(layer(one)) for conv, layer, one in layers]
        path, sizes = None, [levels[2].shape[2:], levels[1].shape[2:], levels[0].shape[2:], None]
        for layer, level, size in zip(network.neck.fusion_stage.layers, levels[::-1], sizes, strict=True):
            path = level if path is None else path + unit(layer.residual_layer1, level)
            path = unit(layer.residual_layer2, path)
            to = dict(scale_factor=2) if size is None else dict(size=size)
            path = layer.projection(torch.nn.functional.interpolate(path, **to, mode="bilinear", align_corners=True))
        found, by_transformers = network.decode(features), network.head(network.neck.fusion_stage(levels)[-1])
    assert found.shape[-2:] == (8 * grid[0], 8 * grid[1])
    torch.testing.assert_close(found, network.head(path), atol=1e-5, rtol=1e-4)
    even = all(side % 2 == 0 for side in grid)
    assert (found.shape == by_transformers.shape and torch.allclose(found, by_transformers, atol=1e-5)) == even


@pytest.mark.parametrize("name", ["dinov2-small", "dinov2-base"])
def test_dpt_takes_the_layers_2_5_8_11(name):
    from trainers.pseudo_labels.backbones import _prepare

    config = random_start(name)
    _prepare(config, SegmenterArguments(architecture="dpt"))
    assert [index - 1 for index in config.out_indices] == [2, 5, 8, 11]  # counted from 0, without the patch embedding


def test_a_dilated_last_stage_keeps_a_sixteenth_and_the_weights(backbones):
    features = {}
    for stride in (16, 32):
        network = segmenter_of(backbones, "deeplabv3plus", output_stride=stride, atrous_rates=[1, 2]).network
        features[stride] = network.encode(torch.randn(1, 3, 64, 96))
    assert features[16][-1].shape[-2:] == (4, 6) and features[32][-1].shape[-2:] == (2, 3)
    assert features[16][0].shape == features[32][0].shape == (1, 8, 16, 24)
    backbone = segmenter_of(backbones, "deeplabv3plus", output_stride=32).network.backbone
    before = [m.stride for m in backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    dilate_last_stage(backbone)
    after = [m.dilation for m in backbone.encoder.stages[-1].modules() if isinstance(m, torch.nn.Conv2d)]
    assert (2, 2) in before and after.count((2, 2)) == 2  # both 3x3 of the second block


def test_the_start_depends_on_the_seed_alone(backbones):
    arguments = SegmenterArguments(backbone=str(backbones["segformer"]), decoder_channels=16)
    first, second = (build_segmenter(arguments, CLASSES, (32, 40), 3).state_dict() for _ in range(2))
    other = build_segmenter(arguments, CLASSES, (32, 40), 4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["network.decoder.classifier.weight"], other["network.decoder.classifier.weight"])


def test_features_are_perturbed_instead_or_beside(backbones):
    segmenter = segmenter_of(backbones, "segformer").eval()
    batch, channels = images(3), segmenter.network.channels
    ones = [torch.ones(3, width) for width in channels]
    zeros = [torch.zeros(1, width) for width in channels]
    with torch.no_grad():
        clean = segmenter.logits(batch)
        (same,) = segmenter([View(batch, ones)])
        (both,) = segmenter([View(batch, zeros, beside=True)])
        black = segmenter.network.decode([torch.zeros_like(f) for f in segmenter.network.encode(batch.float())])
    assert torch.allclose(same, clean, atol=1e-6)
    assert both.shape == (4, 3, 45, 58) and torch.allclose(both[:3], clean, atol=1e-6)
    assert torch.allclose(both[3].mean((1, 2)), black[0].mean((1, 2)), atol=1e-5)


def batch_norms(segmenter) -> dict[str, torch.Tensor]:
    found = {n: b.clone() for n, b in segmenter.named_buffers() if n.endswith(("running_mean", "running_var"))}
    assert found
    return found


def test_processes_on_cpus_beside_a_gpu_share_their_statistics_on_cpus(monkeypatch):
    """torch's own kind refuses what lies on a CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for device, kind in (("cpu", CrossProcessBatchNorm2d), ("cuda", torch.nn.SyncBatchNorm)):
        model = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
        assert type(synchronise_batch_norm(model, torch.device(device))[0]) is kind


def test_processes_on_cpus_normalise_16_bit_features_in_fp32(monkeypatch):
    """Two processes of the same batch, under autocast, against torch's own BatchNorm."""
    torch.manual_seed(0)
    batch = (5 + torch.randn(2, 3, 8, 8)).bfloat16()
    own, other = (torch.nn.Sequential(torch.nn.BatchNorm2d(3)) for _ in range(2))
    expected = own(batch.float())
    monkeypatch.setattr(batch_norm.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(batch_norm.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(batch_norm.collective, "all_reduce", lambda value: 2 * value)
    found = synchronise_batch_norm(other, torch.device("cpu"))(batch)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(other[0].running_mean, own[0].running_mean)


@pytest.mark.parametrize("architecture", ["segformer", "deeplabv3plus"])
def test_with_clean_statistics_perturbed_features_move_none(backbones, architecture):
    """BatchNorm predicts by what it has seen of clean images, and normalises these by themselves."""
    batch = images(3)
    first, second = (segmenter_of(backbones, architecture).train() for _ in range(2))
    masks = [torch.zeros(2, width) for width in first.network.channels]
    (alone,) = first([View(batch)])
    (both,) = second([View(batch, masks, beside=True, statistics="clean")])
    assert both.shape[0] == 5 and torch.equal(both[:3], alone)
    assert all(torch.equal(value, batch_norms(second)[name]) for name, value in batch_norms(first).items())
    before = batch_norms(second)
    momenta = {m.momentum for m in second.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    (unseen,) = second([View(batch, statistics="none")])
    assert torch.equal(unseen, alone) and momenta == {0.1}
    assert all(torch.equal(value, before[name]) for name, value in batch_norms(second).items())
    assert {m.momentum for m in second.modules() if isinstance(m, torch.nn.BatchNorm2d)} == momenta
    second([View(batch, masks, beside=True)])
    assert not any(torch.equal(value, before[name]) for name, value in batch_norms(second).items() if "mean" in name)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_dropout_of_the_network_itself_is_off(backbones, architecture):
    segmenter = segmenter_of(backbones, architecture).train()
    batch = images()
    with torch.no_grad():
        first, second = (segmenter([View(batch)])[0] for _ in range(2))
    assert torch.equal(first, second)
    if architecture == "segformer":
        segmenter = segmenter_of(backbones, architecture, dropout=True).train()
        with torch.no_grad():
            first, second = (segmenter([View(batch)])[0] for _ in range(2))
        assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(backbone="/no/such/folder"), "/no/such/folder"),
        (dict(backbone=""), "not given"),
        (dict(backbone="resnet-18"), "is a resnet; architecture segformer needs a segformer"),
        (dict(skip_encoder="resnet-18"), "skip_encoder resnet-18: architecture segformer has none"),
        (
            dict(architecture="semivl", backbone="clip-vit-tiny", skip_encoder="mit-b0"),
            "skip_encoder mit-b0: is a segformer; a resnet is needed",
        ),
        (
            dict(architecture="semivl", backbone="clip-vit-tiny", skip_encoder="/no/such/folder"),
            "skip_encoder /no/such/folder: no size",
        ),
    ],
)
def test_a_backbone_that_cannot_be_used_is_told(options, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match=message):
        build_segmenter(SegmenterArguments(**options), CLASSES, (32, 40), 0)


def test_weights_that_lack_something_are_told(backbones, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in backbones["segformer"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights[next(name for name in weights if "layer_norm" in name)]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="its weights lack"):
        build_segmenter(SegmenterArguments(backbone=str(tmp_path)), CLASSES, (32, 40), 0)


# -- prediction and scores ---------------------------------------------------------------------------------------------


class Stub:
    """Says class 1 where a pixel is bright, the surer the brighter; and how often it was asked about which size."""

    classes, device, training = ["road", "sky", "car"], torch.device("cpu"), False

    def __init__(self):
        self.sizes = []
        self.config = type("Config", (), {"class_ids": [2, 5, 9], "window": [20, 30], "image_scale": 1.0})

    def logits(self, batch):
        self.sizes += [tuple(batch.shape[-2:])] * len(batch)
        bright = batch.float().mean(1) / 25.5 - 5
        # the mean makes an answer depend on its window
        return torch.stack([torch.zeros_like(bright), bright, bright.mean((1, 2), keepdim=True).expand_as(bright)], 1)

    def eval(self):
        return self

    def train(self, mode=True):
        return self


def test_windows_cover_every_pixel_and_end_with_the_image():
    assert window_starts(100, 100, 66) == [0] == window_starts(50, 100, 66)
    for length in range(20, 90):
        starts = window_starts(length, 20, 13)
        assert starts[0] == 0 and starts[-1] == length - 20 and len(set(starts)) == len(starts)
        assert all(0 < b - a <= 13 for a, b in itertools.pairwise(starts))


@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_probabilities_are_the_mean_over_windows(monkeypatch, at_once):
    monkeypatch.setattr(evaluation, "WINDOWS_AT_ONCE", at_once)
    image, stub = images(1, 33, 47)[0], Stub()
    found = predict_probabilities(stub, image, (20, 30), 2 / 3)
    assert set(stub.sizes) == {(20, 30)}
    expected, times = np.zeros((3, 33, 47)), np.zeros((33, 47))
    for top in (0, 13):
        for left in (0, 17):
            part = stub.logits(image[None, :, top : top + 20, left : left + 30])[0].softmax(0).numpy()
            expected[:, top : top + 20, left : left + 30] += part
            times[top : top + 20, left : left + 30] += 1
    assert np.allclose(found.numpy(), expected / times, atol=1e-6)
    assert predict_probabilities(stub, image[:, :10, :12], (20, 30)).shape == (3, 10, 12)


def test_answers_of_a_segmenter_of_smaller_images_have_the_image_s_size(tmp_path):
    stub = Stub()
    stub.config.window, stub.config.image_scale = [24, 32], 0.5
    pattern = np.zeros((48, 64, 3), np.uint8)
    pattern[16:, 32:] = 255
    Image.fromarray(pattern).save(tmp_path / "a.png")
    mask, confidence = predict_scene(stub, Scene("a", tmp_path / "a.png"), 2 / 3)
    assert stub.sizes == [(24, 32)] and mask.shape == confidence.shape == (48, 64)
    inside = np.zeros((48, 64), bool)
    inside[16:, 32:] = True
    assert np.array_equal(mask == 5, inside)
    stub.config.window, stub.config.image_scale, stub.sizes = [20, 30], 1.0, []
    predict_scene(stub, Scene("a", tmp_path / "a.png"), 2 / 3)
    assert set(stub.sizes) == {(20, 30)} and len(stub.sizes) == 12


def test_scores_by_a_slow_second_way():
    rng = np.random.default_rng(0)
    labels = rng.choice([2, 5, 255], (30, 40)).astype(np.uint8)
    predicted = rng.choice([2, 5, 9], (30, 40)).astype(np.uint8)
    found = scores(confusion_matrix(labels, predicted, CLASSES), CLASSES)
    known = labels != 255
    iou = {}
    for name, number in (("road", 2), ("sky", 5)):
        truth, answer = (labels == number) & known, (predicted == number) & known
        iou[name] = (truth & answer).sum() / (truth | answer).sum()
    assert found["iou"] == pytest.approx(iou)  # no car in the truth
    assert found["miou"] == pytest.approx(np.mean(list(iou.values())))
    assert found["accuracy"] == pytest.approx((labels == predicted)[known].mean())
    assert scores(np.zeros((3, 3), int), CLASSES)["miou"] is None


def test_a_perfect_prediction_scores_one(tmp_path):
    from PIL import Image

    labels = np.full((40, 50), 2, np.uint8)
    labels[10:25, 5:40] = 5
    Image.fromarray(np.where(labels == 5, 255, 0).astype(np.uint8)).save(tmp_path / "image.png")
    Image.fromarray(labels).save(tmp_path / "labels.png")
    scene = Scene("a", tmp_path / "image.png", tmp_path / "labels.png")
    stub = Stub()
    stub.logits = lambda batch: torch.stack([255 - batch[:, 0].float(), batch[:, 0].float(), 0 * batch[:, 0]], 1)
    matrix = evaluate_scenes(stub, SceneSet(CLASSES, (scene,)), [scene], 2 / 3, progress=False)
    assert scores(matrix, CLASSES)["miou"] == 1.0 and matrix.sum() == 2000


def test_concepts_file(tmp_path, backbones):
    path = tmp_path / "concepts.json"
    path.write_text(json.dumps({"car": ["car", "van"], "sky": ["sky"]}))
    assert segmenter_of(backbones, "semivl", concepts=str(path)).config.concepts == [
        ["road"],
        ["sky"],
        ["car", "van"],
    ]
    for content, message in (
        ('{"lorry": ["a"]}', "'lorry' is not one of"),
        ('{"car": []}', "not a list"),
        ("[", "JSON"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            segmenter_of(backbones, "semivl", concepts=str(path))
