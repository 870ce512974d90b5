"""Geometry: an image that encodes its own coordinates is cut, mirrored and pasted, and everything must still agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets_scripts.records import DataError, Scene, SceneSet, SemanticClass
from trainers.pseudo_labels.arguments import SegmentationDataArguments, StrongViewArguments
from trainers.pseudo_labels.augmentation import colour_jitter, pixels, random_crop, strong_view, turn_hue
from trainers.pseudo_labels.cutmix import box_masks, paste
from trainers.pseudo_labels.dataset import SemiSupervisedDataset, Views, collate
from trainers.pseudo_labels.scenes import TrainingScenes, read_training_scenes

from .conftest import noise_image

HEIGHT, WIDTH, CELL = 60, 90, 6


def coordinates(height: int = HEIGHT, width: int = WIDTH) -> tuple[Image.Image, np.ndarray]:
    """An image whose red is x and whose green is y (2 per pixel), and a label map of cells of 6 x 6 pixels."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([2 * x + 10, 2 * y + 10, np.full_like(x, 255)], -1).astype(np.uint8)
    labels = ((y // CELL) * (WIDTH // CELL) + x // CELL).astype(np.uint8)
    return Image.fromarray(image), labels


def cell_of(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a pixel (3, H, W) came from, in pixels of the original."""
    return (image[0].astype(float) - 10) / 2, (image[1].astype(float) - 10) / 2


def assert_aligned(image: np.ndarray, labels: np.ndarray, ignore: np.ndarray):
    """Labels say the cell that the image's own colours say, up to a pixel at the cells' borders."""
    real = ignore == 0
    assert np.array_equal(image[2] == 0, ~real), "padding is black and nothing else is"
    assert (labels[~real] == 255).all() and (labels[real] != 255).all()
    x, y = cell_of(image)
    label_x, label_y = labels % (WIDTH // CELL) * CELL, labels // (WIDTH // CELL) * CELL
    for own, start in ((x, label_x), (y, label_y)):
        inside = (own >= start - 1.6) & (own <= start + CELL + 0.6)
        assert inside[real].all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    crop=st.sampled_from([(30, 45), (60, 90), (64, 20), (20, 100)]),
    scales=st.sampled_from([(0.5, 2.0), (1.0, 1.0), (0.4, 0.4)]),
)
def test_labels_and_ignore_map_travel_with_the_image(seed, crop, scales):
    arguments = SegmentationDataArguments(
        crop_height=crop[0], crop_width=crop[1], scale_min=scales[0], scale_max=scales[1]
    )
    image, labels = coordinates()
    cut, cut_labels, ignore = random_crop(image, labels, arguments, np.random.default_rng(seed))
    assert cut.size == crop[::-1] and cut_labels.shape == ignore.shape == crop
    assert_aligned(pixels(cut), cut_labels, ignore)


def test_the_shorter_side_is_rounded_as_in_the_public_code():
    arguments = SegmentationDataArguments(crop_height=4, crop_width=6, scale_min=0.5, scale_max=0.5, flip=0)
    ignore = random_crop(noise_image(10, 3), None, arguments, np.random.default_rng(0))[2]
    assert (ignore[:2, :5] == 0).all() and (ignore == 0).sum() == 10  # 3 x 5 / 10 + .5 = 2


def test_scales_crops_and_flips_are_drawn_from_their_whole_range():
    arguments = SegmentationDataArguments(crop_height=30, crop_width=45)
    image, labels = coordinates()
    flips, scales, lefts, tops = 0, [], [], []
    for seed in range(300):
        cut, _, ignore = random_crop(image, labels, arguments, np.random.default_rng(seed))
        x, y = cell_of(pixels(cut))
        row = x[0][ignore[0] == 0]
        step = (row[-1] - row[0]) / (len(row) - 1)
        flips += step < 0
        scales.append(1 / abs(step))
        lefts.append(row.min())
        tops.append(y[0, 22])
    assert 120 < flips < 180
    assert 0.45 < min(scales) < 0.6 and 1.8 < max(scales) < 2.2
    assert np.mean(np.array(scales) < 1.25) == pytest.approx(0.5, abs=0.1)
    assert min(lefts) < 2 and max(lefts) > 50 and min(tops) < 2 and max(tops) > 30


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_cutmix_pastes_image_labels_confidence_and_ignore_map_alike(seed):
    """After the paste every pixel's label is still the one that its colours say, and its confidence too."""
    rng = np.random.default_rng(seed)
    arguments = SegmentationDataArguments(crop_height=40, crop_width=60)
    crops = [random_crop(*coordinates(), arguments, rng) for _ in range(2)]
    images, labels, ignore = (torch.from_numpy(np.stack(part)) for part in zip(*[
        (pixels(image), maps, ignored) for image, maps, ignored in crops
    ], strict=True))  # fmt: skip
    confidence = images[:, 0].float() / 255
    top, left = int(rng.integers(0, 20)), int(rng.integers(0, 30))
    inside = box_masks(torch.tensor([[top, left, top + 15, left + 25]]), 40, 60)
    mixed = [paste(one[:1], one[1:], inside)[0].numpy() for one in (images, labels, ignore, confidence)]
    assert_aligned(*mixed[:3])
    assert np.allclose(mixed[3], mixed[0][0] / 255)
    assert np.array_equal(mixed[0][:, top : top + 15, left : left + 25], images[1, :, top : top + 15, left : left + 25])


def test_a_strong_view_moves_no_pixel_and_only_changes_colours():
    """A white square on black stays where it is under every jitter; blur moves its edge by a few pixels at most."""
    pattern = np.zeros((40, 60, 3), np.uint8)
    pattern[10:30, 15:40] = 255
    image = Image.fromarray(pattern)
    changed = 0
    for seed in range(40):
        view = np.asarray(strong_view(image, StrongViewArguments(), np.random.default_rng(seed))).astype(int)
        assert view.shape == (40, 60, 3)
        assert view[15:25, 20:35].min() > view[:4].max() + 20
        changed += (view != pattern).any()
    assert changed > 20


def test_colour_jitter_stays_within_its_factors():
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    only = replace(StrongViewArguments(), contrast=0.0, saturation=0.0, hue=0.0)
    values = [np.asarray(colour_jitter(grey, only, np.random.default_rng(s)))[0, 0, 0] for s in range(200)]
    assert 49 <= min(values) < 60 and 140 < max(values) <= 150


def test_a_third_of_the_hue_circle_turns_red_into_green():
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    turned = np.asarray(turn_hue(red, 1 / 3))[0, 0].astype(int)
    assert turned[1] > 250 and turned[0] < 10 and turned[2] < 10
    assert np.array_equal(np.asarray(turn_hue(red, 0.0)), np.asarray(red))


# -- the data set ------------------------------------------------------------------------------------------------------

BOTH = Views(unlabelled=True, mix=True)
CLASSES = (SemanticClass(3, "road"), SemanticClass(7, "sky", asked=False), SemanticClass(9, "car"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> TrainingScenes:
    folder = tmp_path_factory.mktemp("scenes")
    made = []
    for number in range(5):
        noise_image(64, 48, number).save(folder / f"{number}.png")
        labels = np.full((48, 64), 3, np.uint8)
        labels[:20], labels[:, :5] = 7, 255
        Image.fromarray(labels).save(folder / f"{number}_labels.png")
        made.append(
            Scene(str(number), folder / f"{number}.png", folder / f"{number}_labels.png" if number < 2 else None)
        )
    scene_set = SceneSet(CLASSES, tuple(made))
    return TrainingScenes(scene_set, tuple(made[:2]), tuple(made[2:]), (), CLASSES[:2], ("car",))


def dataset(scenes, seed=0, length=40, views=BOTH, **options) -> SemiSupervisedDataset:
    crop = SegmentationDataArguments(crop_height=32, crop_width=40, scene_cache_gigabytes=3.1e-5)  # two of them
    return SemiSupervisedDataset(scenes, views, crop, StrongViewArguments(**options), length, seed)


def assert_same(first: dict, second: dict):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_item_k_depends_on_the_seed_and_k_alone(scenes):
    forwards, other = dataset(scenes), dataset(scenes, length=30)
    expected = [forwards[k] for k in range(8)]
    for k in reversed(range(8)):
        assert_same(other[k], expected[k])
    assert not torch.equal(dataset(scenes, seed=1)[0]["weak"], expected[0]["weak"])


def test_every_image_comes_once_in_each_pass(scenes):
    items = dataset(scenes)
    for stream, count in ((0, 2), (1, 3)):
        for start in range(0, 4 * count, count):
            order = [items._order(stream, (start + k) // count, count)[(start + k) % count] for k in range(count)]
            assert sorted(order) == list(range(count))


def test_items_have_class_indices_and_uint8_images(scenes):
    item = dataset(scenes)[0]
    assert item["labelled"].dtype == item["labels"].dtype == torch.uint8
    assert item["labelled"].shape == (3, 32, 40) and item["labels"].shape == (32, 40)
    assert set(torch.cat([dataset(scenes)[k]["labels"].flatten() for k in range(10)]).unique().tolist()) == {0, 1, 255}
    assert set(item["ignore"].unique().tolist()) <= {0, 255}
    batch = collate([dataset(scenes)[k] for k in range(3)])
    assert batch["mix_strong2"].shape == (3, 3, 32, 40) and batch["box1"].shape == (3, 4)
    assert set(dataset(scenes, views=Views(False, False))[0]) == {"labelled", "labels"}


def test_boxes_are_filled_from_another_image_or_another_crop_of_the_same(scenes):
    """As the paper says, or as the public code does; told by which of the three files a crop was cut from."""

    def partners(**options):
        items = dataset(scenes, **options)
        items._views = lambda image, rng: {"weak": np.array(image)[:1, :4]}
        return [torch.equal(items[k]["weak"], items[k]["mix_weak"]) for k in range(30)]

    assert all(partners(mix_partner="same_image"))
    assert sum(partners(mix_partner="other_image")) < 20


def test_shrunk_images_keep_their_labels_where_they_were(tmp_path):
    """`image_scale`: a pixel's label is still the one that its colours say, from the first image to the last crop."""
    image, labels = coordinates()
    image.save(tmp_path / "a.png")
    Image.fromarray(labels).save(tmp_path / "a_labels.png")
    classes = tuple(SemanticClass(k, f"cell {k}") for k in range(int(labels.max()) + 1))
    scene = Scene("a", tmp_path / "a.png", tmp_path / "a_labels.png")
    scenes = TrainingScenes(SceneSet(classes, (scene,)), (scene,), (scene,), (), classes, ())
    arguments = SegmentationDataArguments(
        image_scale=0.5, crop_height=HEIGHT // 2, crop_width=WIDTH // 2, scale_min=1, scale_max=1, flip=0
    )
    items = SemiSupervisedDataset(scenes, BOTH, arguments, StrongViewArguments(), 2, 0)
    found, found_labels = items[0]["labelled"].numpy(), items[0]["labels"].numpy()
    assert_aligned(found, found_labels, np.zeros_like(found_labels))
    # the whole picture, half as wide and high
    x, y = cell_of(found)
    assert x[0, 0] < 2 and y[0, 0] < 2 and x[-1, -1] > WIDTH - 3 and y[-1, -1] > HEIGHT - 3
    assert np.array_equal(items[0]["weak"], found)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_blur_follows_the_image_scale(scenes, scale):
    """A single bright pixel's spread is the sigma: of two pixels at the image's own size, one at half of it."""
    only = dict(jitter_probability=0, grey_probability=0, blur_probability=1, blur_sigma_min=2, blur_sigma_max=2)
    crop = SegmentationDataArguments(crop_height=41, crop_width=41, image_scale=scale, scale_min=1, scale_max=1)
    items = SemiSupervisedDataset(scenes, BOTH, crop, StrongViewArguments(**only), 1, 0)
    point = np.zeros((41, 41, 3), np.uint8)
    point[20, 20] = 255
    view = items._views(Image.fromarray(point), np.random.default_rng(0))["strong1"][0].astype(float)
    rows = np.arange(41) - 20
    spread = np.sqrt((view.sum(1) * rows**2).sum() / view.sum())
    assert spread == pytest.approx(2 * scale, rel=0.2)


# -- bad input ---------------------------------------------------------------------------------------------------------


def folder_with(tmp_path: Path, size=(64, 48), unlabelled=1) -> Path:
    for name in ("images", "masks", "unlabelled"):
        (tmp_path / name).mkdir()
    noise_image(64, 48).save(tmp_path / "images" / "a.png")
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(tmp_path / "masks" / "a.png")
    for number in range(unlabelled):
        noise_image(*size).save(tmp_path / "unlabelled" / f"u{number}.png")
    (tmp_path / "classes.json").write_text('{"0": "road", "1": "car"}')
    return tmp_path


def read(folder: Path, needed=True, **options) -> TrainingScenes:
    crop = dict(crop_height=32, crop_width=40)
    return read_training_scenes(SegmentationDataArguments(str(folder), **crop | options), needed, progress=False)


def test_no_unlabelled_image_is_told_unless_the_method_needs_none(tmp_path):
    folder = folder_with(tmp_path, unlabelled=0)
    with pytest.raises(DataError, match="no unlabelled training image"):
        read(folder)
    assert len(read(folder, needed=False).labelled) == 1


def test_an_image_smaller_than_the_crop_is_named(tmp_path):
    folder = folder_with(tmp_path, size=(64, 30))
    with pytest.raises(DataError, match=r"u0\.png: 64x30 is smaller than the crop 40x32"):
        read(folder)
    assert len(read(folder, small_images="pad").unlabelled) == 1
    assert len(read(folder, image_scale=2).unlabelled) == 1
    with pytest.raises(DataError, match=r"a\.png: 32x24 \(image_scale 0\.5\) is smaller than the crop 40x32"):
        read(folder, image_scale=0.5)
    assert len(read(folder, needed=False).labelled) == 1


def test_sizes_are_those_of_the_upright_image(tmp_path):
    """A phone held on its side stores 64x30 pixels of a photo that is 30 wide and 64 high."""
    folder, exif = folder_with(tmp_path, size=(64, 30)), Image.Exif()
    exif[0x0112] = 6
    for path in folder.rglob("u*.png"):
        Image.open(path).save(path, exif=exif)
    with pytest.raises(DataError, match=r"u0\.png: 30x64 is smaller than the crop 40x32"):
        read(folder)
    assert len(read(folder, crop_height=40, crop_width=30, small_images="error", needed=True).unlabelled) == 1


def test_a_class_that_no_labelled_image_shows(tmp_path):
    folder = folder_with(tmp_path)
    left = read(folder)
    assert [c.name for c in left.classes] == ["road"] and left.absent == ("car",)
    assert [c.name for c in read(folder, absent_classes="keep").classes] == ["road", "car"]
    with pytest.raises(DataError, match="none of the 1 labelled images shows car"):
        read(folder, absent_classes="error")
