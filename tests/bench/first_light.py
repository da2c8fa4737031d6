"""How much vllm-manager adds: to a start, per command, in memory. Prints a Markdown table.

    python tests/bench/first_light.py ENGINE_PYTHON [--starts N]

Starts are interleaved, raw and managed, on the same bundled model. What is compared is the time from the
moment when vLLM's port listens: for a raw start until its first 1-token answer, asked for without a pause;
for a managed one until READY is published. The 30 s before that are vLLM's own, and vary by more than what
is measured.
"""

import argparse
import http.client
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "manifests" / "models" / "tiny"
CLI = [sys.executable, "-m", "vllm_manager"]
FLAGS = ["--load-format", "dummy", "--enforce-eager", "--max-model-len", "512"]
BODY = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1})
START_LIMIT = 300.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], pause: float = 0.002) -> float:
    """The moment when the condition came true."""
    deadline = time.monotonic() + START_LIMIT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(pause)
    return time.monotonic()


def listens(port: int) -> bool:
    suffix = f":{port:04X} 00000000:0000 0A"
    return suffix in Path("/proc/net/tcp").read_text()


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/v1/chat/completions", BODY, {"Content-Type": "application/json"})
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def raw_start(engine: Path, directory: Path) -> float:
    port = free_port()
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "TMPDIR": str(directory)}
    command = [engine.parent / "vllm", "serve", MODEL, *FLAGS, "--served-model-name", "tiny"]
    with (directory / "raw.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ | own, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        began = wait_for(lambda: listens(port))
        return wait_for(lambda: answers(port), pause=0) - began
    finally:
        process.terminate()  # a hard kill would leave its shared memory behind
        process.wait(60)


def managed_start(manifest: Path, port: int, state: Path) -> float:
    def ready() -> bool:
        data = json.loads((state / "endpoints.json").read_bytes())
        return any(each["phase"] == "ready" for each in data["deployments"])

    subprocess.run([*CLI, "up", "-d", manifest], check=True, capture_output=True)
    began = wait_for(lambda: listens(port))
    return wait_for(ready) - began


def cpu_of(arguments: list[str], runs: int = 10) -> float:
    """Median CPU seconds (user and system) of a command."""
    figures = []
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*CLI, *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        figures.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(figures)


def resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", type=Path, help="the python of an environment with vLLM for the CPU")
    parser.add_argument("--starts", type=int, default=5, help="of each kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vmb-") as name:
        directory, port = Path(name), free_port()
        state = directory / "state"
        os.environ |= {
            "VLLM_MANAGER_STATE_DIR": str(state),
            "VLLM_MANAGER_SOCKET": str(directory / "s"),
            "HF_HUB_OFFLINE": "1",
        }
        manifest = directory / "tiny.yaml"
        manifest.write_text(
            f"name: tiny\nmodel: {MODEL}\nport: {port}\ngpus: none\nmax_model_len: 512\n"
            "args: {load-format: dummy, enforce-eager: true}\nenv: {VLLM_CPU_KVCACHE_SPACE: '1'}\n"
            f"engine: {{python: {options.engine.absolute()}}}\n"
        )
        raw, managed = [], []
        memory = 0
        for _ in range(options.starts):
            raw.append(raw_start(options.engine.absolute(), directory))
            managed.append(managed_start(manifest, port, state))
            memory = max(memory, resident(int((state / "lock").read_text())))
            ps = cpu_of(["ps"])
            subprocess.run([*CLI, "down", "tiny"], check=True, capture_output=True)
        raw_median, managed_median = statistics.median(raw), statistics.median(managed)
        rows = [
            ("raw: port listens → first token", f"{raw_median * 1000:.0f} ms", ""),
            ("managed: port listens → READY", f"{managed_median * 1000:.0f} ms", ""),
            ("added to a start", f"{(managed_median - raw_median) * 1000:.0f} ms", "≤ 150 ms"),
            ("`--help`, CPU", f"{cpu_of(['--help']) * 1000:.0f} ms", "≤ 150 ms"),
            ("`ps` with one model, CPU", f"{ps * 1000:.0f} ms", "≤ 150 ms"),
            ("supervisor with one model, resident", f"{memory / (1 << 20):.0f} MiB", "≤ 70 MiB"),
        ]
    print("| what | median | wanted |\n|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(f"\nraw: {[round(x * 1000) for x in raw]} ms; managed: {[round(x * 1000) for x in managed]} ms")


if __name__ == "__main__":
    main()
