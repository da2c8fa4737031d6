"""What lies in the engines directory, and removing it."""

import fcntl
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.test_engines_find import provisioned
from vllm_manager.engines import kept, marker
from vllm_manager.errors import EngineError, NotFound


def test_installed_engines_are_listed_by_name(tmp_path: Path) -> None:
    newer, older = provisioned(tmp_path, size=7), provisioned(tmp_path, "cpu-0.31.0")
    (tmp_path / "cpu-0.32.0.lock").write_text("")
    (tmp_path / ".tmp-cpu-0.30.0").mkdir()
    assert kept.installed(tmp_path) == (older, newer)
    assert newer.size == 7


def test_no_engines_directory_means_no_engines(tmp_path: Path) -> None:
    assert kept.installed(tmp_path / "absent") == ()


def test_a_moved_engines_directory_says_where_its_engines_are(tmp_path: Path) -> None:
    engine = provisioned(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    assert kept.installed(tmp_path / "new") == (replace(engine, path=tmp_path / "new/cpu-0.32.0"),)


def test_a_removed_engine_is_gone(tmp_path: Path) -> None:
    provisioned(tmp_path)
    other = provisioned(tmp_path, "cpu-0.31.0")
    (tmp_path / "cpu-0.32.0.install.log").write_text("pip")
    kept.remove("cpu-0.32.0", tmp_path)
    assert kept.installed(tmp_path) == (other,)
    assert not (tmp_path / "cpu-0.32.0").exists()
    assert not (tmp_path / "cpu-0.32.0.install.log").exists()


@pytest.mark.parametrize("what", ["cpu-0.32.0/lib", ".tmp-cpu-0.32.0/wheels"])
def test_what_an_interrupted_install_left_is_shown_and_can_be_removed(tmp_path: Path, what: str) -> None:
    (tmp_path / what).mkdir(parents=True)
    (tmp_path / what / "half").write_bytes(b"x" * 10_000)
    (tmp_path / "cpu-0.32.0.install.log").write_text("pip")
    (tmp_path / "cpu-0.32.0.lock").write_text("4711\n")
    [left] = kept.unfinished(tmp_path)
    assert (left.name, left.files, left.installer) == ("cpu-0.32.0", True, None)
    assert left.size > 10_000
    assert left.log == tmp_path / "cpu-0.32.0.install.log"
    kept.remove("cpu-0.32.0", tmp_path)
    assert kept.unfinished(tmp_path) == ()
    assert os.listdir(tmp_path) == ["cpu-0.32.0.lock"]


def test_a_failed_install_is_shown_as_long_as_its_log_is_there(tmp_path: Path) -> None:
    (tmp_path / "cuda-0.31.0.install.log").write_text("pip")
    [left] = kept.unfinished(tmp_path)
    assert (left.name, left.files) == ("cuda-0.31.0", False)
    kept.remove("cuda-0.31.0", tmp_path)
    assert kept.unfinished(tmp_path) == ()


def test_an_install_that_runs_is_told_from_one_that_was_interrupted(tmp_path: Path) -> None:
    (tmp_path / "cpu-0.32.0").mkdir()
    with (tmp_path / "cpu-0.32.0.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711\n")
        lock.flush()
        assert [each.installer for each in kept.unfinished(tmp_path)] == [4711]
    assert [each.installer for each in kept.unfinished(tmp_path)] == [None]


def test_a_complete_engine_and_what_is_no_engine_are_not_unfinished(tmp_path: Path) -> None:
    engine = provisioned(tmp_path)
    (tmp_path / "cpu-0.32.0.install.log").write_text("pip")
    (tmp_path / "cpu-0.30.0.lock").write_text("")  # its install failed, and its log was removed
    (tmp_path / ".flags").mkdir()
    (tmp_path / "somebody-else").mkdir()
    assert kept.unfinished(tmp_path) == ()
    assert kept.installed(tmp_path) == (engine,)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../victim", "link", "/victim", ".tmp-cpu-0.32.0", "a", "a.lock"]
)
def test_only_an_engine_of_the_directory_can_be_removed(tmp_path: Path, name: str) -> None:
    engines, victim = tmp_path / "engines", tmp_path / "victim"
    provisioned(engines)
    victim.mkdir()
    (engines / "link").symlink_to(victim)
    (engines / ".tmp-cpu-0.32.0").mkdir()
    (engines / "a").mkdir()
    (engines / "a.lock").write_text("")
    with pytest.raises(NotFound) as caught:
        kept.remove(name, engines)
    assert caught.value.known == ("cpu-0.32.0",)
    assert victim.is_dir()
    assert (engines / ".tmp-cpu-0.32.0").is_dir()


def test_an_engine_is_not_removed_while_another_process_installs_it(tmp_path: Path) -> None:
    engine = provisioned(tmp_path)
    with (tmp_path / "cpu-0.32.0.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711\n")
        lock.flush()
        with pytest.raises(EngineError, match=r"pid 4711"):
            kept.remove("cpu-0.32.0", tmp_path)
    assert kept.installed(tmp_path) == (engine,)


def test_a_removal_that_is_cut_short_leaves_no_usable_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provisioned(tmp_path)

    def fail(directory: Path) -> None:
        raise PermissionError(13, "Permission denied", str(directory))

    monkeypatch.setattr(marker.shutil, "rmtree", fail)
    with pytest.raises(EngineError, match="Permission denied"):
        kept.remove("cpu-0.32.0", tmp_path)
    assert kept.installed(tmp_path) == ()
    assert [each.name for each in kept.unfinished(tmp_path)] == ["cpu-0.32.0"]
