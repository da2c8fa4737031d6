"""Starts a supervisor in the background, as tmux starts its server."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from vllm_manager.control.client import ControlClient
from vllm_manager.errors import ControlError, NoSupervisor
from vllm_manager.paths import socket_path, state_dir

START_TIMEOUT = 30.0


def ensure_supervisor() -> ControlClient:
    """A client of the running supervisor; starts one first where none answers.

    Raises:
        ControlError: It didn't come up; its log tells why.
        SocketDenied: One runs, for somebody else.
    """
    client = ControlClient(socket_path())
    if client.running():
        return client
    log = _open_log()
    # A session of its own: it must outlive this terminal. Two started at once settle it by the lock.
    process = subprocess.Popen(
        [sys.executable, "-m", "vllm_manager", "serve", "--exit-when-empty"],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        cwd="/",
    )
    os.close(log)
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        with suppress(NoSupervisor):
            client.supervisor()
            # It is init's child from now on, and not to be waited for.
            process.returncode = 0 if process.returncode is None else process.returncode
            return client
        if ended and process.returncode != ALREADY_RUNNING:
            break
        time.sleep(0.05)
    lines = [line for line in log_path().read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    raise ControlError(
        cause=f"the supervisor didn't come up: {[*lines, *errors][-1] if lines else 'it said nothing'}",
        hint=f"its log is {log_path()}",
    )


ALREADY_RUNNING = 8


def log_path() -> Path:
    """The log of supervisors that run in the background."""
    return state_dir() / "supervisor.log"


def _open_log() -> int:
    from vllm_manager.store import Store

    Store(state_dir())  # creates the directory, or says why it can't
    return os.open(log_path(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
