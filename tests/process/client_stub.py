"""An HTTP server on loopback that answers, breaks off or hangs as a test's script says."""

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from vllm_manager.types import Endpoint, Phase

DEADLINE = 10.0  # seconds for what happens at once


class Handler(BaseHTTPRequestHandler):
    """One connection; the stub's ``script`` answers each of its requests."""

    protocol_version = "HTTP/1.1"
    timeout = DEADLINE
    server: "Stub"

    def setup(self) -> None:
        super().setup()
        self.served = 0
        self.server.connections += 1
        self.server.open.append(self.connection)

    def do(self) -> None:
        length = int(self.headers.get("content-length", 0))
        self.raw = self.rfile.read(length)
        is_json = self.headers.get("content-type") == "application/json"
        self.body = json.loads(self.raw) if is_json else None
        self.served += 1
        self.server.requests.append(self)
        self.server.arrived.set()
        self.server.script(self)

    do_GET = do_POST = do

    def answer(self, status: int, body: object, **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"content-type": "application/json"} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def chat(self, text: str) -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        self.answer(200, {"model": "llama", "choices": [choice], "usage": usage})

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def send(self, raw: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(raw), raw))

    def delta(self, text: str | None, finish: str | None = None) -> None:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
        self.event({"choices": [choice]})

    def event(self, payload: object) -> None:
        self.send(b"data: " + json.dumps(payload).encode() + b"\n\n")

    def end_stream(self) -> None:
        self.event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
        self.send(b"data: [DONE]\n\n")
        self.send(b"")

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        pass


class Stub(ThreadingHTTPServer):
    daemon_threads = False  # server_close() joins them
    request_queue_size = 64

    def __init__(self, script: Callable[[Handler], None]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.requests: list[Handler] = []
        self.connections = 0
        self.open: list[socket.socket] = []
        self.arrived = threading.Event()
        self.gone = threading.Event()  # the client closed its connection
        self.released = threading.Event()  # the test is over: no need to hang any longer
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def endpoint(self, **fields) -> Endpoint:
        known = {"deployment": "llama", "model": "llama", "names": ("llama",), "phase": Phase.READY}
        return Endpoint(**({"root_url": self.url} | known | fields))

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self._thread.join()
        for connection in self.open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def handle_error(self, *_: object) -> None:
        pass  # clients hang up on purpose here


# --- scripts


def echo(handler: Handler) -> None:
    handler.chat(handler.body["messages"][-1]["content"])


def wait_until_gone(handler: Handler) -> None:
    """Blocks until the client closes its connection."""
    handler.close_connection = True
    if handler.connection.recv(1) == b"":
        handler.server.gone.set()


def hang(handler: Handler) -> None:
    handler.close_connection = True
    handler.server.released.wait(DEADLINE)


def endless(handler: Handler) -> None:
    handler.begin_stream()
    try:
        while not handler.server.released.wait(0.005):
            handler.delta("more ")
    except OSError:
        handler.server.gone.set()
