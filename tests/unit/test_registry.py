import asyncio
import os
import subprocess
import sys
import threading
import time

import pytest

from vllm_manager import registry
from vllm_manager.errors import (
    AmbiguousName,
    ModelNotReady,
    NotFound,
    StateCorrupt,
    StateError,
    WaitTimeout,
)
from vllm_manager.store import Secrets, Store, endpoints_path
from vllm_manager.types import Endpoint, Phase


def deployed(name: str, *aliases: str, port: int = 8000, phase: Phase = Phase.READY, **fields) -> Endpoint:
    names = aliases or (name,)
    return Endpoint(
        deployment=name,
        model=names[0],
        names=names,
        root_url=f"http://127.0.0.1:{port}",
        phase=phase,
        **fields,
    )


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_MANAGER_STATE_DIR", str(tmp_path))
    return Store(tmp_path)


@pytest.fixture
def clients():
    """Closes what a test was handed."""
    handed = []
    yield handed.append
    for client in handed:
        client.close()


# --- names


def test_a_deployment_is_found_by_its_name_and_by_every_name_it_serves(state):
    state.save_endpoints((deployed("llama", "llama-8b", "meta/Llama"), deployed("other")))

    for name in ("llama", "llama-8b", "meta/Llama"):
        assert registry.endpoint(name).deployment == "llama"


def test_an_adapters_name_is_what_is_sent_then(state):
    state.save_endpoints((deployed("llama", "llama-8b", adapters=("sql",)),))

    assert registry.endpoint("sql").deployment == "llama"
    assert registry.endpoint("sql").model == "sql"
    assert registry.endpoint("llama").model == "llama-8b"


def test_a_deployments_own_name_wins_over_a_served_one(state):
    state.save_endpoints((deployed("b", "a"), deployed("a", port=8001)))

    assert registry.endpoint("a").deployment == "a"


def test_a_name_that_two_deployments_serve_is_ambiguous_and_names_them(state):
    state.save_endpoints((deployed("one", "m"), deployed("two", "m", port=8001)))

    with pytest.raises(AmbiguousName, match="one, two") as caught:
        registry.endpoint("m")
    assert caught.value.deployments == ("one", "two")
    assert registry.endpoint("two").root_url == "http://127.0.0.1:8001"


@pytest.mark.parametrize(("name", "hint"), [("lama", "did you mean llama?"), ("zzz", "there are: llama")])
def test_an_unknown_name_is_answered_with_near_ones_or_with_all(state, name, hint):
    state.save_endpoints((deployed("llama"),))

    with pytest.raises(NotFound, match=name) as caught:
        registry.endpoint(name)
    assert caught.value.hint == hint


def test_where_nothing_ever_ran_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_MANAGER_STATE_DIR", str(tmp_path / "absent"))

    assert registry.endpoints() == ()
    with pytest.raises(NotFound) as caught:
        registry.endpoint("llama")
    assert "vllm-manager up" in caught.value.hint


# --- the file


def test_the_key_comes_from_the_secrets_and_is_not_shown(state):
    state.save_secrets("llama", Secrets(api_key="sk-canary"))
    state.save_endpoints((deployed("llama"), deployed("open")))

    assert registry.endpoint("llama").api_key == "sk-canary"
    assert [found.api_key for found in registry.endpoints()] == ["sk-canary", None]
    assert "sk-canary" not in repr(registry.endpoints())


def test_a_change_is_seen_at_the_next_lookup_key_included(state):
    state.save_secrets("llama", Secrets(api_key="old"))
    state.save_endpoints((deployed("llama"),))
    assert registry.endpoint("llama").api_key == "old"

    state.save_secrets("llama", Secrets(api_key="new"))
    state.save_endpoints((deployed("llama", port=8001),))

    found = registry.endpoint("llama")
    assert (found.root_url, found.api_key) == ("http://127.0.0.1:8001", "new")


def test_an_unchanged_file_is_not_read_again(state, monkeypatch):
    state.save_endpoints((deployed("llama"),))
    registry.endpoint("llama")
    monkeypatch.setattr("vllm_manager.store.read_endpoints", lambda _: pytest.fail("read again"))
    monkeypatch.setattr("vllm_manager.store.read_secrets", lambda *_: pytest.fail("read again"))

    assert registry.endpoint("llama").deployment == "llama"


def test_another_state_directory_is_another_registry(state, tmp_path, monkeypatch):
    state.save_endpoints((deployed("llama"),))
    registry.endpoint("llama")

    monkeypatch.setenv("VLLM_MANAGER_STATE_DIR", str(tmp_path / "other"))

    assert registry.endpoints() == ()


def test_a_damaged_file_is_one_clear_error(state, tmp_path):
    endpoints_path(tmp_path).write_text("{")

    with pytest.raises(StateCorrupt, match=r"endpoints\.json"):
        registry.endpoint("llama")


def test_a_state_directory_that_is_a_file_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLLM_MANAGER_STATE_DIR", str(tmp_path / "file"))

    with pytest.raises(StateError, match="Not a directory") as caught:
        registry.endpoints()
    assert "VLLM_MANAGER_STATE_DIR" in caught.value.hint


def test_a_warm_lookup_takes_less_than_a_millisecond_among_64_deployments(state):
    state.save_endpoints(tuple(deployed(f"model-{n}", f"alias-{n}", port=8000 + n) for n in range(64)))
    registry.endpoint("alias-63")

    def cost() -> float:
        began = time.process_time()
        for _ in range(100):
            registry.endpoint("alias-63")
        return (time.process_time() - began) / 100

    assert min(cost() for _ in range(5)) < 0.001


# --- waiting


def test_wait_returns_at_once_for_what_is_ready(state):
    state.save_endpoints((deployed("llama", "alias"),))

    assert registry.wait("alias", timeout=0).deployment == "llama"


def test_wait_returns_when_the_deployment_becomes_ready(state, monkeypatch):
    state.save_endpoints((deployed("llama", phase=Phase.LOADING),))
    polled = threading.Event()
    monkeypatch.setattr("vllm_manager.registry.time.sleep", lambda _: polled.set())
    found = []
    waiting = threading.Thread(target=lambda: found.append(registry.wait("llama", timeout=30)))
    waiting.start()
    assert polled.wait(10)

    state.save_endpoints((deployed("llama", port=8005),))
    waiting.join(10)

    assert [endpoint.root_url for endpoint in found] == ["http://127.0.0.1:8005"]


def test_wait_gives_up_after_its_timeout_and_says_how_far_it_is(state):
    state.save_endpoints((deployed("llama", phase=Phase.LOADING, step="weights 62 %"),))

    with pytest.raises(WaitTimeout, match="weights 62 %") as caught:
        registry.wait("llama", timeout=0)
    assert caught.value.seconds == 0


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.STOPPED])
def test_wait_raises_the_cause_of_what_will_not_become_ready(state, phase):
    state.save_endpoints((deployed("llama", phase=phase, cause="out of GPU memory", hint="use less"),))

    with pytest.raises(ModelNotReady, match="out of GPU memory") as caught:
        registry.wait("llama")
    assert (caught.value.phase, caught.value.hint) == (phase.value, "use less")


def test_wait_keeps_waiting_through_backoff(state):
    state.save_endpoints((deployed("llama", phase=Phase.BACKOFF),))

    with pytest.raises(WaitTimeout):
        registry.wait("llama", timeout=0)


# --- clients


def test_there_is_one_client_per_name(state, clients):
    state.save_endpoints((deployed("llama"), deployed("other", port=8001)))
    first, other = registry.client("llama"), registry.client("other")
    clients(first)
    clients(other)

    assert registry.client("llama") is first
    assert other is not first


def test_a_closed_client_is_replaced(state, clients):
    state.save_endpoints((deployed("llama"),))
    with registry.client("llama") as first:
        pass
    second = registry.client("llama")
    clients(second)

    assert first.closed
    assert second is not first
    assert not second.closed


def test_threads_get_the_same_client(state, clients):
    state.save_endpoints((deployed("llama"),))
    start, got = threading.Barrier(8), []

    def ask() -> None:
        start.wait()
        got.append(registry.client("llama"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    clients(got[0])

    assert len(got) == 8
    assert len({id(client) for client in got}) == 1


def test_a_client_for_an_unknown_name_is_refused_at_once(state):
    state.save_endpoints((deployed("llama"),))

    with pytest.raises(NotFound):
        registry.client("lama")
    with pytest.raises(NotFound):
        registry.async_client("lama")


def test_a_client_may_be_had_before_the_deployment_is_ready(state, clients):
    state.save_endpoints((deployed("llama", phase=Phase.LOADING),))
    client = registry.client("llama")
    clients(client)

    assert client.ready() is False
    with pytest.raises(ModelNotReady, match="loading"):
        client.chat("hi")


def test_there_is_one_asyncio_client_per_name_also_after_a_loop_closed_its_connections(state):
    state.save_endpoints((deployed("llama"),))
    first = registry.async_client("llama")

    async def use() -> None:
        async with registry.async_client("llama") as client:
            assert client is first

    asyncio.run(use())

    assert registry.async_client("llama") is first


def run_python(code: str, state_dir) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"VLLM_MANAGER_STATE_DIR": str(state_dir)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_a_lookup_does_not_load_the_http_library(state, tmp_path):
    state.save_endpoints((deployed("llama"),))
    code = (
        "import sys; from vllm_manager import registry; registry.wait('llama');"
        "print([m for m in ('httpx', 'asyncio', 'pydantic', 'yaml') if m in sys.modules])"
    )

    assert run_python(code, tmp_path).strip() == "[]"


def test_a_forked_child_gets_its_own_client(state, tmp_path):
    state.save_endpoints((deployed("llama"),))
    code = (
        "import os; from vllm_manager import registry; mine = registry.client('llama')\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(registry.client('llama') is mine)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), registry.client('llama') is mine)"
    )

    assert run_python(code, tmp_path).strip() == "0 True"
