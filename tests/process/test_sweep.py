"""The sweep of the process launcher, on processes that make it hard."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from box import eventually

from vllm_manager.launchers.process import ProcessLauncher

# A worker that makes shared memory all the time, below a main process that is dead when the sweep comes.
BUSY = """
import os, sys, time
if os.fork():
    os._exit(0)
for number in range(900):
    os.open(f"/dev/shm/{sys.argv[1]}-{number}", os.O_CREAT | os.O_RDWR)
    time.sleep(0.001)
time.sleep(60)
"""


# Shared memory that no process has open: only Python's resource tracker knows of it.
HIDDEN = """
import sys, time
from multiprocessing.shared_memory import SharedMemory
SharedMemory(name=sys.argv[1], create=True, size=16).close()
print(flush=True)
time.sleep(60)
"""


def test_the_resource_tracker_has_time_to_do_its_work(tmp_path: Path) -> None:
    log, made = tmp_path / "log", Path("/dev/shm", f"sweep-{tmp_path.parent.name}")
    with log.open("wb") as output:
        main = subprocess.Popen(
            [sys.executable, "-c", HIDDEN, made.name], stdout=output, stderr=output, start_new_session=True
        )
    try:
        eventually(lambda: log.stat().st_size, "it is there")
        assert made.exists()
        swept = asyncio.run(
            ProcessLauncher().sweep(log=str(log), cwd=str(tmp_path / "no"), title="vm-hidden", handle=None)
        )
        assert swept.stuck == ()
        assert main.wait(5) == -signal.SIGKILL
        assert not made.exists()
    finally:
        made.unlink(missing_ok=True)


@pytest.mark.parametrize("attempt", range(3))
def test_what_is_created_while_it_is_swept_is_known(tmp_path: Path, attempt: int) -> None:
    cwd, log, name = tmp_path / "instance", tmp_path / "log", f"sweep-{attempt}-{tmp_path.parent.name}"
    cwd.mkdir()

    def made() -> set[str]:
        return {str(path) for path in Path("/dev/shm").glob(f"{name}-*")}

    with log.open("wb") as output:
        main = [sys.executable, "-c", BUSY, name]
        subprocess.run(main, cwd=cwd, stdout=output, stderr=output, start_new_session=True, check=True)
    try:
        eventually(made, "its worker is busy")
        swept = asyncio.run(
            ProcessLauncher().sweep(log=str(log), cwd=str(cwd), title=f"vm-{name}", handle=None)
        )
        assert swept.stuck == ()
        assert swept.shared_memory == made()
    finally:
        for path in made():
            Path(path).unlink()
