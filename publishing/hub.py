"""The Hub as every program here meets it: repositories are made, files go up, and what fails is told in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)

from .command_line import DISK_FULL, OneLineError

# an upload is done by threads, whose errors huggingface_hub (LFS) and hf_xet wrap in RuntimeError
_FAILURES = (httpx2.HTTPError, OSError, RuntimeError)
LARGE = 2**24
"""Bytes; no text that a person wrote is as large."""


class HubError(OneLineError):
    """What the Hub or a folder for it does not allow, in one line that names the repository, the file or the field."""


@contextmanager
def hub_errors(name: str, then: str = "") -> Iterator[None]:
    """Turns what huggingface_hub raises into a `HubError`.

    Args:
        name: of the repository, or what else the line begins with.
        then: how to go on; ends the line.
    """
    try:
        yield
    except (ValueError, *_FAILURES) as error:  # ValueError: not a name, or front matter that the Hub refuses
        raise HubError(f"{name}: {reason(error)}{then}") from None


def make_repository(name: str, repo_type: str, private: bool = False, token: str | None = None, **options: Any) -> str:
    """Makes a repository, unless it is there, and thereby finds out early whether one may write to it.

    Args:
        name: "organisation/name", or "name" for one of the user's own.
        repo_type: "model", "dataset" or "space".
        private: of a new one; one that is there stays as it is.
        token: the one that is logged in, where not given.
        options: of `HfApi.create_repo` (`space_sdk`).

    Returns:
        the full name.

    Raises:
        HubError: no token, one that is wrong or may not do this, not a name, or no connection.
    """
    if (token or get_token()) is None:
        raise HubError(f"{name}: no token; set HF_TOKEN, or log in with `hf auth login`")
    with hub_errors(name):
        api = HfApi(token=token)
        return api.create_repo(name, repo_type=repo_type, private=private or None, exist_ok=True, **options).repo_id


def upload(
    files: Mapping[str, Path | bytes],
    repo_id: str,
    repo_type: str,
    message: str,
    replaces: Sequence[str] = (),
    token: str | None = None,
    then: str = "; nothing is lost, the same command goes on with the upload",
    **options: Any,
) -> Any:
    """Uploads files in one commit, so that nobody ever loads a part of them.

    Broken off, the same call goes on: LFS objects that arrived whole (with Xet: chunks) are not sent again.
    `upload_folder`, which does the same, cuts large folders into several commits.

    Args:
        files: by path in the repository.
        message: of the commit.
        then: how to go on after a failure; ends its line.
        replaces: patterns of files in the repository that go, unless `files` has them.
        options: of `HfApi.create_commit` (`revision`).

    Returns:
        `CommitInfo`.

    Raises:
        HubError: the upload failed, or a file holds the token.
    """
    for name, content in files.items():
        if (secret := token or get_token()) and secret.encode() in _small(content):
            raise HubError(f"{name}: holds the token that this upload is made with; a file without it would be right")
    api = HfApi(token=token)
    with hub_errors(repo_id, then):
        there = api.list_repo_files(repo_id, repo_type=repo_type, revision=options.get("revision"))
        stale = [path for path in there if path not in files and any(fnmatch(path, p) for p in replaces)]
        return api.create_commit(
            repo_id,
            [
                *(CommitOperationDelete(path) for path in stale),
                *(CommitOperationAdd(path, content) for path, content in files.items()),
            ],
            repo_type=repo_type,
            commit_message=message,
            **options,
        )


def _small(content: Path | bytes) -> bytes:
    """The content of what may be a text; weights are not read."""
    if isinstance(content, bytes):
        return content
    return content.read_bytes() if content.stat().st_size < LARGE else b""


def address(repo_id: str, repo_type: str) -> str:
    """Of a repository's page."""
    return f"{constants.ENDPOINT}/{'' if repo_type == 'model' else repo_type + 's/'}{repo_id}"


def cause(error: BaseException) -> BaseException | None:
    """What the Hub or the system said below an error of transformers; None where it was something else."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, HfHubHTTPError | HFValidationError) or getattr(found, "errno", None) is not None:
            return found
        found = found.__cause__
    return None


def reason(error: BaseException) -> str:
    """What went wrong, in words that help to mend it."""
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, _FAILURES):
        return f"{' '.join(str(error).split())} {reason(error.__cause__)}"
    if isinstance(error, HFValidationError):
        return f"not a name such as organisation/name ({error})"
    if isinstance(error, GatedRepoError):
        return "its owners give access on request; ask on its page, and log in with `hf auth login`"
    if isinstance(error, HfHubHTTPError):
        status, said = error.response.status_code, error.response.headers.get("X-Error-Message") or ""
        reading = error.response.request.method in ("GET", "HEAD")
        if isinstance(error, RepositoryNotFoundError) and reading and "Invalid" not in said:
            return (
                "the Hub has no such repository, or a private one; for that, set HF_TOKEN to a token that may read it"
            )
        if status == 401:
            return "the Hub does not accept the token; https://huggingface.co/settings/tokens has a list of yours"
        if status == 403:
            return f"the token may not write there ({said or 'status 403'})"
        return f"the Hub answers with status {status} ({said or ' '.join(str(error).split())})"
    if isinstance(error, httpx2.TransportError | ConnectionError):
        return f"no connection to {constants.ENDPOINT} ({' '.join(str(error).split()) or type(error).__name__})"
    if isinstance(error, OSError) and error.errno is not None:
        full = error.errno in DISK_FULL and not error.filename
        where = f"downloads go to HF_HOME, {constants.HF_HOME}" if full else error.filename
        return f"{error.strerror}{f' ({where})' if where else ''}"
    return " ".join(str(error).split()) or type(error).__name__


__all__ = ["HubError", "address", "cause", "hub_errors", "make_repository", "reason", "upload"]
