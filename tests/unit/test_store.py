import json
import os
import stat

import pytest

from tests.unit.test_codec import RECORD
from vllm_manager.errors import StateCorrupt, StateUnwritable
from vllm_manager.store import (
    DeploymentRecord,
    Desired,
    Secrets,
    Store,
    deployment_names,
    endpoints_path,
    read_deployments,
    read_endpoints,
    read_secrets,
)
from vllm_manager.types import Endpoint, Phase


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "state")


ENDPOINT = Endpoint(
    deployment="tiny",
    model="tiny",
    names=("tiny",),
    root_url="http://x",
    phase=Phase.READY,
    api_key="hunter22",
)


def test_records_are_read_back(store):
    record = DeploymentRecord(name="tiny", manifest={"name": "tiny"}, source="/m.yaml")
    store.save_deployment(record)
    store.save_instance(RECORD)
    assert store.deployments() == ({"tiny": record}, [])
    assert store.instances() == ({"tiny": RECORD}, [])


@pytest.mark.parametrize("desired", list(Desired))
def test_what_is_desired_is_kept(store, desired):
    record = DeploymentRecord(name="tiny", manifest={}, source="/m.yaml", desired=desired)
    store.save_deployment(record)
    assert store.deployments()[0] == {"tiny": record} == read_deployments(store.root)


@pytest.mark.parametrize(("wanted", "desired"), [(True, Desired.RUNNING), (False, Desired.GONE)])
def test_a_record_of_a_version_without_stop_is_read(store, wanted, desired):
    path = store.root / "deployments" / "tiny.json"
    path.write_text(json.dumps({"name": "tiny", "manifest": {}, "source": "/m.yaml", "wanted": wanted}))
    assert store.deployments()[0]["tiny"].desired is desired


def test_names_are_told_without_reading_records(store):
    store.save_deployment(DeploymentRecord(name="tiny", manifest={}, source="s"))
    (store.root / "deployments" / "bad.json").write_text("{")
    (store.root / "deployments" / "old.json.corrupt-1").write_text("{")
    assert deployment_names(store.root) == ["bad", "tiny"]
    assert deployment_names(store.root / "nowhere") == []


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_record_is_set_aside_and_hurts_no_other(store, share):
    store.save_deployment(DeploymentRecord(name="good", manifest={}, source="s"))
    store.save_deployment(DeploymentRecord(name="bad", manifest={}, source="s"))
    path = store.root / "deployments" / "bad.json"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    records, damaged = store.deployments()
    assert list(records) == ["good"]
    (error,) = damaged
    assert error.quarantined_to == f"{path}.corrupt-1"
    assert not path.exists()
    assert store.deployments()[1] == []


@pytest.mark.parametrize("garbage", [b"\0" * 100, b"null", b"[]", b'{"name": 3}', b"\xff\xfe"])
def test_garbage_is_set_aside(store, garbage):
    path = store.root / "instances" / "tiny.json"
    path.write_bytes(garbage)
    assert store.instances()[0] == {}
    assert path.with_name("tiny.json.corrupt-1").read_bytes() == garbage


def test_everything_is_the_owners_alone(store):
    store.save_secrets("tiny", Secrets(api_key="hunter22"))
    store.save_endpoints((ENDPOINT,))
    store.append_event({"at": 1})
    for path in [store.root, *store.root.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_only_the_secrets_file_holds_the_key(store):
    store.save_secrets("tiny", Secrets(api_key="hunter22", environment={"HF_TOKEN": "hf", "PATH": "/bin"}))
    store.save_endpoints((ENDPOINT,))
    holding = [p for p in store.root.rglob("*") if p.is_file() and b"hunter22" in p.read_bytes()]
    assert holding == [store.root / "secrets" / "tiny.json"]
    secrets = read_secrets(store.root, "tiny")
    assert secrets.api_key == "hunter22"
    assert secrets.values == ("hunter22", "hf")
    assert "hunter22" not in repr(secrets)


def test_endpoints_are_read_back_without_their_keys(store):
    store.save_endpoints((ENDPOINT,))
    (endpoint,) = read_endpoints(store.root)
    assert endpoint.api_key is None
    assert endpoint.base_url == "http://x/v1"


def test_no_endpoints_file_is_no_endpoint(tmp_path):
    assert read_endpoints(tmp_path) == ()


def test_a_damaged_endpoints_file_says_so(store):
    endpoints_path(store.root).write_text("{")
    with pytest.raises(StateCorrupt):
        read_endpoints(store.root)


def test_damaged_secrets_are_an_error_that_quotes_nothing(store):
    (store.root / "secrets" / "tiny.json").write_text('{"api_key": "hunter22"')
    with pytest.raises(StateCorrupt) as caught:
        read_secrets(store.root, "tiny")
    assert "hunter22" not in str(caught.value)
    assert store.secrets("tiny") == Secrets()


def test_a_state_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "state").write_text("a file")
    with pytest.raises(StateUnwritable, match="can't write"):
        Store(tmp_path / "state")


def test_a_failed_write_leaves_the_old_file_and_no_other(store, monkeypatch):
    store.save_instance(RECORD)

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StateUnwritable, match="No space left"):
        store.save_instance(RECORD)
    assert [p.name for p in (store.root / "instances").iterdir()] == ["tiny.json"]
    assert store.instances()[0] == {"tiny": RECORD}


def test_forgetting_removes_every_file_of_a_deployment_and_of_no_other(store):
    for name in ("tiny", "tiny-2"):
        store.save_deployment(DeploymentRecord(name=name, manifest={}, source="s"))
        store.save_secrets(name, Secrets(api_key="k"))
        store.log_path(f"{name}-0a1b2c3d").write_text("log")
    store.forget("tiny")
    left = sorted(p.name for p in store.root.rglob("*") if p.is_file())
    assert left == ["tiny-2-0a1b2c3d.log", "tiny-2.json", "tiny-2.json"]


def test_events_are_appended_as_lines(store):
    store.append_event({"phase": "ready"})
    store.append_event({"phase": "stopped"})
    lines = (store.root / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["phase"] for line in lines] == ["ready", "stopped"]
