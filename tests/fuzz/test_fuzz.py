"""100,000 broken manifests and command lines: an error with a cause, never a traceback, never a hang."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS, CASES = 10, 10_000
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("number", range(ROUNDS))
def test_broken_input_is_refused_with_a_reason(number: int, tmp_path: Path) -> None:
    workers = os.cpu_count() or 1
    each = -(-CASES // workers)
    running = []
    for worker in range(workers):
        directory = tmp_path / str(worker)
        directory.mkdir()
        seed = number * workers + worker
        command = [sys.executable, "-m", "tests.fuzz.worker", str(seed), str(each), str(directory)]
        running.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
    for process in running:
        output = process.communicate()[0].splitlines()
        assert process.returncode == 0, f"it hung or broke: {output[-1:]}"
        *findings, ran = output
        assert not findings, json.loads(findings[0])
        assert int(ran) == each
