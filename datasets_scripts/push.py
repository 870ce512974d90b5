"""A built folder on the Hub; the repository is made before the work begins (`publishing/hub.py`)."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from publishing.hub import address, upload

TABLES = ("scenes/*.parquet", "instructions/*.parquet")
PUBLISHED = ("README.md", "preview/*.jpg", "classes.json", "queries.json", "splits/*.txt", *TABLES)
"""What readers of a set need. The rest of the folder is about its making, and names paths of this machine."""


def push(folder: Path, repo_id: str) -> str:
    """Uploads a finished folder to its repository, in the place of any tables that are there.

    Returns:
        the address of the data set.

    Raises:
        HubError: the upload failed.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    upload(
        {name: path for name, path in paths.items() if any(fnmatch(name, pattern) for pattern in PUBLISHED)},
        repo_id,
        "dataset",
        "Scenes and instructions",
        # tables of another number of shards would be read beside ours
        replaces=(*TABLES, "preview/*.jpg"),
        then=f"; {folder} is whole, the same command goes on with the upload",
    )
    return address(repo_id, "dataset")
