"""A ready instance that hangs without dying, and ones that only look like it."""

import os
import signal
import time
from typing import Any

import pytest
from box import Box, eventually, post

LIVENESS = {"after": 1.2, "timeout": 0.5}


# The warm-up is answered, and nothing after it; the gauges show nothing running, or the request that hangs.
@pytest.mark.parametrize("fake", [{"hang": 1}, {"stall": 1}])
def test_a_hung_engine_behind_a_healthy_port_is_restarted(box: Box, fake: dict[str, Any]) -> None:
    box.run("up", box.manifest(fake=fake, liveness=LIVENESS))
    first = box.record()["instance"]
    began = time.monotonic()
    eventually(lambda: box.phase() == "ready" and box.record()["instance"] != first, "it was restarted")
    assert time.monotonic() - began < 130 * LIVENESS["after"] / 60 + 10
    error = next(cause for cause in box.causes() if "hung" in cause)
    assert "two 1-token requests failed" in error
    assert "counters stand still" in error


def test_a_frozen_worker_is_found_though_every_gauge_is_calm(box: Box) -> None:
    box.run("up", box.manifest(liveness=LIVENESS))
    first, tree = box.record()["instance"], box.tree()
    os.kill(tree["Worker"], signal.SIGSTOP)
    eventually(lambda: box.phase() == "ready" and box.record()["instance"] != first, "it was restarted")
    assert not set(tree.values()) & set(box.tree().values())


def test_a_slow_answer_is_left_alone_for_as_long_as_tokens_move(box: Box) -> None:
    box.run("up", box.manifest(fake={"token_delay": 0.3}, liveness=LIVENESS))
    first, url = box.record()["instance"], box.endpoints()["tiny"]["root_url"]
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 20, "ignore_eos": True}
    status, answer = post(url, "/v1/completions", body)
    assert (status, answer["usage"]["completion_tokens"]) == (200, 20)
    assert box.record()["instance"] == first
    assert box.events()[-1] == "ready"


def test_switched_off_a_hung_engine_stays(box: Box) -> None:
    hung = box.manifest(fake={"hang": 1}, liveness=LIVENESS | {"enabled": False})
    box.run("up", hung)
    first = box.record()["instance"]
    # A second deployment with the same times is restarted meanwhile.
    box.run("up", box.manifest("other", fake={"hang": 1}, liveness=LIVENESS))
    other = box.record("other")["instance"]
    eventually(lambda: box.record("other")["instance"] != other, "the other was restarted")
    assert box.record()["instance"] == first
    # Switched on, without a restart of its own.
    box.run("up", box.manifest(fake={"hang": 1}, liveness=LIVENESS))
    assert box.record()["instance"] == first
    eventually(lambda: box.record()["instance"] != first, "it was restarted")
