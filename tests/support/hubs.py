"""A model hub on loopback: the API and the files as huggingface_hub asks for them, and every way to fail that is told to it.

Like the public hub it keeps small files itself and sends a reader of the weights to a store on another port.
"""

import hashlib
import json
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LATER = "fedcba9876543210fedcba9876543210fedcba98"


def is_large(name: str) -> bool:
    """What the hub keeps outside of git."""
    return name.endswith((".safetensors", ".bin"))


@dataclass(frozen=True)
class Status:
    """An answer other than the file."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BreakOff:
    """The connection ends after so many bytes, though more were promised."""

    after: int


@dataclass(frozen=True)
class Hold:
    """After so many bytes nothing comes until the hub is told to go on."""

    after: int


@dataclass(frozen=True)
class Wrong:
    """The right number of other bytes."""


@dataclass(frozen=True)
class NoRanges:
    """All of the file, whatever was asked for."""


@dataclass(frozen=True)
class OtherRange:
    """A range that begins later than the one that was asked for."""


Fault = Status | BreakOff | Hold | Wrong | NoRanges | OtherRange


@dataclass(frozen=True)
class Asked:
    """A request that came in."""

    where: str
    path: str
    start: int
    token: str | None


@dataclass
class FakeHub:
    """What it has, how it fails next, and what it was asked.

    Attributes:
        repos: files by repository and commit.
        branches: commits by repository and branch.
        faults: by a file's name (`api` for the API), one a request, in order.
        sent: bytes by a file's name.
    """

    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    asked: list[Asked] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    go_on: threading.Event = field(default_factory=threading.Event)
    states_sizes: bool = True
    url: str = ""
    store_url: str = ""

    def publish(self, repo: str, files: Mapping[str, bytes], commit: str = COMMIT) -> None:
        """A commit of a repository becomes its main branch."""
        self.repos.setdefault(repo, {})[commit] = dict(files)
        self.branches.setdefault(repo, {})["main"] = commit

    def starts(self, name: str) -> list[int]:
        """Where each request for a file's bytes began."""
        where = "store" if is_large(name) else "hub"
        return [asked.start for asked in self.asked if asked.where == where and asked.path.endswith(f"/{name}")]

    def fault(self, name: str) -> Fault | None:
        return self.faults[name].pop(0) if self.faults[name] else None

    def info(self, repo: str, revision: str) -> dict[str, Any] | None:
        commit = self.branches.get(repo, {}).get(revision, revision)
        files = self.repos.get(repo, {}).get(commit)
        if files is None:
            return None
        siblings = [self._sibling(name, content) for name, content in sorted(files.items())]
        return {"id": repo, "modelId": repo, "sha": commit, "private": False, "siblings": siblings}

    def _sibling(self, name: str, content: bytes) -> dict[str, Any]:
        if not self.states_sizes:
            return {"rfilename": name}
        if not is_large(name):
            return {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
        sha256 = hashlib.sha256(content).hexdigest()
        lfs = {"sha256": sha256, "size": len(content), "pointerSize": 135}
        return {"rfilename": name, "size": len(content), "blobId": "0" * 40, "lfs": lfs}


def git_sha1(content: bytes) -> str:
    """`git hash-object`."""
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub and its store, up until the block is left."""
    state = FakeHub()
    servers = [
        ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state, "where": where}))
        for where in ("hub", "store")
    ]
    state.url, state.store_url = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield state
    finally:
        state.go_on.set()
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: FakeHub
    where: str

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.asked.append(Asked(self.where, path, self._first()[0], self.headers.get("Authorization")))
        try:
            if path.startswith("/api/models/") and self.where == "hub":
                self._api(path.removeprefix("/api/models/"))
            elif "/resolve/" in path:
                repo, _, rest = path.strip("/").partition("/resolve/")
                commit, _, name = rest.partition("/")
                self._resolve(repo, commit, name)
            else:
                self._answer(404, b"no such path")
        except (BrokenPipeError, ConnectionResetError):  # a client that was killed
            self.close_connection = True

    def _api(self, path: str) -> None:
        assert parse_qs(urlsplit(self.path).query) == {"blobs": ["true"]}, self.path
        repo, _, revision = path.partition("/revision/")
        fault, info = self.state.fault("api"), self.state.info(repo, revision or "main")
        if isinstance(fault, Status):
            self._answer(fault.code, b"{}", fault.headers)
        elif info is not None:
            self._answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        elif repo in self.state.repos:
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            self._answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _resolve(self, repo: str, commit: str, name: str) -> None:
        content = self.state.repos.get(repo, {}).get(commit, {}).get(name)
        if content is None:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif is_large(name) and self.where == "hub":
            headers = {"Location": f"{self.state.store_url}{self.path}", "X-Repo-Commit": commit}
            self._answer(302, b"", headers)
        else:
            self._send(name, content, self.state.fault(name))

    def _send(self, name: str, content: bytes, fault: Fault | None) -> None:
        start, ranged = self._first()
        if isinstance(fault, Status):
            self._answer(fault.code, b"", fault.headers)
            return
        if isinstance(fault, NoRanges):
            start, ranged = 0, False
        if isinstance(fault, OtherRange):
            start += 1
        if isinstance(fault, Wrong):
            content = bytes(byte ^ 1 for byte in content)
        self.send_response(206 if ranged else 200)
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        if isinstance(fault, BreakOff | Hold):
            self._write(name, rest[: fault.after])
            if isinstance(fault, Hold):
                self.state.go_on.wait()
            self.close_connection = True
            return
        self._write(name, rest)

    def _write(self, name: str, content: bytes) -> None:
        self.wfile.write(content)
        self.wfile.flush()
        self.state.sent[name] += len(content)

    def _answer(self, code: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _first(self) -> tuple[int, bool]:
        """Where the range begins, and whether there is one."""
        asked = self.headers.get("Range")
        if asked is None:
            return 0, False
        return int(asked.removeprefix("bytes=").removesuffix("-")), True

    def log_message(self, *_: object) -> None:
        pass
