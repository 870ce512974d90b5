"""As much of the Hub as `from_pretrained` asks for: which commit a revision is, and the files of it."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def local_hub(repositories: dict[str, Path]) -> Iterator[str]:
    """Serves folders as model repositories; gives the address for `HF_ENDPOINT`."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, status: int, body: bytes, headers: dict[str, str], send_body: bool) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if send_body:
                self.wfile.write(body)

        def _serve(self, send_body: bool) -> None:
            missing = "RepoNotFound"
            if match := re.fullmatch(r"/api/models/([^/]+/[^/?]+)(/revision/[^/?]+)?(\?.*)?", self.path):
                if folder := repositories.get(match[1]):
                    files = [{"rfilename": path.name} for path in folder.iterdir()]
                    body = {"id": match[1], "modelId": match[1], "sha": COMMIT, "siblings": files, "private": False}
                    return self._answer(200, json.dumps(body).encode(), {"X-Repo-Commit": COMMIT}, send_body)
            elif (match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/([^?]+)(\?.*)?", self.path)) and (
                folder := repositories.get(match[1])
            ):
                if (folder / match[2]).is_file():
                    body = (folder / match[2]).read_bytes()
                    tags = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
                    return self._answer(200, body, tags, send_body)
                missing = "EntryNotFound"
            elif match := re.match(r"/api/models/([^/]+/[^/]+)/tree/", self.path):
                missing = "EntryNotFound" if match[1] in repositories else missing  # no folders in these repositories
            self._answer(404, b"", {"X-Error-Code": missing, "X-Repo-Commit": COMMIT}, send_body)

        def do_GET(self) -> None:
            self._serve(send_body=True)

        def do_HEAD(self) -> None:
            self._serve(send_body=False)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
