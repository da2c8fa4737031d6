import pytest

from vllm_manager import paths


@pytest.fixture(autouse=True)
def plain(monkeypatch, tmp_path):
    for name in ("VLLM_MANAGER_STATE_DIR", "STATE_DIRECTORY", "VLLM_MANAGER_SOCKET", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def test_two_state_directories_never_meet_in_one_socket(monkeypatch, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "one")
    found = {}
    for name in ("one", "two", "link"):
        monkeypatch.setenv("VLLM_MANAGER_STATE_DIR", str(tmp_path / name))
        found[name] = paths.socket_path()
    assert found["one"] == found["link"] != found["two"]
    assert found["one"].parent.as_posix() == "/run/user/7/vllm-manager"


def test_a_services_runtime_directory_has_one_socket(monkeypatch):
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/vllm-manager:/run/other")
    assert paths.socket_path().as_posix() == "/run/vllm-manager/control.sock"


@pytest.mark.parametrize("runtime", ["", "relative", "/" + "x" * 100])
def test_without_a_usable_runtime_directory_it_lies_under_tmp(monkeypatch, runtime):
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    assert paths.socket_path().parent == paths.fallback_dir()
