"""A Hugging Face hub on loopback: what huggingface_hub asks of the real one, with its errors and accidents.

Small files come from ``/resolve`` itself; large ones, as on the real hub, by a redirect to another origin (a
CDN), which must not see the token.
"""

import hashlib
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 10_000
"""Files from this size on are stored as LFS objects."""


def content(size: int, seed: str = "") -> bytes:
    """Bytes that no compression and no repetition makes easier."""
    return random.Random(f"{seed}{size}").randbytes(size)


@dataclass
class Repository:
    """A model's repository.

    Attributes:
        files: Content by path.
        gated: Whether files are given only to the tokens in ``granted``; everybody sees the list of them.
        private: Whether only those tokens see anything.
    """

    files: dict[str, bytes]
    gated: bool = False
    private: bool = False
    granted: set[str] = field(default_factory=set)
    revisions: tuple[str, ...] = ("main",)

    @property
    def commit(self) -> str:
        """Changes with the content."""
        parts = [f"{path} {etag_of(data)}" for path, data in sorted(self.files.items())]
        return hashlib.sha1("\n".join(parts).encode()).hexdigest()


def etag_of(data: bytes) -> str:
    """A large file's SHA-256, a small one's blob id in git."""
    if len(data) >= LARGE:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Request:
    """What was asked."""

    method: str
    path: str
    host: str
    range: str | None
    token: str | None


@dataclass
class Hub:
    """The hub's content, and the knobs of a test. Set them before, or while, requests come.

    Attributes:
        tokens: Those that it knows.
        requests: All that came.
        failures: Answers to the next requests instead of the real ones: status and headers.
        breaks: By path: after how many bytes the connection is cut, once for each entry.
        hold: By path: after how many bytes nothing more comes until ``release`` is set.
        wrong: By path: what is sent instead of the content.
        rate: Bytes a second, or None.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    requests: list[Request] = field(default_factory=list)
    failures: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    breaks: dict[str, list[int]] = field(default_factory=dict)
    hold: dict[str, int] = field(default_factory=dict)
    wrong: dict[str, bytes] = field(default_factory=dict)
    release: threading.Event = field(default_factory=threading.Event)
    rate: float | None = None
    port: int = 0

    @property
    def url(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.port}"

    def add(self, name: str, **options: Any) -> Repository:
        """A repository with these files, or those of a small model."""
        options.setdefault("files", small_model())
        self.repositories[name] = Repository(**options)
        return self.repositories[name]

    def sent(self, path: str) -> list[Request]:
        """The requests for the bytes of a large file."""
        return [r for r in self.requests if r.path == f"/cdn/{path}" and r.method == "GET"]


def small_model(size: int = 3_000_000) -> dict[str, bytes]:
    """Two shards of weights with their index, and what belongs to them; and what vLLM doesn't read."""
    shards = {f"model-0000{n}-of-00002.safetensors": content(size // 2, str(n)) for n in (1, 2)}
    index = {"weight_map": {f"layer.{n}": name for n, name in enumerate(shards)}}
    return {
        ".gitattributes": b"*.safetensors filter=lfs\n",
        "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
        "tokenizer.json": content(20_000, "tokenizer"),
        "model.safetensors.index.json": json.dumps(index).encode(),
        "picture.png": content(500),
        "original/consolidated.00.pth": content(50_000),
        **shards,
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        if path == "/api/agent-harnesses":  # the library's telemetry; it does without
            return self._error(404, {})
        seen = Request(self.command, path, self.headers.get("Host", ""), self.headers.get("Range"), token)
        hub.requests.append(seen)
        if hub.failures:
            status, headers = hub.failures.pop(0)
            return self._error(status, headers)
        if path.startswith("/cdn/"):
            return self._bytes(path.removeprefix("/cdn/"))
        if token is not None and token not in hub.tokens:
            return self._error(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        if path.startswith("/api/models/"):
            return self._api(path.removeprefix("/api/models/"), token)
        name, _, rest = path.removeprefix("/").partition("/resolve/")
        return self._resolve(name, rest, token)

    def _repository(self, name: str, token: str | None) -> Repository | None:
        found = self.hub.repositories.get(name)
        if found is not None and not (found.private and token not in found.granted):
            return found
        # Who isn't logged in isn't told whether it exists.
        message = "Repository not found" if token else "Invalid username or password."
        self._error(404 if token else 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": message})
        return None

    def _revision(self, found: Repository, revision: str) -> bool:
        if revision in (*found.revisions, found.commit):
            return True
        self._error(
            404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"}
        )
        return False

    def _api(self, path: str, token: str | None) -> None:
        parts = path.split("/")
        name, rest = "/".join(parts[:2]), parts[2:]
        found = self._repository(name, token)
        if found is None:
            return
        kind, revision = (rest[0], "/".join(rest[1:])) if rest else ("revision", "main")
        if not self._revision(found, revision):
            return
        files = [self._describe(path, data) for path, data in sorted(found.files.items())]
        if kind == "tree":
            self._json(
                [{"type": "file", "path": f["rfilename"], "oid": f["blobId"], **_tree(f)} for f in files]
            )
            return
        self._json(
            {
                "id": name,
                "modelId": name,
                "sha": found.commit,
                "private": found.private,
                "gated": "manual" if found.gated else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": files,
            }
        )

    @staticmethod
    def _describe(path: str, data: bytes) -> dict[str, Any]:
        entry = {"rfilename": path, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
        if len(data) >= LARGE:
            entry["lfs"] = {"sha256": etag_of(data), "size": len(data), "pointerSize": 130}
        else:
            entry["blobId"] = etag_of(data)
        return entry

    def _resolve(self, name: str, rest: str, token: str | None) -> None:
        found = self._repository(name, token)
        if found is None:
            return
        revision, _, path = rest.partition("/")
        if not self._revision(found, revision):
            return
        if found.gated and token not in found.granted:
            message = f"Access to model {name} is restricted and you are not in the authorized list."
            self._error(403 if token else 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": message})
            return
        if path not in found.files:
            self._error(404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            return
        data = found.files[path]
        headers = {"X-Repo-Commit": found.commit, "ETag": f'"{etag_of(data)}"'}
        if len(data) < LARGE:
            self._send(200, headers, data, path)
            return
        headers |= {"X-Linked-ETag": f'"{etag_of(data)}"', "X-Linked-Size": str(len(data))}
        headers["Location"] = f"http://localhost:{self.hub.port}/cdn/{path}"
        self._send(302, headers, b"", "")

    def _bytes(self, path: str) -> None:
        (data,) = [r.files[path] for r in self.hub.repositories.values() if path in r.files][:1]
        data = self.hub.wrong.get(path, data)
        wanted = self.headers.get("Range")
        if wanted is None:
            self._send(200, {}, data, path)
            return
        begin = int(wanted.removeprefix("bytes=").rstrip("-"))
        headers = {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"}
        self._send(206, headers, data[begin:], path)

    def _json(self, value: Any) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode(), "")

    def _error(self, status: int, headers: dict[str, str]) -> None:
        body = json.dumps({"error": headers.get("X-Error-Message", "no")}).encode()
        self._send(status, headers, body, "")

    def _send(self, status: int, headers: dict[str, str], body: bytes, path: str) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            self._write(body, path)

    def _write(self, body: bytes, path: str) -> None:
        hub = self.hub
        cut = hub.breaks[path].pop(0) if hub.breaks.get(path) else None
        if cut is not None:
            self.wfile.write(body[:cut])
            self.close_connection = True
            return
        held = hub.hold.get(path)
        if held is not None and not hub.release.is_set():
            self.wfile.write(body[:held])
            self.wfile.flush()
            hub.release.wait(60)
            body = body[held:]
        step = max(1, int((hub.rate or 0) / 20)) if hub.rate else len(body)
        for begin in range(0, len(body), step or 1):
            self.wfile.write(body[begin : begin + step])
            if hub.rate:
                time.sleep(0.05)


def _tree(described: dict[str, Any]) -> dict[str, Any]:
    lfs = described.get("lfs")
    extra = {"lfs": {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": 130}} if lfs else {}
    return {"size": described["size"], **extra}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass  # a client that was killed


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub that answers for as long as the block lasts."""
    hub = Hub()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.release.set()
        server.shutdown()
        server.server_close()
        thread.join()
