"""Files and folders by what they hold, so that a copy of a data set is the same data set."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock
from tqdm.auto import tqdm

from datasets_scripts.command_line import UsageError
from datasets_scripts.files import write_text

ABOUT = frozenset(
    {"README.md", "preview.html", "audit.html", "audit.json", "result.json", "rejected.jsonl", "skipped.jsonl"}
)
"""Files about a folder's content, which `verify`, `audit` and others write into it; no step reads them."""


class FileHashes:
    """SHA-256 of files, which are read again only where size or time of their last change is another.

    Args:
        path: JSON file that keeps what was read, of any number of runs; it may be deleted. None: nothing is kept.
    """

    def __init__(self, path: Path | None = None):
        self.path = path
        self._known = self._kept()
        self._unsaved = False
        self._contents: dict[tuple[Path, bool], str] = {}

    def content(self, path: Path, subfolders: bool = True) -> str:
        """Of a file, or of a folder's files and their names in it; read once in the life of this object. Of a folder
        hidden files do not count, nor what a killed program left unfinished (`files.py`), nor `ABOUT`.

        Args:
            subfolders: whether a folder's folders count. Those of a model hold checkpoints and evaluations.

        Raises:
            UsageError: there is no such file or folder.
        """
        if (path, subfolders) not in self._contents:
            if not path.exists():
                raise UsageError(f"{path}: no such file or folder")
            files = [path]
            if path.is_dir():
                found = _walk(path) if subfolders else path.iterdir()
                files = sorted(p for p in found if _is_read(p.name) and p.is_file())
            self._read(files)
            parts = [(p.relative_to(path).as_posix(), self._known[_name(p)][-1]) for p in files]
            self._contents[path, subfolders] = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return self._contents[path, subfolders]

    def save(self) -> None:
        """For the next run; keeps what others have added meanwhile."""
        if self._unsaved and self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(self.path.name + ".lock")):
                self._known = {**self._kept(), **self._known}
                write_text(self.path, json.dumps(self._known))
            self._unsaved = False

    def _read(self, files: Iterable[Path]) -> None:
        stamps = {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in files}
        missing = [p for p, stamp in stamps.items() if tuple(self._known.get(_name(p), ())[:2]) != stamp]
        total = sum(stamps[p][0] for p in missing)
        with tqdm(total=total, unit="B", unit_scale=True, desc="reading files", delay=2, leave=False) as bar:
            for path in missing:
                with path.open("rb") as file:
                    self._known[_name(path)] = [*stamps[path], hashlib.file_digest(file, "sha256").hexdigest()]
                self._unsaved = True
                bar.update(stamps[path][0])

    def _kept(self) -> dict[str, list]:
        if self.path is None:
            return {}
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}  # none yet, or a damaged one: everything is read again
        return found if isinstance(found, dict) else {}


def _is_read(name: str) -> bool:
    return name[0] != "." and name not in ABOUT and not name.endswith(".partial")


def _walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, but for hidden folders. Folders that are links count as they do for whoever reads a
    data set; `rglob` leaves them out."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name[0] != "." and not _leads_back(Path(parent, name))]
        yield from (Path(parent, name) for name in names)


def _leads_back(folder: Path) -> bool:
    """Whether it is a link to a folder that contains it, which would be walked again and again."""
    return folder.is_symlink() and any(p.resolve().is_relative_to(folder.resolve()) for p in folder.parents)


def _name(path: Path) -> str:
    return os.path.abspath(path)
