"""Steps of a run: programs of this project, each with a folder of its own, none done twice.

A step's folder is named by what decides its content: the program, its fields, what the files hold that they name and
the steps that it builds on. Whoever asks for the same again, in another run or after an interruption, gets the same
folder; whoever changes a field gets another one, and with it every step that comes after. The code is no part of the
name, or a comment would cost a training; that a step was done by other code is told where its folder is taken.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils.memory import clear_device_cache
from filelock import AcquireReturnProxy, FileLock, Timeout

from datasets_scripts.command_line import UsageError
from datasets_scripts.files import write_json

from .file_hashes import FileHashes
from .recipe_parser import as_word, parse_recipe, read_recipe, read_yaml

RESUMES = ("--resume_from_checkpoint", "true")
"""What training programs need to go on where they were interrupted."""
WITHOUT_EFFECT = {
    "dataloader_num_workers", "disable_tqdm", "embedding_cache", "embedding_cache_gigabytes", "output_dir",
    "save_steps", "save_total_limit", "scene_cache_gigabytes", "workers",
}  # fmt: skip
"""Fields on which no step's content depends: with another one an interrupted step goes on. A recipe's `output_dir` is
overridden by the step's own."""
MODELS = {"model", "backbone", "skip_encoder", "concepts", "start_from"}
"""Fields that may name a folder or file of this machine; else it is a Hub id or a size."""
DONE = ".done.json"
"""`NAME-KEY.done.json` beside the folder `NAME-KEY` says that the step came to its end."""
ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("modeling_cora", "trainers", "datasets_scripts", "metrics")
"""Whose modules decide what a step gives."""
LOCK = ".{name}.{rank}.lock"
"""Held by the run that does the step NAME-KEY, on the machine RANK. The system frees it when that run ends, however it
ends."""


class Launch(NamedTuple):
    """What `accelerate launch` decides and the content of a step depends on.

    Attributes:
        processes: that share the work of a step, all machines together; with their number grows the batch.
        precision: no, bf16, fp16.
    """

    processes: int = 1
    precision: str = "no"


@dataclass(frozen=True)
class Step:
    """One call of one program.

    Attributes:
        name: in words; the folder's name begins with it.
        module: of the program; its `main(argv)` is called.
        fields: what it is given. Values that are steps stand for their folders.
        output: the field that takes the step's own folder.
        recipe: a YAML file of further fields, which `fields` override.
        arguments: the dataclasses that its recipe and fields fill; empty for a program that has none. They are checked
            before the first step of a run begins.
        words: what stands before all fields, such as the layout that `datasets_scripts.build` reads.
        launched: whether `accelerate launch` may start it on several devices.
        resumes: a flag that makes the program go on where it was interrupted, if it needs one.
    """

    name: str
    module: str
    fields: Mapping[str, Any]
    output: str = "out"
    recipe: Path | None = None
    arguments: tuple[type, ...] = ()
    words: tuple[str, ...] = ()
    launched: bool = True
    resumes: tuple[str, ...] = ()

    def key(self, files: FileHashes, launch: Launch) -> str:
        """Hash of everything that the content of the folder depends on, but for the code.

        Raises:
            UsageError: a file or folder that is missing.
        """
        recipe = read_recipe(self.recipe, self.arguments) if self.recipe else {}
        given = {
            name: _content(name, value, files, launch)
            for name, value in {**recipe, **self.fields}.items()
            if name not in WITHOUT_EFFECT
        }
        text = json.dumps([self.module, self.words, given, *(launch if self.launched else Launch())], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]


@cache
def code_digest(root: Path = ROOT) -> str:
    """Hash of this project's modules: which code did a step."""
    found = hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:10]


def _content(name: str, value: Any, files: FileHashes, launch: Launch) -> Any:
    """What a value stands for: a step's key, or what a file or folder holds, wherever it lies."""
    if isinstance(value, Step):
        return value.key(files, launch)
    if isinstance(value, Path):
        return files.content(value)
    if isinstance(value, list):
        return [_content(name, part, files, launch) for part in value]
    if name in MODELS and isinstance(value, str) and Path(value).exists():
        return files.content(Path(value), subfolders=False)
    return value


@dataclass
class StepFolders:
    """Where the steps of any number of runs lie.

    Args:
        root: folder of their folders.
        accelerate_config: a file of `accelerate config`; steps that can are then started by `accelerate launch`.
            Without it they run in this process, which saves loading the libraries for each.
    """

    root: Path
    accelerate_config: str | None = None
    _keys: dict[int, tuple[Step, str]] = field(default_factory=dict)

    def folder(self, step: Step) -> Path:
        if id(step) not in self._keys:
            # once for each step: a key looks at all files of a data set; the step stays, so that no other gets its id
            self._keys[id(step)] = step, step.key(self.files, self.launch)
        return self.root / f"{step.name}-{self._keys[id(step)][1]}"

    @cached_property
    def files(self) -> FileHashes:
        """What the steps are given."""
        return FileHashes(self.root / ".files.json")

    @property
    def launch(self) -> Launch:
        """How steps are started."""
        precision = self._config.get("mixed_precision") or "no"
        return Launch(int(self._config.get("num_processes", 1)), str(precision))

    @property
    def sharded(self) -> bool:
        """Whether each process would hold a part of the gradients or of each layer (FSDP, DeepSpeed's ZeRO-2 and 3)."""
        kind, deepspeed = self._config.get("distributed_type"), self._config.get("deepspeed_config") or {}
        # a file of DeepSpeed's own is read by the stages alone; without a word accelerate takes ZeRO-2
        zero_stage = deepspeed.get("zero_stage", 0 if "deepspeed_config_file" in deepspeed else 2)
        return kind == "FSDP" or (kind == "DEEPSPEED" and zero_stage >= 2)

    @cached_property
    def _config(self) -> dict[str, Any]:
        """Of accelerate.

        Raises:
            UsageError: `accelerate_config` is no file of that kind.
        """
        if self.accelerate_config is None:
            return {}
        if not Path(self.accelerate_config).is_file():
            raise UsageError(f"accelerate_config: {self.accelerate_config}: no such file; see trainers/accelerate")
        return read_yaml(Path(self.accelerate_config))

    def done(self, step: Step) -> Path:
        """The file that says that the step is done."""
        folder = self.folder(step)
        return folder.with_name(folder.name + DONE)

    def seconds_of(self, step: Step) -> float:
        """Of a step that is done: from its last start to its end."""
        return json.loads(self.done(step).read_text(encoding="utf-8"))["seconds"]

    def by_other_code(self, step: Step) -> bool:
        """Whether a step that is done was done before this project's modules changed."""
        return json.loads(self.done(step).read_text(encoding="utf-8")).get("code") != code_digest()

    def command(self, step: Step) -> list[str]:
        """What the program is called with."""
        command = [*step.words, *([str(step.recipe)] if step.recipe else [])]
        for name, value in {**step.fields, step.output: self.folder(step)}.items():
            value = self.folder(value) if isinstance(value, Step) else value
            if step.arguments:
                command.append(f"--{name}={as_word(value)}")  # null as well, which overrides a recipe's and a default
            elif value is True:  # a flag of argparse
                command.append(f"--{name}")
            elif value is not None and value is not False:  # it has no word for what is not given
                command += [f"--{name}", *map(str, value if isinstance(value, list | tuple) else [value])]
        return command

    def arguments_of(self, step: Step) -> tuple[Any, ...]:
        """What the step's program will read from its command; () of one that says nothing of its fields.

        Raises:
            UsageError, DataError: a field that it does not take; the step is named, since several take most fields.
        """
        try:
            return parse_recipe(step.arguments, self.command(step)) if step.arguments else ()
        except UsageError as error:
            raise UsageError(f"{step.name}: {error}") from None

    def run(self, steps: Sequence[Step]) -> None:
        """Runs what is not done yet, in order.

        Raises:
            UsageError, DataError: a field that a program does not take, before any of them begins.
            SystemExit: a program failed; it has said why.
        """
        for step in steps:
            self.arguments_of(step)
        self.files.save()
        for number, step in enumerate(steps, 1):
            said = f"{number}/{len(steps)}  {self.folder(step).name}"
            if self.done(step).exists():
                by = f", by other code; to do it again remove {self.folder(step)}*" if self.by_other_code(step) else ""
                print(f"{said}: done before{by}", flush=True)
                continue
            print(said, flush=True)
            with self._lock(step):
                if not self.done(step).exists():
                    self._do(step)

    def _lock(self, step: Step) -> AcquireReturnProxy:
        """Of the runs that share the folders one at a time; the others wait. The machines of one run go together."""
        folder = self.folder(step)
        folder.parent.mkdir(parents=True, exist_ok=True)
        rank = self._config.get("machine_rank", 0) if step.launched else 0
        lock = FileLock(folder.with_name(LOCK.format(name=folder.name, rank=rank)))
        try:
            return lock.acquire(blocking=False)
        except Timeout:
            print("another run is at it; waiting for it", flush=True)
            return lock.acquire()

    def _do(self, step: Step) -> None:
        started = time.monotonic()
        self._call(step)
        seconds = round(time.monotonic() - started, 1)
        record = {"module": step.module, "arguments": self.command(step), "seconds": seconds, "code": code_digest()}
        write_json(self.done(step), record)

    def _call(self, step: Step) -> None:
        command = [*self.command(step), *step.resumes]
        if self.accelerate_config and step.launched:
            launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", self.accelerate_config]
            finished = subprocess.run([*launcher, "--module", step.module, *command])
            if finished.returncode:
                raise SystemExit(finished.returncode)
        else:
            torch.set_float32_matmul_precision("high")  # as where the program is called by itself
            importlib.import_module(step.module).main(command)
            # a trainer's model is part of a reference cycle, and would stay beside the next step's
            clear_device_cache(garbage_collection=True)
