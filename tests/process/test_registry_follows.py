"""The registry's clients follow their deployment wherever the supervisor takes it."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from box import Box, eventually

from vllm_manager import registry
from vllm_manager.errors import AmbiguousName, ClientError, ModelNotReady, NotFound, WaitTimeout
from vllm_manager.types import Phase

HELLO = "Hello, this is the fake model."


@pytest.fixture(autouse=True)
def registry_of_the_box(shared_box: Box, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The box's registry in this very process."""
    monkeypatch.setenv("VLLM_MANAGER_STATE_DIR", str(shared_box.state))
    yield
    for client in registry._clients.sync.values():
        client.close()


def test_a_client_survives_restarts_new_ports_and_new_keys(box: Box) -> None:
    box.run("up", box.manifest(api_key="generate"))
    client = registry.client("tiny")
    assert client.chat("hello").text == HELLO
    url = registry.endpoint("tiny").base_url

    os.kill(box.tree()["main"], signal.SIGKILL)
    eventually(lambda: box.events().count("ready") == 2, "ready again")
    assert client.chat("hello").text == HELLO

    box.run("up", box.manifest(api_key="another-key", port=box.ports[7]))
    assert registry.endpoint("tiny").base_url != url
    assert client.chat("hello").text == HELLO

    box.kill_supervisor()
    assert client.chat("hello").text == HELLO
    box.serve()


def test_a_client_says_why_it_cannot(box: Box) -> None:
    with pytest.raises(NotFound, match="no deployment is called tiny"):
        registry.client("tiny")
    box.run("up", "-d", box.manifest(fake={"stall_at": "weights"}))
    box.wait_for_phase("starting", "loading")
    client = registry.client("tiny")
    with pytest.raises(ModelNotReady):
        client.chat("hello")
    with pytest.raises(WaitTimeout, match=r"tiny isn't ready after 0\.1 s"):
        registry.wait("tiny", timeout=0.1)
    box.run("down", "--now", "tiny")
    with pytest.raises((NotFound, ClientError)):
        client.chat("hello")


def test_wait_returns_as_soon_as_it_is_ready_or_failed(box: Box) -> None:
    box.run(
        "up", "-d", box.manifest(fake={"startup": 1.0}), box.manifest("bad", fake={"fail_start": "badarg"})
    )
    found = registry.wait("tiny", timeout=30)
    assert found.phase is Phase.READY
    assert found.max_model_len
    with pytest.raises(ModelNotReady, match="--not-a-flag"):
        registry.wait("bad", timeout=30)


def test_names_and_aliases(box: Box) -> None:
    box.run("up", box.manifest("one", aliases=["shared", "uno"]), box.manifest("two", aliases=["shared"]))
    assert registry.endpoint("uno").deployment == "one"
    assert {endpoint.deployment for endpoint in registry.endpoints()} == {"one", "two"}
    with pytest.raises(AmbiguousName, match="one, two"):
        registry.client("shared")
    assert "one, two" in box.run("chat", "shared", "hello", exits=4).stderr


def test_requests_meet_a_restart_and_go_on_after_it(box: Box) -> None:
    box.run("up", box.manifest())
    client = registry.client("tiny")
    seen: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                seen.append(client.chat("hello").text)
            except ClientError as error:
                seen.append(type(error).__name__)
            time.sleep(0.01)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        eventually(lambda: HELLO in seen, "it answers")
        os.kill(box.tree()["EngineCore"], signal.SIGKILL)
        eventually(lambda: box.events().count("ready") == 2, "ready again")
        after = len(seen)
        eventually(lambda: len(seen) > after + 3, "requests go on")
    finally:
        stop.set()
        asking.join()
    # Only errors of the product, and none once it is ready again.
    assert set(seen) > {HELLO}
    assert set(seen[after + 1 :]) == {HELLO}
