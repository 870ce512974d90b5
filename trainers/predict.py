"""Answers queries about an image with masks, drawn as a picture.

    python trainers/predict.py --model DIR --image FILE --query "the vehicle with four wheels" --out overlay.png
    python trainers/predict.py --model DIR --image FILE --query "the road" --query "the sky" --out overlay.png
    python trainers/predict.py --model DIR --image FOLDER --query "the road" --out FOLDER

All queries of an image share one forward pass. The picture shows the image, the masks in distinct colours, the queries
and the model's own estimate of each mask's IoU. `--masks` writes each mask as a PNG (0 and 255) beside the picture;
`--uncertainty` writes, and shows beside the picture, where the answers to equivalent queries differ (eq. 6).
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # run as a file: `import evaluate` would find trainers/evaluate.py in place of the library
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse

from PIL import Image
from tqdm.auto import tqdm

from datasets_scripts.command_line import ArgumentParser, UsageError, one_line_errors
from datasets_scripts.files import write_image
from datasets_scripts.own_folder import IMAGE_SUFFIXES
from datasets_scripts.records import read_image
from modeling_cora.loading import pick_device
from modeling_cora.pictures import captioned, grid, heat_map, overlay
from modeling_cora.segmentation import Segmentation, segment
from trainers.loading import load_trained


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a CORA model")
    parser.add_argument("--image", required=True, type=Path, help="image file, or a folder of images")
    parser.add_argument("--query", required=True, action="append", help="what to segment; may be given several times")
    parser.add_argument("--out", required=True, type=Path, help="picture to write; a folder where --image is one")
    parser.add_argument("--threshold", type=float, default=0.0, help="of the mask logit (default 0)")
    parser.add_argument("--masks", action="store_true", help="write each mask as a PNG too")
    parser.add_argument("--uncertainty", action="store_true", help="show where answers to rephrased queries differ")
    parser.add_argument("--device", default=None, help="default: a GPU where there is one")
    return parser.parse_args(argv)


def _jobs(image: Path, out: Path) -> list[tuple[Path, Path]]:
    """(image file, picture file) pairs."""
    if not image.is_dir():
        return [(image, out)]
    # a name with a dot in front is some program's own: macOS writes ._photo.jpg beside photo.jpg
    found = (path for path in image.iterdir() if path.is_file() and not path.name.startswith("."))
    files = sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UsageError(f"--image {image}: a folder without images ({' '.join(sorted(IMAGE_SUFFIXES))})")
    return [(file, out / f"{file.stem}.png") for file in files]


def _mask_path(out: Path, index: int) -> Path:
    return out.with_name(f"{out.stem}_mask{index}.png")


def _uncertainty_path(out: Path, index: int) -> Path:
    return out.with_name(f"{out.stem}_uncertainty{index}.png")


def _refuse_overwriting(jobs: list[tuple[Path, Path]], arguments: argparse.Namespace) -> None:
    """Raises:
    UsageError: a file to write is one of the images, or that of another image too.
    """
    images = {image.resolve() for image, _ in jobs}
    written: dict[Path, Path] = {}
    for image, out in jobs:
        files = [out]
        for asked, name in ((arguments.masks, _mask_path), (arguments.uncertainty, _uncertainty_path)):
            files += [name(out, index) for index in range(len(arguments.query)) if asked]
        for file in files:
            place = file.resolve()
            if place in images:
                raise UsageError(f"--out {arguments.out}: {file} is an image that is asked about; another place for it")
            if place in written:
                raise UsageError(
                    f"--image {arguments.image}: {written[place].name} and {image.name} would both be written to "
                    f"{file}; one of them needs another name"
                )
            written[place] = image


def _save(image: Image.Image, path: Path) -> None:
    try:
        write_image(path, image)
    except (ValueError, OSError) as error:
        raise UsageError(f"--out {path}: cannot be written ({error}); use .png or .jpg") from None


def _write(image: Image.Image, queries: list[str], result: Segmentation, out: Path, masks: bool) -> None:
    labels = [f"{query}  {score:.2f}" for query, score in zip(queries, result.scores.tolist(), strict=True)]
    picture = overlay(image, result.masks.numpy(), labels)
    if result.uncertainty is not None:
        maps = [4 * one for one in result.uncertainty.numpy()]  # a variance of probabilities is at most 1/4
        heat = [captioned(heat_map(image, one), f"uncertain: {q}") for one, q in zip(maps, queries, strict=True)]
        picture = grid([[picture, *heat]])
        for index, one in enumerate(maps):
            grey = Image.fromarray((one * 255).round().astype("uint8"))
            _save(grey, _uncertainty_path(out, index))
    _save(picture, out)
    if masks:
        for index, mask in enumerate(result.masks.numpy()):
            _save(Image.fromarray(mask.astype("uint8") * 255), _mask_path(out, index))


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    arguments = _parse(argv)
    jobs = _jobs(arguments.image, arguments.out)
    _refuse_overwriting(jobs, arguments)
    device = pick_device(arguments.device)
    model, processor = load_trained(arguments.model)
    model.to(device)
    for image_path, out in tqdm(jobs, desc="segmenting", unit="image"):
        image = read_image(image_path)
        try:
            result = segment(
                model, processor, image, arguments.query, arguments.threshold, uncertainty=arguments.uncertainty
            )
        except ValueError as error:
            raise UsageError(f"{image_path}: {error}") from None
        _write(image, arguments.query, result, out, arguments.masks)


if __name__ == "__main__":
    main()
