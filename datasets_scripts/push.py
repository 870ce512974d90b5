"""A built folder on the Hub: the repository is made before the work begins, the files go up after it."""

from __future__ import annotations

from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from .command_line import UsageError

TABLES = ("scenes/*.parquet", "instructions/*.parquet")
PUBLISHED = ("README.md", "classes.json", "queries.json", "splits/*.txt", *TABLES)
"""What readers of a set need. The rest of the folder is about its making, and names paths of this machine."""

# an upload is done by threads, whose errors huggingface_hub (LFS) and hf_xet wrap in RuntimeError
_FAILURES = (httpx2.HTTPError, OSError, RuntimeError)


def make_repository(name: str, private: bool = False) -> str:
    """Makes a data set repository, unless it is there, and thereby finds out early whether one may write to it.

    Args:
        name: "organisation/name", or "name" for one of the user's own.
        private: of a new one; one that is there stays as it is.

    Returns:
        the full name.

    Raises:
        UsageError: no token, one that is wrong or may not do this, not a name, or no connection.
    """
    if get_token() is None:
        raise UsageError(f"push_to_hub {name}: no token; set HF_TOKEN, or log in with `hf auth login`")
    try:
        return HfApi().create_repo(name, repo_type="dataset", private=private or None, exist_ok=True).repo_id
    except HFValidationError as error:
        raise UsageError(f"push_to_hub {name}: not a name such as organisation/name ({error})") from None
    except _FAILURES as error:
        raise UsageError(f"push_to_hub {name}: {_reason(error)}") from None


def push(folder: Path, repo_id: str) -> str:
    """Uploads a finished folder to its repository, in the place of any tables that are there.

    Where it is broken off, the next call goes on: files that arrived whole are not sent again.

    Returns:
        the address of the data set.

    Raises:
        UsageError: the upload failed.
    """
    api = HfApi()
    try:
        # Tables of another number of shards would be read beside ours, so those that we do not overwrite go.
        api.upload_folder(
            folder_path=folder,
            repo_id=repo_id,
            repo_type="dataset",
            allow_patterns=list(PUBLISHED),
            delete_patterns=list(TABLES),
            commit_message="Scenes and instructions",
        )
    except _FAILURES as error:
        reason = f"{_reason(error)}; {folder} is whole, the same command goes on with the upload"
        raise UsageError(f"push_to_hub {repo_id}: {reason}") from None
    return f"{api.endpoint}/datasets/{repo_id}"


def _reason(error: BaseException) -> str:
    """What went wrong, in words that help to mend it."""
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, _FAILURES):
        return f"{' '.join(str(error).split())} {_reason(error.__cause__)}"
    if isinstance(error, HfHubHTTPError):
        status, said = error.response.status_code, error.response.headers.get("X-Error-Message") or ""
        if status == 401:
            return "the Hub does not accept the token; https://huggingface.co/settings/tokens has a list of yours"
        if status == 403:
            return f"the token may not write there ({said or 'status 403'})"
        return f"the Hub answers with status {status} ({said or ' '.join(str(error).split())})"
    if isinstance(error, httpx2.TransportError | ConnectionError):
        return f"no connection to {constants.ENDPOINT} ({' '.join(str(error).split()) or type(error).__name__})"
    return " ".join(str(error).split()) or type(error).__name__
