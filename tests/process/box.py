"""An isolated machine for tests that drive the command line: own state, socket, ports, home, engine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

MODEL = Path(__file__).parents[2] / "manifests" / "models" / "tiny"
PORTS_PER_BOX = 12
DEADLINE = 30.0


def eventually(condition: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
    """The first true value of ``condition``; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {seconds} s")
        time.sleep(0.02)
    return value


def unprivileged() -> list[str]:
    """What to put before a command for which permissions are to count, also when root runs the tests."""
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


def alive(pid: int) -> bool:
    """Whether anything of the process is there but the zombie that its parent has to look at."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    # With its first thread gone and others still ending it looks like a zombie, and holds all its files.
    state, threads = fields[0], int(fields[17])
    return state not in "ZX" or threads > 1


def listening(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def post(
    base_url: str, path: str, body: Mapping[str, Any], key: str | None = None, timeout: float = 60.0
) -> tuple[int, Any]:
    """Status and JSON of a request to a model, made without any code of the product."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{base_url}{path}", json.dumps(body).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def _crashed(text: str) -> bool:
    # vLLM's own, which is quoted with a prefix, is welcome.
    return any(line.startswith("Traceback") for line in text.splitlines())


def _reserve_ports() -> tuple[socket.socket, range]:
    # The listener on the first port of a block reserves it: test runs beside this one take other blocks.
    for first in range(10_000, 30_000, PORTS_PER_BOX):
        guard = socket.socket()
        try:
            guard.bind(("127.0.0.1", first))
            guard.listen()
        except OSError:
            guard.close()
            continue
        ports = range(first + 1, first + PORTS_PER_BOX)
        if not any(map(listening, ports)):
            return guard, ports
        guard.close()
    raise AssertionError("no free ports")


@dataclass
class Started:
    """A command that runs beside the test."""

    process: subprocess.Popen[bytes]
    directory: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def out(self) -> str:
        return (self.directory / "out").read_text()

    @property
    def err(self) -> str:
        return (self.directory / "err").read_text()

    def interrupt(self) -> None:
        """What Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)

    def wait(self, seconds: float = DEADLINE) -> int:
        """Its exit code."""
        code = self.process.wait(seconds)
        assert not _crashed(self.err), self.err
        return code


class Box:
    """Use as a context manager: at its end nothing of it may be left."""

    def __init__(self, engine: Path) -> None:
        self.engine = engine
        # Short, since unix sockets are made below it.
        self.root = Path(tempfile.mkdtemp(prefix="vm-", dir="/tmp"))
        self.state = self.root / "state"
        self.socket = self.root / "control" / "s"
        self._guard, self.ports = _reserve_ports()
        self._started: list[Started] = []
        self._shared_memory: set[str] = set()
        for name in ("home", "tmp", "manifests"):
            (self.root / name).mkdir()
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        self.env: dict[str, str] = kept | {
            "HOME": str(self.root / "home"),
            "TMPDIR": str(self.root / "tmp"),
            "LANG": "C.UTF-8",
            "VLLM_MANAGER_STATE_DIR": str(self.state),
            "VLLM_MANAGER_SOCKET": str(self.socket),
            "VLLM_MANAGER_ENGINES_DIR": str(self.root / "engines"),
            "VLLM_MANAGER_PORTS": f"{self.ports.start}-{self.ports.stop - 1}",
            "VLLM_MANAGER_MAX_STARTS": "8",
        }

    # --- driving the product

    def manifest(
        self, name: str = "tiny", *, fake: Mapping[str, Any] | None = None, file: str = "", **fields: Any
    ) -> Path:
        """Write a manifest for the fake vLLM; ``fake`` are its knobs, fields that are None are left out."""
        values: dict[str, Any] = {
            "name": name,
            "model": str(MODEL),
            "gpus": "none",
            "args": {"load-format": "dummy"},
            "engine": {"python": str(self.engine)},
            "restart": {"backoff_initial": 0.1, "backoff_max": 0.4},
        }
        values |= fields
        # A JSON text in a text: what vLLM gets is what the test says, whatever YAML makes of braces.
        knobs = {"startup": 0.02} | dict(fake or {})
        values["env"] = {"FAKE_VLLM": json.dumps(knobs)} | fields.get("env", {})
        path = self.root / "manifests" / (file or f"{name}.yaml")
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
        return path

    def command(self, *arguments: Any) -> list[str]:
        """The command line of ``vllm-manager``."""
        return [sys.executable, "-m", "vllm_manager", *map(str, arguments)]

    def run(
        self,
        *arguments: Any,
        exits: int | None = 0,
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        prefix: Sequence[str] = (),
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``vllm-manager`` and check its exit code; whatever happens, a user never sees a traceback."""
        done = subprocess.run(
            [*prefix, *self.command(*arguments)],
            env=self.env | dict(env or {}),
            text=True,
            timeout=timeout,
            cwd=self.root,
            check=False,
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
        )
        said = f"exit {done.returncode}\nstdout: {done.stdout}\nstderr: {done.stderr}"
        assert exits is None or done.returncode == exits, said
        assert not _crashed(done.stderr), said
        return done

    def start(
        self,
        *arguments: Any,
        argv: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Started:
        """Run ``vllm-manager`` (or ``argv``) beside the test; ended with the box at the latest."""
        directory = self.root / f"run-{len(self._started)}"
        directory.mkdir()
        with (directory / "out").open("wb") as out, (directory / "err").open("wb") as err:
            process = subprocess.Popen(
                argv or self.command(*arguments),
                env=self.env | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self.root,
                **options,
            )
        started = Started(process, directory)
        self._started.append(started)
        return started

    def serve(self, *arguments: Any) -> Started:
        """A supervisor in the foreground that answers."""
        started = self.start("serve", *arguments)

        def answers() -> bool:
            assert started.process.poll() is None, started.err
            if self.supervisor_pid() != started.pid:
                return False
            with socket.socket(socket.AF_UNIX) as connection:  # a killed one leaves its socket file
                return connection.connect_ex(str(self.socket)) == 0

        eventually(answers, "the supervisor answers")
        return started

    def python(self, program: str) -> str:
        """What a Python program prints that uses the package."""
        done = subprocess.run(
            [sys.executable, "-c", program], env=self.env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    # --- looking at it

    def ps(self, exits: int = 0) -> dict[str, dict[str, Any]]:
        """``ps --json`` by name."""
        return {status["name"]: status for status in json.loads(self.run("ps", "--json", exits=exits).stdout)}

    def endpoints(self) -> dict[str, dict[str, Any]]:
        """endpoints.json by deployment, as other programs read it; cheap enough to watch."""
        data = json.loads((self.state / "endpoints.json").read_bytes())
        return {endpoint["deployment"]: endpoint for endpoint in data["deployments"]}

    def phase(self, name: str = "tiny") -> str | None:
        """The published phase; None where there is no such deployment."""
        with suppress(FileNotFoundError):
            return self.endpoints().get(name, {}).get("phase")
        return None

    def wait_for_phase(self, *phases: str, name: str = "tiny") -> None:
        """Wait until the deployment is in one of these phases."""
        eventually(lambda: self.phase(name) in phases, f"{name} is {' or '.join(phases)}")

    def record(self, name: str = "tiny") -> dict[str, Any]:
        """The instance's record."""
        return json.loads((self.state / "instances" / f"{name}.json").read_bytes())

    def events(self, name: str = "tiny") -> list[str]:
        """The phases that the deployment went through."""
        lines = (self.state / "events.jsonl").read_text().splitlines()
        return [event["phase"] for event in map(json.loads, lines) if event["deployment"] == name]

    def causes(self, name: str = "tiny") -> list[str]:
        """What went wrong with the deployment, in the order of the events."""
        lines = (self.state / "events.jsonl").read_text().splitlines()
        found = [event for event in map(json.loads, lines) if event["deployment"] == name]
        return [event["cause"] for event in found if event["cause"]]

    def key(self, name: str = "tiny") -> str:
        """The deployment's key."""
        return json.loads((self.state / "secrets" / f"{name}.json").read_bytes())["api_key"]

    def supervisor_pid(self) -> int | None:
        """The supervisor that holds this box's lock."""
        with suppress(OSError, ValueError):
            pid = int((self.state / "lock").read_text())
            if pid in self.processes() and alive(pid):
                return pid
        return None

    def processes(self) -> dict[int, str]:
        """Every living process that has to do with this box, by its environment, files or directory."""
        return {pid: name for pid, name in _processes() if alive(pid) and self._owns(pid)}

    def tree(self, name: str = "tiny") -> dict[str, int]:
        """The processes of an instance by their short names; ``main`` is the one that was spawned."""
        try:
            record = self.record(name)
        except FileNotFoundError:
            return {}
        if record["handle"] is None:
            return {}
        found = {"main": record["handle"]["data"]["pid"]}
        for pid, title in _processes():
            if pid != found["main"] and alive(pid) and _link(pid, "cwd") == record["cwd"]:
                self._shared_memory |= _open_shared_memory(pid)
                found[title] = pid
        return found

    def _owns(self, pid: int) -> bool:
        mark = str(self.root)
        if any(_link(pid, what).startswith(mark) for what in ("cwd", "fd/1", "fd/2")):
            return True
        with suppress(OSError):
            return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
        return False

    # --- ending it

    def kill_supervisor(self) -> int:
        """SIGKILL the supervisor, and return its former pid."""
        pid = self.supervisor_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not alive(pid), "the supervisor is dead")
        return pid

    def stop_supervisor(self) -> bool:
        """End the supervisor with all it runs; whether there was one."""
        pid = self.supervisor_pid()
        if pid is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
            deadline = time.monotonic() + 0.5
            while alive(pid) and time.monotonic() < deadline:
                time.sleep(0.01)
            os.kill(pid, signal.SIGINT)  # what is still busy is killed
        eventually(lambda: not alive(pid), "the supervisor ended")
        return True

    def clear(self) -> None:
        """Take everything down, so that the next test finds the box as this one did."""
        assert self.supervisor_pid() is not None
        if self.endpoints():
            self.run("down", "--all", "--now")
        assert self.left_of_instances() == []
        (self.state / "events.jsonl").unlink(missing_ok=True)

    def left_of_instances(self) -> list[str]:
        """What should not be there when nothing is up."""
        supervisor = self.supervisor_pid()
        left = [f"process {pid} {name}" for pid, name in self.processes().items() if pid != supervisor]
        left += [f"port {port}" for port in self.ports if listening(port)]
        left += [path for path in self._shared_memory if os.path.exists(path)]
        left += [str(path) for path in (self.state / "run").glob("*")]
        return left

    def __enter__(self) -> "Box":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for pid in self.processes():
                self._shared_memory |= _open_shared_memory(pid)
            left: list[str] = []
            if self.stop_supervisor():
                self._end_started()
                left = self.left_of_instances()
        finally:
            self._end_started()
            # Without a supervisor (a test killed it) nobody but the test ends its instances.
            for pid in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for path in self._shared_memory:
                Path(path).unlink(missing_ok=True)
            self._guard.close()
            shutil.rmtree(self.root)
        assert not left

    def _end_started(self) -> None:
        for started in self._started:
            if started.process.poll() is None:
                started.process.kill()
            started.process.wait(10)


def _processes() -> list[tuple[int, str]]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid():
                found.append((process.pid, process.name().rpartition("::")[2]))
    return found


def _link(pid: int, what: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/{what}")
    except OSError:
        return ""


def _open_shared_memory(pid: int) -> set[str]:
    found = set()
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            found.add(_link(pid, f"fd/{name}"))
    return {path for path in found if path.startswith("/dev/shm/")}
