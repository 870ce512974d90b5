"""Builds a data set: scenes and instructions as Parquet tables, ready to train on, to stream and to push.

    python -m datasets_scripts.build camvid --root DIR --out DIR
    python -m datasets_scripts.build folder --root DIR --out DIR --fractions 1/30 1/8 --workers 8 --skip_bad
    python -m datasets_scripts.build folder --root DIR --out DIR --instructions asked/instructions.jsonl
    python -m datasets_scripts.build folder --root DIR --out DIR --push_to_hub organisation/name --private

Instances are those of the data set and, of masses, patches (`components.py`). Work is done shard by shard, each
written whole; run again after an interruption it goes on with the shards that are missing, and the result is the same
to the byte, whatever the number of processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Any

import datasets
from tqdm import tqdm

from publishing.hub import make_repository

from .bad_items import reason_of, skipping
from .command_line import ArgumentParser, UsageError, not_negative, one_line_errors, positive, up_to_1
from .dataset_card import write_card
from .files import claim_folder, write_json, write_text
from .folder import READERS, read_data
from .instructions.build import (
    KINDS,
    MIN_CLASS_AREA,
    class_queries,
    object_instructions,
    read_instructions,
    shown_classes,
)
from .instructions.objects import SceneObjects
from .instructions.verify import check_names, check_set
from .processes import in_processes
from .push import push
from .records import SPLITS, DataError, Instruction, Scene, SceneSet, by_image
from .splits import draw_split, split_line, write_split
from .tables import (
    INSTRUCTION_FEATURES,
    SCENE_FEATURES,
    instruction_row,
    read_instruction_tables,
    scene_row,
    stored_bytes,
    write_table,
)

RULES = 6
"""Raised whenever the same data would give other tables than before; folders of another number are not continued."""
PROGRESS = ".progress"
"""Folder in DIR with a file for each finished shard; gone when all is done."""
MOST_BYTES = 2**30
"""Of the images in a shard, where it has more than one: a column of a table cannot hold 2 GiB."""


@dataclass(frozen=True)
class Shard:
    """Some consecutive scenes of one split with the instructions that were brought along, and where their tables go.

    `instructions` None: they are to be made. Those that are `added` come behind them.
    """

    split: str
    index: int
    count: int
    scenes: tuple[Scene, ...]
    instructions: tuple[Instruction, ...] | None = None
    added: tuple[Instruction, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.split}-{self.index:05d}-of-{self.count:05d}"


def shards_of(
    scene_set: SceneSet, size: int, brought: Sequence[Instruction] = (), added: Sequence[Instruction] = ()
) -> Iterator[Shard]:
    """All scenes in their order, `size` to a shard, or fewer where their images would take more than `MOST_BYTES`."""
    about = by_image(brought), by_image(added)
    for split in SPLITS:
        cut: list[list[Scene]] = []
        held = 0
        for scene in scene_set.split(split):
            held += (added_bytes := stored_bytes(scene.image))
            if not cut or len(cut[-1]) == size or held > MOST_BYTES:
                cut.append([])
                held = added_bytes
            cut[-1].append(scene)
        for index, chosen in enumerate(cut):
            own, more = (tuple(i for scene in chosen for i in each.get(scene.image_id, ())) for each in about)
            yield Shard(split, index, len(cut), tuple(chosen), own if brought else None, more)


def build_shard(out: Path, scene_set: SceneSet, shard: Shard, kinds: Sequence, seed: int, skip_bad: bool) -> None:
    """Writes both tables of a shard, and last of all the file that says so.

    Raises:
        DataError: a scene cannot be read, unless bad ones are to be skipped.
    """
    datasets.disable_progress_bars()
    scenes, instructions, skipped, classes = [], [], [], {}
    for scene in shard.scenes:
        try:
            row = scene_row(scene_set, scene)
            made = [i for i in shard.instructions or () if i.image_id == scene.image_id]
            shown = {i.class_name for i in made}
            if shard.instructions is None and scene.labelled:
                objects = SceneObjects.of_scene(scene_set, scene)
                made = object_instructions(scene.image_id, objects, kinds, seed)
                # not those of the instructions: fewer kinds would make other splits
                shown = {c.name for c in shown_classes(scene_set.classes, objects.labels)}
        except DataError as error:
            if not skip_bad:
                raise
            skipped.append({"image_id": scene.image_id, "reason": reason_of(error)})
            continue
        scenes.append(row)
        made += [i for i in shard.added if i.image_id == scene.image_id]
        instructions += [instruction_row(i) for i in made]
        if scene.labelled:
            classes[scene.image_id] = sorted(shown)
    write_table(out / "scenes" / f"{shard.name}.parquet", scenes, SCENE_FEATURES)
    write_table(out / "instructions" / f"{shard.name}.parquet", instructions, INSTRUCTION_FEATURES)
    done = {"skipped": skipped, "classes": classes, "scenes": len(scenes), "instructions": len(instructions)}
    write_text(out / PROGRESS / f"{shard.name}.json", json.dumps(done, ensure_ascii=False) + "\n")


def build(
    scene_set: SceneSet,
    out: Path,
    kinds: Sequence = KINDS,
    seed: int = 0,
    shard_size: int = 64,
    workers: int = 1,
    skip_bad: bool = False,
    fractions: Sequence[str] = (),
    name: str = "data",
    brought: Sequence[Instruction] = (),
    refused: Sequence[str] = (),
    licence: str | None = None,
    added: Sequence[Instruction] = (),
) -> dict[str, Any]:
    """Builds, or goes on building, the tables of a scene set.

    Args:
        fractions: such as "1/30": which of the labelled training scenes a split by `draw_split` shall label.
        name: of the data set, for its card.
        brought: instructions that the data set brings; where there are any, they take the place of ours.
        licence: of the images and labels, for the card; an identifier of the Hub such as "cc-by-4.0". Of a finished
            folder another one changes the card alone, and none leaves it as it is.
        added: instructions of other origin, see `read_added`; they come behind the others.
        refused: what the reader left out, see `bad_items.py`; listed before what is skipped here.

    Returns:
        numbers of scenes and instructions, and what was skipped.

    Raises:
        DataError: a scene cannot be read (with `skip_bad`: none can), or `out` holds something else.
    """
    shards = list(shards_of(scene_set, shard_size, brought, added))
    data = data_digests(scene_set, brought)
    settings: dict[str, Any] = {
        "rules": RULES,
        "name": name,
        **data,
        "kinds": list(kinds),
        "fractions": list(fractions),
        "seed": seed,
        "shard_size": shard_size,
        "skip_bad": skip_bad,
    }
    if added:
        settings["added instructions"] = _digest(map(repr, added))
    if any(len(shard.scenes) < shard_size for shard in shards if shard.index + 1 < shard.count):
        settings["bytes in a shard"] = MOST_BYTES
    claim_folder(out, "build.json", settings, of_data=[*data, "bytes in a shard"])
    if (out / "README.md").exists():
        return _finished(out, scene_set, name, licence)
    missing = [shard for shard in shards if not (out / PROGRESS / f"{shard.name}.json").exists()]
    with tqdm(total=len(scene_set.scenes), desc="building", unit="scene") as progress:
        progress.update(len(scene_set.scenes) - sum(len(shard.scenes) for shard in missing))
        # a shard brings its scenes along
        work = partial(build_shard, out, replace(scene_set, scenes=()), kinds=kinds, seed=seed, skip_bad=skip_bad)
        for number, _ in in_processes(work, missing, workers):
            progress.update(len(missing[number].scenes))
    done = [json.loads((out / PROGRESS / f"{s.name}.json").read_text(encoding="utf-8")) for s in shards]
    result: dict[str, Any] = {
        "scenes": sum(d["scenes"] for d in done),
        "instructions": sum(d["instructions"] for d in done),
        "skipped": [
            *({"image_id": None, "reason": reason} for reason in refused),
            *(entry for d in done for entry in d["skipped"]),
        ],
    }
    if not result["scenes"]:
        first = result["skipped"][0]["reason"] if result["skipped"] else "it has none"
        raise DataError(f"{name}: no scene could be read: {first}")
    result["never_shown"] = _never_shown(scene_set, done, name)
    result["license"] = licence
    _write_extras(out, scene_set, result, done, fractions, seed, name)
    shutil.rmtree(out / PROGRESS)
    return result


def data_digests(scene_set: SceneSet, brought: Sequence[Instruction]) -> dict[str, str]:
    """What tables depend on besides how they are made, each as 16 hexadecimal digits, by what it is called."""
    scenes = scene_set.scenes
    return {
        # lists of labelled images that differ make other sets
        "scenes": _digest(f"{scene.split} {scene.image_id} {scene.labelled}" for scene in scenes),
        "classes": _digest(map(repr, scene_set.classes)),
        "facts": _digest(f"{scene.group} {sorted(scene.facts.items())}" for scene in scenes),
        "source files": _digest(_source_files(scenes)),
        "instructions that the data set brings": _digest(map(repr, brought)),
    }


def _finished(out: Path, scene_set: SceneSet, name: str, licence: str | None) -> dict[str, Any]:
    """The numbers of a folder that is complete, its card written again where another licence is given."""
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    if licence not in (None, result["license"]):
        result["license"] = licence
        _write_card(out, scene_set, result, name)
        # last, so that a killed program's card is written again
        write_json(out / "result.json", result, ensure_ascii=False)
    return result


def read_added(paths: Sequence[Path], scene_set: SceneSet, workers: int = 1) -> list[Instruction]:
    """The instructions of files such as `ask_llm` writes. Whether they are true is for `verify` to say.

    Raises:
        DataError: a line is no instruction, or names an image, a class or an instance that the scenes do not have.
    """
    added, places = [], []
    for path in paths:
        added += (own := read_instructions(path))
        places += [f"{path}:{number}" for number in range(1, len(own) + 1)]
    found = check_set(scene_set, added, workers, progress=bool(added), check=check_names)
    for place, reasons in zip(places, found, strict=True):
        if reasons:
            how = "python -m datasets_scripts.verify FOLDER --data ROOT --drop takes such lines out of"
            raise DataError(f"{place}: {reasons[0]}; {how} FOLDER/instructions.jsonl")
    return added


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()[:16]


def images_digest(scenes: Sequence[Scene]) -> str:
    """What tells one list of images from another: 16 hexadecimal digits of their ids, and as `_source_files`."""
    return _digest(map(" ".join, zip((scene.image_id for scene in scenes), _source_files(scenes), strict=True)))


def _source_files(scenes: Sequence[Scene]) -> Iterator[str]:
    """Names and sizes of the files that scenes are read from, a line for each scene; not their folders, so that data
    may be moved. What changes a file and not its size is not noticed: reading all of them may take hours."""

    @cache  # one file may hold the maps of all images
    def told(path: Path) -> str:
        return f"{path.name} {path.stat().st_size if path.is_file() else 'missing'}"

    for scene in scenes:
        yield " ".join(told(path) for path in _files_of((scene.image, scene.label_map, scene.instance_map)))


def _files_of(source: object) -> Iterator[Path]:
    """The files that a place of an image or map refers to, in a fixed order; none of a cell of a table."""
    if isinstance(source, Path):
        yield source
    elif isinstance(source, tuple):
        for part in source:
            yield from _files_of(part)
    elif isinstance(source, Scene) or (is_dataclass(source) and hasattr(source, "open")):
        for part in fields(source):
            yield from _files_of(getattr(source, part.name))


def _never_shown(scene_set: SceneSet, done: Sequence[dict[str, Any]], name: str) -> list[str]:
    """The classes that are asked for and that no labelled training image shows.

    Raises:
        DataError: these are all classes: nothing could be learned. Masks of 0 and 255 are the usual reason.
    """
    train = {scene.image_id for scene in scene_set.split("train", labelled=True)}
    shown = {c for d in done for image_id, names in d["classes"].items() if image_id in train for c in names}
    asked = [c.name for c in scene_set.classes if c.asked]
    missing = [c for c in asked if c not in shown]
    if train and missing == asked:
        raise DataError(
            f"{name}: no labelled training image shows {' or '.join(missing)} on {MIN_CLASS_AREA:.2%} of its pixels or "
            "more; in a label map 255 means ignored, so masks of 0 and 255 say nothing: the class's id, or "
            "masks/CLASS/STEM.png, would be right; smaller things need smaller images, such as tiles"
        )
    return missing


def _write_extras(
    out: Path,
    scene_set: SceneSet,
    result: dict[str, Any],
    done: Sequence[dict[str, Any]],
    fractions: Sequence[str],
    seed: int,
    name: str,
) -> None:
    """Everything besides the tables; the card comes last and says that the set is complete."""
    write_json(out / "classes.json", {"classes": [asdict(c) for c in scene_set.classes]}, ensure_ascii=False)
    queries = {
        c.name: {kind: class_queries(c, kind) for kind in ("semantic", "attribute") if class_queries(c, kind)}
        for c in scene_set.classes
        if c.asked
    }
    write_json(out / "queries.json", queries, ensure_ascii=False)
    shown = {image_id: names for d in done for image_id, names in d["classes"].items()}
    train = {s.image_id: s for s in scene_set.split("train", labelled=True) if s.image_id in shown}
    groups = {image_id: scene.group or image_id for image_id, scene in train.items()}
    left_out = _left_out(result)
    without = [s.image_id for s in scene_set.split("train", labelled=False) if s.image_id not in left_out]
    for fraction in fractions:
        labelled, unlabelled = draw_split({i: shown[i] for i in train}, Fraction(fraction), seed, groups)
        lists = labelled, sorted([*unlabelled, *without])
        lines = [[split_line(f"{image_id}.png", f"{image_id}_labelTrainIds.png") for image_id in ids] for ids in lists]
        write_split(out / "splits" / fraction.replace("/", "_"), *lines)
    if result["skipped"]:
        write_text(out / "skipped.jsonl", "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in result["skipped"]))
    write_json(out / "result.json", result, ensure_ascii=False)
    _write_card(out, scene_set, result, name)


def _left_out(result: dict[str, Any]) -> set[str | None]:
    return {entry["image_id"] for entry in result["skipped"]}


def _write_card(out: Path, scene_set: SceneSet, result: dict[str, Any], name: str) -> None:
    held = replace(scene_set, scenes=tuple(s for s in scene_set.scenes if s.image_id not in _left_out(result)))
    write_card(out, name, held, read_instruction_tables(out), result["license"])


def renew_card(out: Path, scene_set: SceneSet, instructions: Sequence[Instruction]) -> None:
    """Writes the numbers and the preview of a finished folder again, after instructions were taken out."""
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    settings = json.loads((out / "build.json").read_text(encoding="utf-8"))
    result["instructions"] = len(instructions)
    write_json(out / "result.json", result, ensure_ascii=False)
    write_card(out, settings["name"], scene_set, instructions, result["license"])


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m datasets_scripts.build", description="Builds a data set as Parquet tables.")
    parser.add_argument("name", help=f"one of {' '.join(READERS)}; any other name: the layout is recognised")
    parser.add_argument("--root", type=Path, required=True, help="folder with the data")
    parser.add_argument("--out", type=Path, required=True, help="new or empty folder, or one to be continued")
    parser.add_argument("--split_lists", type=Path, help="folder with labeled.txt and unlabeled.txt")
    parser.add_argument(
        "--fractions", nargs="*", type=up_to_1, default=[], metavar="1/N", help="splits to draw, such as 1/30 1/16"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="(default: all)")
    parser.add_argument(
        "--instructions",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="add those of these files, as ask_llm writes",
    )
    parser.add_argument("--seed", type=not_negative, default=0, help="of phrasings and drawn splits (default: 0)")
    parser.add_argument("--shard_size", type=positive, default=64, help="scenes in a file (default: 64)")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--skip_bad", action="store_true", help="go on without scenes that cannot be read, list them")
    parser.add_argument("--license", help="of the images and labels, for the card, such as cc-by-4.0")
    parser.add_argument("--push_to_hub", metavar="NAME", help="upload the result to this data set repository")
    parser.add_argument("--private", action="store_true", help="which only its owners see, if it is new")
    given = parser.parse_args(argv)
    if given.private and not given.push_to_hub:
        raise UsageError("--private: goes with --push_to_hub")
    layout = given.name if given.name in READERS else None
    with skipping() if given.skip_bad else nullcontext([]) as refused:
        scene_set, brought = read_data(given.root, given.split_lists, layout, components=True)
    added = read_added(given.instructions, scene_set, given.workers)
    # before the work, which may take hours; after the data are known to be there
    repo_id = make_repository(given.push_to_hub, "dataset", given.private) if given.push_to_hub else None
    result = build(
        scene_set,
        given.out,
        given.kinds,
        given.seed,
        given.shard_size,
        given.workers,
        given.skip_bad,
        given.fractions,
        given.name,
        brought,
        [reason_of(error) for error in refused],
        given.license,
        added,
    )
    print(f"{given.out}: {result['scenes']} scenes, {result['instructions']} instructions")
    if result["never_shown"]:
        missing, least = ", ".join(result["never_shown"]), f"{MIN_CLASS_AREA:.2%} of the pixels or more"
        print(f"no labelled training image shows {missing} ({least}): nothing of it can be learned")
    if not any(c.noun for c in scene_set.classes if c.asked):
        print("no query describes one thing among others: that takes instances, and classes with a noun")
    for entry in result["skipped"]:
        print(f"skipped {entry['image_id'] or 'an entry'}: {entry['reason']}")
    if repo_id:
        print(f"pushed: {push(given.out, repo_id)}")


if __name__ == "__main__":
    main()
