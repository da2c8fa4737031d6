"""Downloads by the real huggingface_hub from a hub on loopback."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from box import alive, eventually
from downloading import MODEL, OTHER, SHARD, TOKEN, beside, failure, get, held, part, workers

from tests.fakes.hub import content
from vllm_manager.errors import (
    GatedRepository,
    HubBusy,
    HubUnreachable,
    NoWeights,
    RepositoryNotFound,
    TokenRefused,
    TransferBroken,
)
from vllm_manager.manifest.model import Deployment
from vllm_manager.weights import cache
from vllm_manager.weights.fetch import cached, fetch

DEPLOYMENT = Deployment.model_validate({"name": "llama", "model": MODEL, "gpus": "none"})


# --- what is fetched


def test_everything_that_vllm_reads_is_fetched_and_nothing_else(hub, environment):
    fetched = get(environment)
    files = hub.repositories[MODEL].files
    there = {str(p.relative_to(fetched.path)) for p in Path(fetched.path).rglob("*") if p.is_file()}
    assert there == set(files) - {"picture.png", "original/consolidated.00.pth"}
    assert all((Path(fetched.path) / path).read_bytes() == files[path] for path in there)
    assert fetched.commit == hub.repositories[MODEL].commit
    assert fetched.bytes == sum(len(files[path]) for path in there)
    assert not list(Path(environment["HOME"]).rglob("*.incomplete"))


def test_the_hub_s_own_library_finds_the_snapshot_and_asks_for_no_file_again(hub, environment):
    fetched = get(environment)
    hub.requests.clear()
    program = (
        "import huggingface_hub as h, sys\n"
        f"print(h.hf_hub_download({MODEL!r}, {SHARD!r}))\n"
        "import huggingface_hub.constants as c; c.HF_HUB_OFFLINE = True\n"
        f"print(h.snapshot_download({MODEL!r}, allow_patterns='*.safetensors', local_files_only=True))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == [f"{fetched.path}/{SHARD}", fetched.path]
    assert hub.sent(SHARD) == []


def test_progress_goes_up_to_all_bytes(hub, environment):
    hub.rate = 3_000_000
    seen = []
    fetched = get(environment, on_progress=seen.append)
    assert [d.done for d in seen] == sorted(d.done for d in seen)
    assert seen[-1].done == seen[-1].total == fetched.bytes
    assert any(0 < d.done < d.total and d.speed > 0 for d in seen)
    assert {d.repository for d in seen} == {MODEL}


def test_what_is_there_is_not_fetched_again(hub, environment):
    get(environment)
    hub.requests.clear()
    get(environment)
    assert [r.path for r in hub.requests] == [f"/api/models/{MODEL}/revision/main"]


def test_a_file_that_was_deleted_is_fetched_again(hub, environment):
    fetched = get(environment)
    (Path(fetched.path) / SHARD).resolve().unlink()
    hub.requests.clear()
    assert get(environment) == fetched
    assert len(hub.sent(SHARD)) == 1
    assert hub.sent(OTHER) == []


def test_a_branch_that_moved_is_noticed_and_unchanged_files_are_kept(hub, environment):
    before = get(environment)
    hub.repositories[MODEL].files["config.json"] = b'{"new": true}'
    hub.requests.clear()
    after = get(environment)
    assert after.commit != before.commit
    assert (Path(after.path) / "config.json").read_bytes() == b'{"new": true}'
    assert hub.sent(SHARD) == []


def test_a_commit_that_is_there_is_not_asked_for(hub, environment):
    commit = get(environment).commit
    hub.requests.clear()
    assert get(environment, f"{MODEL}@{commit}").commit == commit
    assert hub.requests == []


def test_the_token_goes_to_the_hub_alone(hub, environment):
    hub.tokens.add(TOKEN)
    get(environment | {"HF_TOKEN": TOKEN})
    cdn = [r for r in hub.requests if r.path.startswith("/cdn/")]
    assert cdn
    assert {r.token for r in cdn} == {None}
    assert {r.token for r in hub.requests if r not in cdn} == {TOKEN}


def test_every_repository_of_a_deployment_is_fetched(hub, environment, tmp_path):
    hub.add("org/lora", files={"adapter_config.json": b"{}", "adapter_model.safetensors": content(20_000)})
    deployment = DEPLOYMENT.model_copy(
        update={"lora_modules": {"sql": "org/lora"}, "args": {"download-dir": str(tmp_path / "big")}}
    )
    assert not cached(deployment, environment)
    seen = []
    asyncio.run(fetch(deployment, environment, seen.append))
    assert {d.repository for d in seen} == {MODEL, "org/lora"}
    assert cached(deployment, environment)
    assert list((tmp_path / "big").rglob(SHARD))
    assert not list((tmp_path / ".cache").rglob(SHARD))
    assert list((tmp_path / ".cache").rglob("adapter_model.safetensors"))


def test_a_path_from_the_hub_never_leads_out_of_the_cache(hub, environment, tmp_path):
    hub.repositories[MODEL].files["../../../../../escaped.json"] = b"{}"
    get(environment)
    assert not list(tmp_path.rglob("escaped.json"))


# --- interruptions


def test_a_killed_download_goes_on_from_what_has_arrived(hub, environment):
    hub.hold[SHARD] = 600_000
    with beside(get, environment) as results:
        had = held(environment, hub)
        (worker,) = workers()
        worker.kill()
    assert "SIGKILL" in results[0].cause
    assert not results[0].permanent
    hub.release.set()
    fetched = get(environment)
    assert hub.sent(SHARD)[-1].range == f"bytes={had}-"
    assert (Path(fetched.path) / SHARD).read_bytes() == hub.repositories[MODEL].files[SHARD]


def test_cancelling_ends_the_worker_and_keeps_what_has_arrived(hub, environment):
    hub.hold[SHARD] = 600_000

    async def cancelled():
        task = asyncio.create_task(fetch(DEPLOYMENT, environment, lambda download: None))
        await asyncio.to_thread(held, environment, hub)
        (worker,) = workers()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not alive(worker.pid)

    asyncio.run(cancelled())
    assert cache.size_of(part(environment, hub)) >= 600_000
    hub.release.set()
    asyncio.run(fetch(DEPLOYMENT, environment, lambda download: None))
    assert hub.sent(SHARD)[-1].range is not None


def test_a_worker_ends_with_its_parent(hub, environment):
    hub.hold[SHARD] = 600_000
    program = (
        "import os\nfrom vllm_manager.weights.fetch import pull\n"
        "from vllm_manager.weights.repositories import need_of\n"
        f"pull([need_of({MODEL!r}, os.environ)], os.environ, lambda d: None)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], env=environment)
    try:
        held(environment, hub)
        (worker,) = workers(parent.pid)
    finally:
        parent.kill()
        parent.wait()
    eventually(lambda: not alive(worker.pid), "the worker has ended")


def test_a_worker_whose_parent_died_before_it_asked_ends(environment):
    done = subprocess.run(
        [sys.executable, "-m", "vllm_manager.weights.worker"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (1, b"")


def test_two_downloads_of_one_repository_share_what_arrives(hub, environment):
    hub.hold[SHARD] = 600_000
    with beside(get, environment) as one, beside(get, environment) as other:
        held(environment, hub)
        eventually(lambda: len(workers()) == 2, "both are at it")
        asked = [f"/api/models/{MODEL}/revision/main"] * 2
        eventually(lambda: [r.path for r in hub.requests if "/api/" in r.path] == asked, "both have asked")
        hub.release.set()
    assert one == other
    assert len(hub.sent(SHARD)) == 1
    assert (Path(one[0].path) / SHARD).read_bytes() == hub.repositories[MODEL].files[SHARD]


def test_a_download_by_the_hub_s_own_library_beside_ours_is_no_problem(hub, environment):
    hub.hold[SHARD] = 600_000
    program = f"import huggingface_hub as h; print(h.snapshot_download({MODEL!r}))"
    with beside(get, environment) as results:
        held(environment, hub)
        theirs = subprocess.Popen(
            [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True
        )
        eventually(lambda: [r for r in hub.requests if r.path.endswith("picture.png")], "it is at it")
        hub.release.set()
        out, _ = theirs.communicate(timeout=60)
    assert out.strip() == results[0].path
    assert len(hub.sent(SHARD)) == 1
    assert (Path(out.strip()) / SHARD).read_bytes() == hub.repositories[MODEL].files[SHARD]


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub, environment, hasty):
    hub.breaks[SHARD] = [500_000, 400_000]
    fetched = get(environment)
    assert [r.range for r in hub.sent(SHARD)] == [None, "bytes=500000-", "bytes=900000-"]
    assert (Path(fetched.path) / SHARD).read_bytes() == hub.repositories[MODEL].files[SHARD]


def test_a_file_that_never_comes_whole_is_given_up(hub, environment, hasty):
    hub.breaks[SHARD] = [500_000] + [0] * 30
    error = failure(environment)
    assert isinstance(error, TransferBroken)
    assert not error.permanent
    assert SHARD in error.cause
    assert "kept" in error.hint
    assert cache.size_of(part(environment, hub)) == 500_000


@pytest.mark.parametrize("data", [content(1_500_000, "evil"), content(100), content(2_000_000)])
def test_a_file_that_is_not_the_announced_one_is_never_used(hub, environment, data):
    hub.wrong[SHARD] = data
    error = failure(environment)
    assert isinstance(error, TransferBroken)
    assert "announced" in error.cause
    assert len(hub.sent(SHARD)) == 2
    assert not cached(DEPLOYMENT, environment)
    hub.wrong.clear()
    assert (Path(get(environment).path) / SHARD).read_bytes() == hub.repositories[MODEL].files[SHARD]


def test_a_damaged_part_is_thrown_away(hub, environment):
    damaged = part(environment, hub)
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"x" * 1000)
    fetched = get(environment)
    assert [r.range for r in hub.sent(SHARD)] == ["bytes=1000-", None]
    assert (Path(fetched.path) / SHARD).read_bytes() == hub.repositories[MODEL].files[SHARD]


def test_a_signal_that_ends_the_worker_is_named(hub, environment):
    hub.hold[SHARD] = 600_000
    with beside(get, environment) as results:
        held(environment, hub)
        workers()[0].send_signal(signal.SIGTERM)
    assert results[0].cause.startswith("the download's process was ended by SIGTERM")


# --- what the hub refuses


def test_a_gated_repository_without_a_token(hub, environment):
    hub.add(MODEL, gated=True)
    error = failure(environment)
    assert isinstance(error, GatedRepository)
    assert error.permanent
    assert error.hint == (
        f"accept the licence at https://huggingface.co/{MODEL}, then set HF_TOKEN, or run `hf auth login`"
    )
    assert not [r for r in hub.requests if r.path.startswith("/cdn/")]


def test_a_gated_repository_with_a_token_that_has_no_access(hub, environment):
    hub.add(MODEL, gated=True)
    hub.tokens.add(TOKEN)
    error = failure(environment | {"HF_TOKEN": TOKEN})
    assert isinstance(error, GatedRepository)
    assert "your token has no access" in error.cause
    assert "HF_TOKEN" not in error.hint


def test_a_gated_repository_with_access(hub, environment, tmp_path):
    hub.add(MODEL, gated=True, granted={TOKEN})
    hub.tokens.add(TOKEN)
    token_file = tmp_path / ".cache" / "huggingface" / "token"  # where `hf auth login` writes it
    token_file.parent.mkdir(parents=True)
    token_file.write_text(TOKEN)
    assert get(environment).repository == MODEL


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize("name", ["org/missing", "org/private"])
def test_a_repository_that_is_missing_or_private(hub, environment, name, token):
    hub.add("org/private", private=True)
    hub.tokens.add(TOKEN)
    error = failure(environment | ({"HF_TOKEN": token} if token else {}), name)
    assert isinstance(error, RepositoryNotFound)
    assert error.permanent
    assert error.cause == f"the hub has no repository {name}, or it is private"
    assert ("your token" in error.hint) is (token is not None)
    assert ("hf auth login" in error.hint) is (token is None)


def test_a_revision_that_is_missing(hub, environment):
    error = failure(environment, f"{MODEL}@v9")
    assert isinstance(error, RepositoryNotFound)
    assert error.permanent
    assert error.cause == f"{MODEL} has no revision v9"


def test_a_token_that_the_hub_does_not_know(hub, environment):
    error = failure(environment | {"HF_TOKEN": TOKEN})
    assert isinstance(error, TokenRefused)
    assert error.permanent
    assert "settings/tokens" in error.hint


def test_a_repository_without_weights(hub, environment):
    hub.add(MODEL, files={"config.json": b"{}", "model.onnx": content(20_000)})
    error = failure(environment)
    assert isinstance(error, NoWeights)
    assert error.permanent
    assert "*.safetensors or *.bin or *.pt" in error.cause


def test_a_limit_of_requests_is_waited_for(hub, environment, hasty):
    hub.failures += [(429, {"Retry-After": "1"}), (503, {})]
    assert get(environment).repository == MODEL


def test_a_limit_that_lasts_is_reported_with_its_length(hub, environment):
    hub.failures.append((429, {"RateLimit": '"api";r=0;t=290'}))
    error = failure(environment)
    assert isinstance(error, HubBusy)
    assert error.retry_after == 290
    assert not error.permanent


# --- without a network


def test_offline_a_whole_snapshot_is_enough_and_nobody_is_asked(hub, environment):
    fetched = get(environment)
    hub.requests.clear()
    assert get(environment | {"HF_HUB_OFFLINE": "1"}) == fetched
    assert hub.requests == []


@pytest.mark.parametrize("some", [True, False])
def test_offline_without_the_files_the_variable_is_named(hub, environment, some):
    if some:
        fetched = get(environment)
        (Path(fetched.path) / SHARD).unlink()
    error = failure(environment | {"HF_HUB_OFFLINE": "1"})
    assert isinstance(error, HubUnreachable)
    assert error.permanent
    assert "HF_HUB_OFFLINE" in error.cause
    assert ("only a part" in error.cause) is some


def test_a_hub_that_does_not_answer_is_no_problem_when_all_is_there(environment, hub):
    fetched = get(environment)
    assert get(environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}) == fetched


@pytest.mark.parametrize("answers", [True, False])
def test_a_hub_that_does_not_answer_is_named(hub, environment, hasty, answers):
    if answers:
        hub.failures += [(503, {})] * 9
    else:
        environment |= {"HF_ENDPOINT": "http://127.0.0.1:9"}
    error = failure(environment)
    assert isinstance(error, HubUnreachable)
    assert not error.permanent
    assert environment["HF_ENDPOINT"] in error.cause
    assert ("503" if answers else "refused") in error.cause


def test_errors_say_whose_deployment_it_was(hub, environment):
    hub.repositories.clear()
    with pytest.raises(RepositoryNotFound) as caught:
        asyncio.run(fetch(DEPLOYMENT, environment, lambda download: None))
    assert caught.value.deployment == "llama"
    assert caught.value.exit_code == 6
