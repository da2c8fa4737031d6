import io

import click
import pytest
from rich.console import Console

from vllm_manager.cli.output import download_text, duration, phase_text
from vllm_manager.cli.progress import _Lines, _Live, step_durations
from vllm_manager.types import Download, Endpoint, Phase, Status, Step, StepName

STEPS = (
    Step(name=StepName.IMPORT, began=0.0),
    Step(name=StepName.WEIGHTS, began=3.0, progress=0.4, detail="2/5 shards"),
)


def status(phase: Phase, **fields) -> Status:
    endpoint = Endpoint(deployment="x", model="x", names=("x",), root_url=None, phase=phase)
    return Status(name="x", source="", endpoint=endpoint, **fields)


def drawn(shown: Status | None) -> str:
    out = io.StringIO()
    console = Console(file=out, width=80)
    view = _Live(console)
    if shown is not None:
        view.show(shown)
    console.print(view)
    return out.getvalue()


@pytest.mark.parametrize("phase", list(Phase))
def test_the_live_view_draws_every_phase_with_and_without_steps(phase):
    assert f"x: {phase}" in drawn(status(phase))
    assert f"x: {phase}" in drawn(status(phase, steps=STEPS, elapsed=5.0))
    assert f"x: {phase}" in drawn(status(phase, steps=STEPS))


def test_the_live_view_draws_nothing_before_it_knows_anything():
    assert drawn(None).strip() == ""


def test_the_live_view_shows_finished_steps_and_the_progress_of_the_current_one():
    lines = drawn(status(Phase.LOADING, steps=STEPS, elapsed=5.0)).splitlines()
    assert any("✓" in line and "import" in line and "3.0 s" in line for line in lines)
    assert any("weights" in line and "━" in line and "2/5 shards" in line for line in lines)


DOWNLOAD = Download(repository="org/model", done=2 << 30, total=3 << 30, speed=45.2e6)


@pytest.mark.parametrize(
    ("download", "text"),
    [
        (DOWNLOAD, "download 66 % of 3.0 GiB, 45 MB/s"),
        (Download(repository="m", done=0, total=5 << 20), "download 0 % of 5.0 MiB, 0 MB/s"),
        (Download(repository="m", done=0, total=0), "download 0 % of 0.0 MiB, 0 MB/s"),
    ],
)
def test_downloads_for_people(download, text):
    assert download_text(download) == text


def test_a_download_is_shown_as_long_as_it_lasts(capsys):
    assert click.unstyle(phase_text(status(Phase.PENDING, download=DOWNLOAD))) == (
        "pending (download 66 % of 3.0 GiB, 45 MB/s)"
    )
    lines = drawn(status(Phase.PENDING, download=DOWNLOAD)).splitlines()
    assert any("━" in line and "download 66 % of 3.0 GiB, 45 MB/s" in line for line in lines)
    view = _Lines()
    for _ in range(3):  # far less than the time between two lines
        view.show(status(Phase.PENDING, download=DOWNLOAD))
    assert capsys.readouterr().err.splitlines() == ["x: pending", "x: download 66 % of 3.0 GiB, 45 MB/s"]


def test_what_went_wrong_is_shown_above_in_place_of_the_start():
    out = io.StringIO()
    console = Console(file=out, width=40)
    view = _Live(console)
    view.show(status(Phase.LOADING, steps=STEPS, elapsed=5.0))
    view.end("x", ["error: " + "long " * 20, "hint: do"])
    console.print(view)
    assert out.getvalue().splitlines() == ["error: " + "long " * 20, "hint: do"]


def test_steps_last_until_the_next_and_the_last_until_the_end():
    assert [seconds for _, seconds in step_durations(STEPS, 10.0)] == [3.0, 7.0]
    assert step_durations((), 10.0) == []


def test_lines_tell_each_step_once(capsys):
    view = _Lines()
    for _ in range(3):
        view.show(status(Phase.LOADING, steps=STEPS, elapsed=5.0, instance="x-1"))
    assert capsys.readouterr().err.splitlines() == ["x: import (after 0.0 s)", "x: weights (after 3.0 s)"]


def test_lines_say_nothing_of_what_was_ready_before(capsys):
    _Lines().show(status(Phase.READY, steps=STEPS))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"), (9.94, "9.9 s"), (10, "10 s"), (59.4, "59 s"), (60, "1m00s"), (190, "3m10s"),
        (3599, "59m59s"), (3600, "1h00m"), (7500, "2h05m"), (86400, "1d00h"), (273600, "3d04h"),
    ],
)  # fmt: skip
def test_durations_for_people(seconds, text):
    assert duration(seconds) == text
