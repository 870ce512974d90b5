"""A built folder on the Hub; the repository is made before the work begins (`publishing/hub.py`)."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

from publishing.hub import address, hub_errors

TABLES = ("scenes/*.parquet", "instructions/*.parquet")
PUBLISHED = ("README.md", "preview/*.jpg", "classes.json", "queries.json", "splits/*.txt", *TABLES)
"""What readers of a set need. The rest of the folder is about its making, and names paths of this machine."""


def push(folder: Path, repo_id: str) -> str:
    """Uploads a finished folder to its repository, in the place of any tables that are there.

    Where it is broken off, the next call goes on: files that arrived whole are not sent again.

    Returns:
        the address of the data set.

    Raises:
        HubError: the upload failed.
    """
    with hub_errors(repo_id, f"; {folder} is whole, the same command goes on with the upload"):
        # Tables of another number of shards would be read beside ours, so those that we do not overwrite go.
        HfApi().upload_folder(
            folder_path=folder,
            repo_id=repo_id,
            repo_type="dataset",
            allow_patterns=list(PUBLISHED),
            delete_patterns=[*TABLES, "preview/*.jpg"],
            commit_message="Scenes and instructions",
        )
    return address(repo_id, "dataset")
