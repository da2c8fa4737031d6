"""Reading an engine's flags in its own interpreter, on the fake vLLM."""

import os
import threading
from pathlib import Path

import pytest

from tests.fakes.fake_engine import make_fake_engine
from tests.process.box import alive, eventually
from vllm_manager.engines import introspect
from vllm_manager.engines.introspect import engine_flags
from vllm_manager.types import Engine


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return engine_of(make_fake_engine(tmp_path / "fake"))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The interpreters that were run."""
    done: list[str] = []
    run = introspect._run

    def counted(argv, env):
        done.append(argv[0])
        return run(argv, env)

    monkeypatch.setattr(introspect, "_run", counted)
    return done


def engine_of(python: Path) -> Engine:
    return Engine(name="fake", executable=str(python.with_name("vllm")), version="0.32.0+cpu")


def site(engine: Engine) -> Path:
    [found] = Path(engine.executable).parents[1].glob("lib/python*/site-packages")
    return found


def broken(engine: Engine, text: str) -> None:
    (site(engine) / "vllm" / "entrypoints" / "launchers" / "cli_args.py").write_text(text)


def test_the_flags_are_those_of_the_engines_own_parser(engine, tmp_path, runs):
    flags = engine_flags(engine, tmp_path)
    by_name = {flag.name: flag for flag in flags.flags}
    assert flags.version == "0.32.0+cpu"
    assert (by_name["tensor-parallel-size"].kind, by_name["tensor-parallel-size"].aliases) == ("int", ("tp",))
    assert (by_name["enforce-eager"].kind, by_name["enforce-eager"].negatable) == ("bool", True)
    assert (by_name["disable-log-stats"].kind, by_name["disable-log-stats"].negatable) == ("bool", False)
    assert by_name["max-model-len"].kind == "tokens-or-auto"
    assert by_name["compilation-config"].kind == "json"
    assert by_name["device-ids"].kind == "other"
    assert by_name["cudagraph-capture-sizes"].many
    assert by_name["middleware"].repeats
    assert "half" in by_name["dtype"].choices
    assert "help" not in by_name
    assert flags.tool_parsers == ("hermes", "llama3_json", "mistral")
    assert flags.reasoning_parsers == ("deepseek_r1", "qwen3")
    assert flags.tool_parser_tokens == {"llama3_json": ("<|python_tag|>",)}


def test_they_are_read_once(engine, tmp_path, runs):
    said: list[str] = []
    assert engine_flags(engine, tmp_path, only_cached=True, report=said.append) is None
    assert said == ["the flags of fake haven't been read yet"]
    first = engine_flags(engine, tmp_path)
    assert engine_flags(engine, tmp_path, only_cached=True) == first
    assert engine_flags(engine, tmp_path) == first
    assert len(runs) == 1


def test_a_changed_environment_is_read_anew(engine, tmp_path, runs):
    engine_flags(engine, tmp_path)
    source = site(engine) / "vllm" / "entrypoints" / "launchers" / "cli_args.py"
    source.write_text(source.read_text() + "\n# patched\n")
    engine_flags(engine, tmp_path)
    metadata = next(site(engine).glob("vllm-*.dist-info"))
    metadata = metadata.rename(metadata.with_name("vllm-0.33.0.dist-info"))
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.33.0\n")
    assert engine_flags(engine, tmp_path).version == "0.33.0"
    assert len(runs) == 3
    engine_flags(engine, tmp_path)
    assert len(runs) == 3


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 99}', '{"format": 1, "read_from": {}, "flags": 3}']
)
def test_a_damaged_file_is_read_anew(engine, tmp_path, runs, content):
    flags = engine_flags(engine, tmp_path)
    [kept] = (tmp_path / ".flags").iterdir()
    kept.write_text(content)
    assert engine_flags(engine, tmp_path) == flags
    assert len(runs) == 2
    assert engine_flags(engine, tmp_path, only_cached=True) == flags


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise RuntimeError('no such library')", "RuntimeError: no such library"),
        ("import torch_of_another_world", "torch_of_another_world"),
        ("import os; os.write(1, b'hello'); os._exit(0)", "an answer that makes no sense"),
        ("import os; os._exit(3)", "exit status 3"),
        ("", "has no make_arg_parser"),
        ("def make_arg_parser(parser): return parser", "named none"),
    ],
)
def test_a_failure_is_reported_and_remembered(engine, tmp_path, runs, text, reason):
    broken(engine, text)
    for _ in range(2):
        said: list[str] = []
        assert engine_flags(engine, tmp_path, report=said.append) is None
        assert reason in said[-1]
        assert said[-1].startswith("the flags of fake can't be read: ")
    assert len(runs) == 1
    assert not (tmp_path / ".flags").exists()


def test_a_mended_engine_is_asked_again(engine, tmp_path):
    script = Path(engine.executable)
    broken(engine, "raise RuntimeError")
    assert engine_flags(engine, tmp_path) is None
    broken(
        engine,
        "import fake_vllm\n\n\ndef make_arg_parser(parser):\n    return fake_vllm.make_parser(parser)\n",
    )
    os.utime(script, (1, 1))  # as an installation leaves it
    assert engine_flags(engine, tmp_path) is not None


def test_one_that_does_not_answer_is_ended_with_its_children(engine, tmp_path, monkeypatch):
    marker = tmp_path / "child"
    broken(
        engine,
        f"import subprocess, sys\nchild = subprocess.Popen(['sleep', '1000'])\n"
        f"open({str(marker)!r}, 'w').write(str(child.pid))\nchild.wait()\n",
    )
    monkeypatch.setattr(introspect, "TIMEOUT_SECONDS", 3.0)
    said: list[str] = []
    assert engine_flags(engine, tmp_path, report=said.append) is None
    assert said[-1] == "the flags of fake can't be read: no answer within 3 s"
    child = int(marker.read_text())
    eventually(lambda: not alive(child), "the child's end", 5)


def test_what_cannot_be_kept_is_used_all_the_same(engine, tmp_path):
    (tmp_path / "file").write_text("")
    said: list[str] = []
    assert engine_flags(engine, tmp_path / "file", report=said.append) is not None
    assert "can't be kept" in said[-1]


def test_an_engine_that_is_not_there(tmp_path):
    said: list[str] = []
    assert engine_flags(Engine(name="e", executable="/no/such/vllm"), tmp_path, report=said.append) is None
    assert said == ["the interpreter of /no/such/vllm can't be found"]


def test_threads_at_once_read_it_once(engine, tmp_path, runs):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(engine_flags(engine, tmp_path))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(flags == found[0] for flags in found)
    assert len(runs) == 1


def test_vllms_variables_do_not_reach_it(engine, tmp_path, monkeypatch):
    """VLLM_PORT=tcp://… (a Kubernetes service) would stop vLLM's import."""
    monkeypatch.setenv("VLLM_PORT", "tcp://10.0.0.1:80")
    text = "import os\nfrom fake_vllm import make_parser as make_arg_parser\n"
    broken(engine, text + "assert 'VLLM_PORT' not in os.environ\n")
    assert engine_flags(engine, tmp_path) is not None
