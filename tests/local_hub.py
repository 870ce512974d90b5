"""A small Hub over real HTTP, as much of it as `huggingface_hub` and `datasets` ask for.

`local_hub` serves folders as model repositories. `LocalHub` also takes uploads (regular files and LFS, never Xet: set
HF_HUB_DISABLE_XET), knows one user with one token, keeps private repositories to itself, and fails when it is told to.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
USER, ORGANISATION = "someone", "org"
RIGHT = "hf_right"
"""A token, for tests that want one."""

_FIXED = {
    "/api/whoami-v2": {"type": "user", "name": USER, "orgs": [{"name": ORGANISATION}], "auth": {}},
    "/api/validate-yaml": {"errors": [], "warnings": []},
}
_LFS_SUFFIXES = (".parquet", ".safetensors", ".bin")
_API = re.compile(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/([a-z-]+)/([^/]+)/?(.*))?")
_RESOLVE = re.compile(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_VARIABLES = re.compile(r"/api/spaces/([^/]+/[^/]+)/variables")
_BATCH = re.compile(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch")


class Refusal(Exception):
    """An answer that is no success: (status, X-Error-Code, X-Error-Message), and the commit where a file is missing."""


@dataclass
class Repository:
    """Commits with their files, by path in the repository; the last one is `main`.

    Attributes:
        gated: its owners give access on request, to nobody so far.
        messages: of the commits that were uploaded.
        variables: of a Space.
    """

    url: str
    commits: dict[str, dict[str, Path]]
    private: bool = False
    gated: bool = False
    messages: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> tuple[str, dict[str, Path]]:
        commit = [*self.commits][-1] if revision == "main" else revision
        if commit not in self.commits:
            raise Refusal(404, "RevisionNotFound", "")
        return commit, self.commits[commit]

    def content(self) -> dict[str, bytes]:
        return {path: blob.read_bytes() for path, blob in self.at("main")[1].items()}


@dataclass
class LocalHub:
    """A context manager; `address` is for `HF_ENDPOINT`.

    Attributes:
        token: of `USER`, who may write to their own namespace and to `ORGANISATION`; None = nothing is checked.
        repositories: by kind and name, such as ("datasets", "org/name").
        uploads: sizes of the LFS objects that arrived whole, in their order.
        drop_after: bytes after which the connection of the next LFS upload is dropped, once.
        refuse_next: part of a path; the next request of such a path is refused, once.
        stall_after: number of whole LFS uploads after which each further one waits until the hub closes.
        stalled: set when one waits.
    """

    token: str | None = None
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    uploads: list[int] = field(default_factory=list)
    drop_after: int | None = None
    refuse_next: str | None = None
    stall_after: int | None = None
    stalled: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> LocalHub:
        self._blobs = tempfile.TemporaryDirectory()
        self.closing, self.lock, self._tags = threading.Event(), threading.Lock(), {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._blobs.cleanup()

    def create(self, kind: str, name: str, files: dict[str, Path], private: bool = False) -> Repository:
        url = f"{self.address}/{'' if kind == 'models' else kind + '/'}{name}"
        return self.repositories.setdefault((kind, name), Repository(url, {COMMIT: files}, private))

    def serve(self, kind: str, name: str, folder: Path) -> None:
        """A folder as a repository of one commit."""
        self.create(kind, name, {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()})

    def blob(self, sha256: str) -> Path:
        """The file of an uploaded object."""
        return Path(self._blobs.name) / sha256

    def tag(self, path: str, blob: Path) -> str:
        """What tells contents apart: SHA-256 for LFS, else git's SHA-1."""
        if (path, blob) not in self._tags:
            content = blob.read_bytes()
            git = hashlib.sha1(b"blob %d\0" % len(content) + content)
            self._tags[path, blob] = (hashlib.sha256(content) if path.endswith(_LFS_SUFFIXES) else git).hexdigest()
        return self._tags[path, blob]

    def entry(self, path: str, blob: Path) -> dict:
        size, tag = blob.stat().st_size, self.tag(path, blob)
        lfs = {"lfs": {"oid": tag, "size": size, "pointerSize": 134}} if len(tag) == 64 else {}
        return {"type": "file", "path": path, "size": size, "oid": tag[:40], **lfs}


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub

    def _run(self) -> None:
        self.length = int(self.headers.get("Content-Length") or 0)
        self.body = b"" if self.command == "PUT" else self.rfile.read(self.length)
        self.asked, path = parse_qs(urlsplit(self.path).query), unquote(urlsplit(self.path).path)
        try:
            if self.hub.refuse_next and self.hub.refuse_next in path:
                self.hub.refuse_next = None
                raise Refusal(403, "", "Not now")
            self._check_token(writes=self.command not in ("GET", "HEAD") and "/paths-info/" not in path)
            self._route(path)
        except Refusal as refusal:
            status, code, message, *commit = refusal.args
            headers = {"X-Error-Code": code, "X-Error-Message": message}
            self._send(status, b"{}", {**headers, "X-Repo-Commit": commit[0] if commit else COMMIT})
        except (BrokenPipeError, ConnectionResetError):
            pass

    do_GET = do_HEAD = do_POST = do_PUT = _run

    def log_message(self, *_: object) -> None: ...

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, content: object, commit: str = COMMIT, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"X-Repo-Commit": commit})

    def _check_token(self, writes: bool) -> None:
        given = self.headers.get("Authorization")
        self.known = self.hub.token is None or given == f"Bearer {self.hub.token}"
        if self.path.startswith("/lfs/") or self.path == "/api/validate-yaml":  # these are asked without a token
            return
        if not self.known and (given or writes or self.path == "/api/whoami-v2"):
            raise Refusal(401, "", "Invalid credentials in Authorization header")

    def _repository(self, kind: str | None, name: str) -> Repository:
        repository = self.hub.repositories.get((kind or "models", name))
        if repository is None or (repository.private and not self.known):
            raise Refusal(404 if self.known else 401, "RepoNotFound", "Repository not found")
        if repository.gated:
            raise Refusal(403, "GatedRepo", f"Access to model {name} is restricted")
        return repository

    def _route(self, path: str) -> None:
        if path in _FIXED:
            self._json(_FIXED[path])
        elif path == "/api/repos/create":
            self._create(json.loads(self.body))
        elif match := _VARIABLES.fullmatch(path):
            asked = json.loads(self.body)
            self._repository("spaces", match[1]).variables[asked["key"]] = asked["value"]
            self._json({asked["key"]: {"value": asked["value"]}})
        elif match := _RESOLVE.fullmatch(path):
            self._resolve(self._repository(match[1], match[2]), match[3], match[4])
        elif match := _API.fullmatch(path):
            self._api(self._repository(match[1], match[2]), match[2], *match.groups()[2:])
        elif match := _BATCH.fullmatch(path):
            self._repository(match[1], match[2])
            self._json({"transfer": "basic", "objects": [self._wanted(o) for o in json.loads(self.body)["objects"]]})
        elif path == "/lfs/verify":
            asked = json.loads(self.body)
            self._json({}, status=200 if self.hub.blob(asked["oid"]).stat().st_size == asked["size"] else 400)
        elif self.command == "PUT":
            self._take(path.removeprefix("/lfs/"))
        else:
            raise Refusal(404, "RepoNotFound", "")

    def _create(self, asked: dict) -> None:
        kind, owner = f"{asked.get('type') or 'model'}s", asked.get("organization") or USER
        if owner not in (USER, ORGANISATION):
            raise Refusal(403, "", f'You don\'t have the rights to create a {kind[:-1]} under the namespace "{owner}"')
        key = (kind, f"{owner}/{asked['name']}")
        status = 409 if key in self.hub.repositories else 200
        self._json({"url": self.hub.create(*key, {}, asked.get("visibility") == "private").url}, status=status)

    def _api(self, repository: Repository, name: str, what: str | None, revision: str | None, below: str) -> None:
        commit, files = repository.at(revision or "main")
        if what in (None, "revision"):
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": name, "sha": commit, "siblings": siblings, "private": repository.private}, commit)
        elif what == "tree":
            self._json(self._tree(files, f"{below}/" if below else ""), commit)
        elif what == "paths-info":
            paths = parse_qs(self.body.decode())["paths"]
            self._json([self.hub.entry(path, files[path]) for path in paths if path in files], commit)
        elif what == "preupload":
            paths = [asked["path"] for asked in json.loads(self.body)["files"]]
            modes = ["lfs" if path.endswith(_LFS_SUFFIXES) else "regular" for path in paths]
            oids = [self.hub.tag(path, files[path]) if path in files else None for path in paths]
            rows = [{"path": p, "uploadMode": m, "oid": o} for p, m, o in zip(paths, modes, oids, strict=True)]
            self._json({"files": [{**row, "shouldIgnore": False} for row in rows]})
        elif what == "commit":
            self._commit(repository, dict(files))
        else:
            raise Refusal(404, "EntryNotFound", "")

    def _tree(self, files: dict[str, Path], prefix: str) -> list[dict]:
        inside = [path for path in files if path.startswith(prefix)]
        if prefix and not inside:
            raise Refusal(404, "EntryNotFound", "")
        deep = self.asked.get("recursive", [""])[0].lower() == "true"
        folders = {parent.as_posix() for path in inside for parent in Path(path).parents}
        shown = [p for p in folders if p.startswith(prefix) and p != "." and (deep or "/" not in p[len(prefix) :])]
        entries = [{"type": "directory", "path": path, "oid": COMMIT, "size": 0} for path in sorted(shown)]
        return entries + [self.hub.entry(p, files[p]) for p in inside if deep or "/" not in p[len(prefix) :]]

    def _wanted(self, asked: dict) -> dict:
        """An LFS object with the place where to send it, unless it is there."""
        places = {"upload": {"href": f"{self.hub.address}/lfs/{asked['oid']}"}}
        places["verify"] = {"href": f"{self.hub.address}/lfs/verify"}
        return asked if self.hub.blob(asked["oid"]).exists() else {**asked, "actions": places}

    def _take(self, oid: str) -> None:
        """An LFS object."""
        hub = self.hub
        with hub.lock:
            drop, hub.drop_after = hub.drop_after, None
            content = self.rfile.read(self.length if drop is None else drop)
            waits = hub.stall_after is not None and len(hub.uploads) >= hub.stall_after
            if drop is None and not waits:
                assert hashlib.sha256(content).hexdigest() == oid
                hub.blob(oid).write_bytes(content)
                hub.uploads.append(len(content))
                return self._json({})
        if waits:
            hub.stalled.set()
            hub.closing.wait()
        return self.connection.close()

    def _commit(self, repository: Repository, files: dict[str, Path]) -> None:
        for line in map(json.loads, self.body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "file":
                content = base64.b64decode(value["content"])
                files[value["path"]] = self.hub.blob(hashlib.sha256(content).hexdigest())
                files[value["path"]].write_bytes(content)
            elif key == "lfsFile":
                files[value["path"]] = self.hub.blob(value["oid"])
            elif key == "header":
                repository.messages.append(value["summary"])
            elif key == "deletedFile":
                del files[value["path"]]
        commit = hashlib.sha1(f"{len(repository.commits)} {sorted(files.items())}".encode()).hexdigest()
        repository.commits[commit] = files
        self._json({"success": True, "commitOid": commit, "commitUrl": f"{repository.url}/commit/{commit}"}, commit)

    def _resolve(self, repository: Repository, revision: str, path: str) -> None:
        commit, files = repository.at(revision)
        if path not in files:
            raise Refusal(404, "EntryNotFound", "Entry not found", commit)
        tag, content = self.hub.tag(path, files[path]), files[path].read_bytes()
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if len(tag) == 64:
            headers |= {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(content))}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content = content[start : end + 1]
        self._send(206 if part else 200, content, headers)


@contextmanager
def local_hub(repositories: dict[str, Path]) -> Iterator[str]:
    """Serves folders as model repositories; gives the address for `HF_ENDPOINT`."""
    with LocalHub() as hub:
        for name, folder in repositories.items():
            hub.serve("models", name, folder)
        yield hub.address


def environment(address: str, home: Path, token: str | None) -> dict[str, str]:
    """Of another process that takes this for the Hub."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    hub = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**clean, **hub, **({"HF_TOKEN": token} if token else {})}
