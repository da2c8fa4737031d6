"""Starting a vLLM, real or fake, and looking at it."""

import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

from vllm_manager.engines.recipes import DEFAULT_VERSION, engine_name
from vllm_manager.paths import engines_dir
from vllm_manager.types import Device

MODELS = Path(__file__).parents[2] / "manifests" / "models"
MODEL = MODELS / "tiny"
KEY = "contract-key"
PREFIX = "vm-contract"
# A CPU build alone on two cores needs 25 s; beside other work 70 s were seen.
START_DEADLINE = 180.0


def eventually(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true value of ``condition``; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {seconds} s")
        time.sleep(0.005)
    return value


def free_port() -> int:
    """A port that nobody has now, below the ephemeral range."""
    for port in range(8300 + os.getpid() % 1000, 32000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def events(self) -> list[Any]:
        """The data of a stream of server-sent events; the last is ``[DONE]``."""
        data = [part.removeprefix("data: ") for part in self.text.split("\n\n") if part]
        return [part if part == "[DONE]" else json.loads(part) for part in data]


@dataclass
class Instance:
    """A ``vllm serve`` that a test started, in its own session with its own directories."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes]
    shared_memory: set[str] = field(default_factory=set)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdout(self) -> str:
        return (self.directory / "stdout").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return (self.directory / "stderr").read_text(errors="replace")

    def refused(self) -> bool:
        """Whether a connection is refused at once (and neither accepted nor left waiting)."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=2).close()
        except ConnectionRefusedError:
            return True
        return False

    def wait_for_log(self, pattern: str) -> None:
        """Wait for a line on stdout while the process lives."""

        def seen() -> bool:
            if re.search(pattern, self.stdout):
                return True
            assert self.process.poll() is None, f"rc {self.process.returncode}: {self.stderr[-2000:]}"
            return False

        eventually(seen, START_DEADLINE, f"log line {pattern!r}")
        self.shared_memory |= self.open_shared_memory()

    def wait_until_open(self) -> None:
        """Wait until it listens."""

        def opened() -> bool:
            assert self.process.poll() is None, f"rc {self.process.returncode}: {self.stderr[-2000:]}"
            return not self.refused()

        eventually(opened, START_DEADLINE, "listening")
        self.shared_memory |= self.open_shared_memory()

    def pids(self) -> list[int]:
        """Living processes of its session."""
        found = []
        for process in psutil.process_iter():
            with suppress(ProcessLookupError, psutil.Error):
                if os.getsid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        return found

    def members(self) -> dict[str, int]:
        """The same by name, as in /proc/PID/comm; any Python is ``python``, whatever the engine calls it."""
        found = {}
        for pid in self.pids():
            with suppress(OSError):
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                found["python" if name.startswith("python") else name] = pid
        return found

    def open_shared_memory(self) -> set[str]:
        """The /dev/shm/psm_* files that its processes hold open."""
        held = set()
        for pid in self.pids():
            with suppress(OSError):
                held |= {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
        return {path for path in held if path.startswith("/dev/shm/psm_")}

    @contextmanager
    def connect(self) -> Iterator[http.client.HTTPConnection]:
        """A connection for several requests."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            yield connection
        finally:
            connection.close()

    def send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> http.client.HTTPResponse:
        """Send a request, with the key where ``headers`` don't say otherwise."""
        data = body if isinstance(body, str) or body is None else json.dumps(body)
        given = {"Authorization": f"Bearer {KEY}"} if headers is None else headers
        connection.request(method, path, data, {"Content-Type": "application/json", **given})
        return connection.getresponse()

    def ask(self, *args: Any, **kwargs: Any) -> Answer:
        """The whole answer to one request."""
        with self.connect() as connection:
            response = self.send(connection, *args, **kwargs)
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read().decode())

    def upload(self, path: str, fields: dict[str, str], sound: bytes) -> Answer:
        """The answer to a form with a sound file."""
        boundary = "a-boundary-that-no-sound-has"
        parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
        parts.append(b'name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n' + sound)
        edge = f"--{boundary}".encode()
        body = b"".join(edge + b"\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts)
        headers = {
            "Authorization": f"Bearer {KEY}",
            "Content-Type": f"multipart/form-data; boundary={boundary}",
        }
        with self.connect() as connection:
            connection.request("POST", path, body + edge + b"--\r\n", headers)
            response = connection.getresponse()
            return Answer(response.status, {}, response.read().decode())

    def end(self) -> None:
        """Kill what is left of the session and remove what it leaked."""
        if self.process.poll() is not None:
            # Alone, the resource tracker is removing the shared memory; killed now, it would leave it.
            eventually(lambda: set(self.members()) != {"python"}, 5, "the resource tracker's end")
        self.shared_memory |= self.open_shared_memory()
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(10)
        eventually(lambda: not self.pids(), 10, "an empty session")
        for path in self.shared_memory:
            Path(path).unlink(missing_ok=True)


@dataclass(frozen=True)
class Engine:
    """A vLLM to start instances of."""

    kind: str
    python: Path

    @contextmanager
    def start(
        self,
        directory: Path,
        *extra: str,
        knobs: dict[str, Any] | None = None,
        model: Path = MODEL,
        env: dict[str, str] | None = None,
    ) -> Iterator[Instance]:
        """Start a tiny model; ``knobs`` are for the fake alone. Nothing outlives the block."""
        port = free_port()
        environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        environment |= {
            "VLLM_API_KEY": KEY,
            "VLLM_PROCESS_NAME_PREFIX": PREFIX,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "FAKE_VLLM": json.dumps(knobs or {}),
            **(env or {}),
        }
        for variable, name in (("TMPDIR", "tmp"), ("VLLM_RPC_BASE_PATH", "rpc")):
            (directory / name).mkdir()
            environment[variable] = str(directory / name)
        command = [self.python.with_name("vllm"), "serve", model, "--served-model-name", "tiny", "tiny-alias"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--load-format", "dummy", "--enforce-eager"]
        command += ["--max-model-len", "512", *extra]
        with (directory / "stdout").open("wb") as stdout, (directory / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=environment,
                start_new_session=True,
            )
        instance = Instance(directory, port, process)
        try:
            yield instance
        finally:
            instance.end()


def tone(seconds: float) -> bytes:
    """A WAV file of 16 kHz with a tone in it."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16_000)
        writer.writeframes((b"\x00\x08" * 20 + b"\x00\xf8" * 20) * int(400 * seconds))
    return file.getvalue()


def sound_libraries(python: Path, directory: Path) -> dict[str, str]:
    """What an engine's environment needs so that it can read sound files; nothing where it can already."""
    if subprocess.run([python, "-c", "import av, soundfile"], capture_output=True).returncode == 0:
        return {}
    install = [python, "-m", "pip", "install", "-q", "--no-deps", "--target", directory, "soundfile", "av"]
    subprocess.run([str(part) for part in install], check=True)
    return {"PYTHONPATH": str(directory)}


def lacking(reason: str) -> NoReturn:
    """Skip for want of something, except in CI, where everything has to be there."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def required_engine() -> Path:
    """The Python of a real vLLM: $VLLM_MANAGER_TEST_ENGINE, else of the installed default CPU engine."""
    if configured := os.environ.get("VLLM_MANAGER_TEST_ENGINE"):
        return Path(configured)
    engine = engines_dir() / engine_name(DEFAULT_VERSION, Device.CPU)
    if not (engine / "engine.json").exists():
        lacking("no vLLM here: `vllm-manager engine install` makes one")
    return engine / "bin" / "python"
