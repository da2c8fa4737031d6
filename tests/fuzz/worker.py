"""Runs many broken inputs through the command line in one process, and reports what shouldn't happen.

``python -m tests.fuzz.worker SEED COUNT DIRECTORY`` prints a line of JSON per finding, then how many it ran.
"""

import contextlib
import io
import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from tests.fuzz import mutate

HANG_SECONDS = 30
EXAMPLES = Path(__file__).parents[2] / "manifests"

MORE = """\
defaults: {gpus: none, args: {load-format: dummy}, api_key: generate}
deployments:
  - {name: one, model: ./models/tiny, port: 8101}
  - name: two
    model: ./models/tiny
    args: {max-num-seqs: 4, compilation-config: {mode: 0}}
    env: {A: "${HOME}", B: {env: HOME}}
---
name: three
model: Qwen/Qwen3-0.6B
lora_modules: {sql: someone/sql-lora}
stop: {drain: 0, grace: 5s}
liveness: {enabled: false}
replicas: 2
"""


class _Reached(BaseException):
    """The input was accepted, and would now be acted upon."""


def _reached(*_: object, **__: object) -> None:
    raise _Reached


@contextlib.contextmanager
def _without_effects() -> Iterator[None]:
    targets = (
        "vllm_manager.background.ensure_supervisor",
        "vllm_manager.daemon.run",
        "vllm_manager.engines.provision.install_engine",
        "vllm_manager.weights.fetch.pull",
        "subprocess.Popen",
        "time.sleep",
    )
    with contextlib.ExitStack() as stack:
        for target in targets:
            stack.enter_context(mock.patch(target, _reached))
        yield


def run(argv: list[str]) -> tuple[int, str]:
    """Exit code and output of ``vllm-manager`` with these arguments; -1 with a traceback."""
    from vllm_manager.cli import main

    output = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True)
    code = 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            sys.argv = ["vllm-manager", *argv]
            main()
        except _Reached:
            pass
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:  # whatever it is, it is the finding
            traceback.print_exc()
            code = -1
    output.seek(0)
    return code, output.read()


def words(directory: Path) -> list[str]:
    """What command lines are made of: commands, options, files, names."""
    import click

    from vllm_manager.cli.app import COMMANDS, app

    found = [
        *COMMANDS,
        "tiny",
        "llama",
        "nope",
        "",
        "-",
        "--",
        "10",
        "1s",
        "cpu-0.32.0",
        str(directory),
        "-h",
    ]
    found += [str(directory / "manifest.yaml"), str(EXAMPLES), str(EXAMPLES / "tiny.yaml"), "/nope.yaml"]
    context = click.Context(app)
    for name in COMMANDS:
        command = app.get_command(context, name)
        assert command is not None
        found += [option for parameter in command.params for option in parameter.opts if option[0] == "-"]
        found += command.list_commands(context) if isinstance(command, click.Group) else []
    # They wait for what never comes here.
    return [word for word in found if word not in ("-f", "--follow", "-w", "--watch")]


def main() -> None:
    """See the module's docstring."""
    seed, count, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    rng = random.Random(seed)
    os.environ |= {
        "HOME": str(directory),
        "VLLM_MANAGER_STATE_DIR": str(directory / "state"),
        "VLLM_MANAGER_SOCKET": str(directory / "socket"),
        "VLLM_MANAGER_ENGINES_DIR": str(directory / "engines"),
    }
    os.chdir(directory)
    (directory / "models").symlink_to(EXAMPLES / "models")
    corpus = [path.read_text() for path in sorted(EXAMPLES.glob("*.yaml"))] + [MORE]
    report, manifest = sys.stdout, directory / "manifest.yaml"
    signal.signal(signal.SIGALRM, lambda *_: traceback.print_stack() or os._exit(99))
    with _without_effects():
        vocabulary = words(directory)
        for number in range(count):
            data = mutate.manifest(rng, corpus)
            manifest.write_bytes(data)
            plain = number % 4 != 0
            argv = ["validate", str(manifest)] if plain else mutate.arguments(rng, vocabulary)
            signal.alarm(HANG_SECONDS)
            code, output = run(argv)
            signal.alarm(0)
            allowed = (0, 2) if plain else (0, 2, 3, 4, 5, 6)
            explained = code == 0 or "error:" in output or output.startswith("Usage:") or "--json" in argv
            if code not in allowed or "Traceback" in output or not explained:
                finding = {"argv": argv, "manifest": data.decode("utf-8", "backslashreplace"), "code": code}
                print(json.dumps(finding | {"output": output[-3000:]}), file=report, flush=True)
    print(count, file=report)


if __name__ == "__main__":
    main()
