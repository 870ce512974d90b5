"""The same tables through `datasets` alone, without a folder of our own (loading scripts are gone; classes work).

    from datasets_scripts.builders import CoraTables

    builder = CoraTables(config_name="instructions", data_dir="path/to/camvid")
    builder.download_and_prepare(num_proc=2)
    train = builder.as_dataset(split="train")
    stream = builder.as_streaming_dataset(split="train")

The cache is found by configuration, `VERSION` and what the data hold (of files name and size), not by code:
`download_and_prepare(download_mode="force_redownload")` makes the tables anew in any case.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import datasets

from .build import RULES, data_digests
from .folder import read_data
from .instructions.build import KINDS, scene_instructions
from .records import SPLITS, Instruction, Scene, SceneSet, by_image
from .tables import INSTRUCTION_FEATURES, SCENE_FEATURES, instruction_row, scene_row


@dataclass
class CoraTablesConfig(datasets.BuilderConfig):
    """
    Attributes:
        data_dir: folder with the data; its layout is recognised.
        split_lists: folder with `labeled.txt` and `unlabeled.txt`.
        kinds: of instructions, see `instructions.build.KINDS`.
        seed: of the phrasings.
    """

    split_lists: str | None = None
    kinds: tuple[str, ...] = KINDS
    seed: int = 0

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: datasets.Features | None = None) -> str:
        """Of data that have changed another one: rows of the old would be taken from the cache.

        Raises:
            DataError: as `read_data`.
        """
        data = data_digests(*read_data(self.data_dir, self.split_lists)) if self.data_dir else {}
        return super().create_config_id({**config_kwargs, "data": " ".join(data.values())}, custom_features)


class CoraTables(datasets.GeneratorBasedBuilder):
    """Configurations `scenes` and `instructions`; rows as in `tables.py`."""

    VERSION = datasets.Version(f"1.{RULES}.0")
    BUILDER_CONFIG_CLASS = CoraTablesConfig
    BUILDER_CONFIGS = [CoraTablesConfig(name="scenes"), CoraTablesConfig(name="instructions")]

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            features=SCENE_FEATURES if self.config.name == "scenes" else INSTRUCTION_FEATURES,
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        scene_set, brought = read_data(self.config.data_dir, self.config.split_lists, components=True)
        empty = replace(scene_set, scenes=())
        return [
            # a list is what `datasets` divides among processes
            datasets.SplitGenerator(
                split, {"scenes": list(scene_set.split(split)), "scene_set": empty, "brought": tuple(brought)}
            )
            for split in SPLITS
            if scene_set.split(split)
        ]

    def _generate_examples(
        self, scenes: list[Scene], scene_set: SceneSet, brought: tuple[Instruction, ...]
    ) -> Iterator[tuple[Any, dict[str, Any]]]:
        about = by_image(brought)
        for scene in scenes:
            if self.config.name == "scenes":
                yield scene.image_id, scene_row(scene_set, scene)
            elif scene.labelled:
                made = about.get(scene.image_id, [])
                if not brought:
                    made = scene_instructions(scene_set, scene, self.config.kinds, self.config.seed)
                for number, instruction in enumerate(made):
                    yield f"{scene.image_id}/{number}", instruction_row(instruction)
