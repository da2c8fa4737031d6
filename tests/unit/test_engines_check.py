"""What a check of an engine looks at."""

from pathlib import Path

import pytest

from tests.unit.test_engines_find import provisioned
from vllm_manager.engines.check import check, damaged, driver_problem


@pytest.mark.parametrize(
    ("needed", "supported"),
    [("13.0", "13.0"), ("12.8", "13.0"), ("13.2", "13.0"), (None, "12.8"), ("13.0", None)],
)
def test_a_driver_runs_its_own_cuda_earlier_ones_and_the_same_major_version(
    needed: str | None, supported: str | None
) -> None:
    assert driver_problem(needed, supported) is None


def test_a_driver_of_an_earlier_major_version_is_too_old() -> None:
    problem = driver_problem("13.0", "12.9")
    assert problem == "the engine needs a driver for CUDA 13.0, and this one supports CUDA up to 12.9"


def packages(environment: Path, **sizes: str) -> Path:
    """An environment whose packages have these RECORDs; returns where their files belong."""
    site = environment / "lib/python3.11/site-packages"
    for package, record in sizes.items():
        info = site / f"{package}-1.dist-info"
        info.mkdir(parents=True)
        (info / "RECORD").write_text(record)
    return site


def test_missing_and_cut_files_are_found_and_others_are_not(tmp_path: Path) -> None:
    rows = ["whole.py,sha256=x,5", "longer.so,sha256=x,5", "cut.so,sha256=x,5", "gone.py,sha256=x,5"]
    rows += ["__pycache__/gone.pyc,,", "pkg/__pycache__/gone.pyc,sha256=x,5", "../../../bin/gone,sha256=x,5"]
    site = packages(tmp_path, a="\n".join([*rows, "a-1.dist-info/RECORD,,"]))
    for name, text in {"whole.py": "12345", "longer.so": "123456", "cut.so": "123"}.items():
        (site / name).write_text(text)
    prefix = "lib/python3.11/site-packages"
    assert damaged(tmp_path) == (5, ["bin/gone", f"{prefix}/cut.so", f"{prefix}/gone.py"])


def test_a_file_that_two_packages_bring_may_be_either_ones(tmp_path: Path) -> None:
    site = packages(tmp_path, a="build.py,sha256=x,9", b="build.py,sha256=y,5")
    (site / "build.py").write_text("12345")
    assert damaged(tmp_path) == (1, [])


def test_an_engine_whose_python_was_removed_is_asked_nothing_else(tmp_path: Path) -> None:
    engine = provisioned(tmp_path)
    python = engine.path / "bin/python"
    python.unlink()
    [finding] = check(engine, tmp_path)
    assert finding.what == "program"
    assert f"needs {python}, which isn't there" in str(finding.problem)
    assert finding.hint == (
        "`vllm-manager engine remove cpu-0.32.0 && "
        "vllm-manager engine install 0.32.0 --device cpu` builds it anew"
    )


def test_an_engine_that_somebody_changed_is_no_longer_what_it_was_installed_as(tmp_path: Path) -> None:
    engine = provisioned(tmp_path)
    [info] = engine.path.glob("lib/*/site-packages/vllm-*.dist-info")
    info.rename(info.with_name("vllm-0.31.0+cpu.dist-info"))
    metadata = info.with_name("vllm-0.31.0+cpu.dist-info") / "METADATA"
    metadata.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.31.0+cpu\n")
    [finding] = check(engine, tmp_path)
    assert finding.problem == "it was installed with vLLM 0.32.0+cpu, and has vLLM 0.31.0+cpu now"
