"""A Hugging Face hub on loopback: what huggingface_hub asks of the real one, and what goes wrong there.

It answers the description of a model, HEAD and GET of its files, and the refusals with the codes of the
real hub. Large files (LFS) are redirected to another host, as there. What it was asked is kept in
`requests`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import urllib.parse
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

LARGE = (".safetensors", ".bin", ".pt")


@dataclass
class Repository:
    """A model: branches, and the files of each commit."""

    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Let `branch` move on to a new commit with these files, and return it."""
        digest = hashlib.sha1(repr((self.branches, sorted(files))).encode(), usedforsecurity=False)
        commit = digest.hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit

    def resolve(self, revision: str) -> str | None:
        """Give the commit of a branch or commit."""
        return self.branches.get(revision, revision if revision in self.commits else None)


@dataclass(frozen=True)
class Request:
    """What one request asked for, and with which headers."""

    method: str
    path: str
    headers: Message


class FakeHub:
    """The hub; a context manager that serves while it is entered."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.tokens: set[str] = set()  # those that are valid; they may read everything
        self.readers: set[str] = set()  # those among them whose owners accepted the terms of gated models
        self.status: int | None = None  # answered to everything
        self.page: bytes | None = None  # answered to everything, as the login page of a network does
        self.trickle = False  # descriptions come byte by byte, and never end
        self.cut: dict[str, int] = {}  # path -> after how many bytes its next GET breaks off
        self.hold: dict[str, int] = {}  # path -> after how many bytes its GETs wait for `release`
        self.held = threading.Event()
        self.release = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT is to be."""
        return f"http://127.0.0.1:{self.port}"

    def add(self, name: str, files: dict[str, bytes], **settings: Any) -> str:
        """Add a model with one commit on main, and return that commit."""
        self.repositories[name] = Repository(**settings)
        return self.repositories[name].commit(files)

    def asked(self, method: str, ending: str) -> list[Request]:
        """List the requests of a method whose path ends so."""
        return [r for r in list(self.requests) if r.method == method and r.path.endswith(ending)]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> FakeHub:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urllib.parse.unquote(self.path.partition("?")[0])
        self.hub.requests.append(Request(self.command, path, self.headers))
        with contextlib.suppress(ConnectionError):
            if self.hub.page is not None:
                self._send(200, self.hub.page, {"Content-Type": "text/html"})
            elif self.hub.status is not None:
                self._send(self.hub.status, b"")
            elif match := re.fullmatch(r"/api/models/(.+?)(?:/revision/(.+))?", path):
                self._describe(match[1], match[2] or "main")
            elif match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
                self._resolve(match[1], match[2], match[3])
            elif match := re.fullmatch(r"/cdn/(.+?)@(\w+)/(.+)", path):
                self._content(self.hub.repositories[match[1]].commits[match[2]][match[3]], match[3], {})
            else:
                self._refuse(404, "", "not served here")

    def _repository(self, name: str) -> Repository | None:
        """Find the model, or refuse the request."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        repository = self.hub.repositories.get(name)
        if token and token not in self.hub.tokens:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repository is None or (repository.private and not token):
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        else:
            return repository
        return None

    def _describe(self, name: str, revision: str) -> None:
        if (repository := self._repository(name)) is None:
            return
        if (commit := repository.resolve(revision)) is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        files = repository.commits[commit]
        description = {
            "_id": "0",
            "id": name,
            "modelId": name,
            "sha": commit,
            "gated": "manual" if repository.gated else False,
            "private": repository.private,
            "siblings": [_sibling(path, content) for path, content in files.items()],
        }
        self._send(200, json.dumps(description).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        if (repository := self._repository(name)) is None:
            return
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repository.gated and token not in self.hub.readers:
            self._refuse(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted")
            return
        if (commit := repository.resolve(revision)) is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        head = {"X-Repo-Commit": commit}
        if (content := repository.commits[commit].get(path)) is None:
            self._refuse(404, "EntryNotFound", "Entry not found", head)
        elif path.endswith(LARGE):
            head["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            head["X-Linked-Size"] = str(len(content))
            head["Location"] = f"http://localhost:{self.hub.port}/cdn/{name}@{commit}/{path}"
            self._send(302, b"", head)
        else:
            self._content(content, path, {"ETag": f'"{_git_hash(content)}"', **head})

    def _content(self, content: bytes, path: str, head: dict[str, str]) -> None:
        status, start = 200, 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            status, start = 206, int(match[1])
            head["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        self._head(status, len(body), head)
        if self.command == "HEAD":
            return
        if (limit := self.hub.hold.get(path)) is not None:
            self.wfile.write(body[:limit])
            self.hub.held.set()
            self.hub.release.wait(60)
            body = body[limit:]
        if (limit := self.hub.cut.pop(path, None)) is not None:
            self.wfile.write(body[:limit])
            self.close_connection = True
            return
        self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str, head: dict[str, str] | None = None) -> None:
        codes = {"X-Error-Code": code} if code else {}
        self._send(status, b"{}", {**codes, "X-Error-Message": message, **(head or {})})

    def _send(self, status: int, body: bytes, head: dict[str, str] | None = None) -> None:
        self._head(status, len(body), head or {})
        if self.command == "HEAD":
            return
        if not self.hub.trickle:
            self.wfile.write(body)
            return
        for index in range(len(body)):
            self.wfile.write(body[index : index + 1])
            if self.hub.release.wait(0.2):
                return

    def _head(self, status: int, length: int, head: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in head.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _sibling(path: str, content: bytes) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": _git_hash(content)}
    if path.endswith(LARGE):
        digest = hashlib.sha256(content).hexdigest()
        sibling["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
    return sibling
