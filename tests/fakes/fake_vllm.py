"""``vllm serve`` as a supervisor sees it: command line, processes, log, signals, HTTP. No model, no GPU.

It imitates vLLM 0.32 and is held to it by tests/contract. Knobs are listed in README.md beside this file;
they come as JSON in the environment variable FAKE_VLLM. Standard library only; nothing slow is imported.
"""

import argparse
import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from fake_model import Model

VERSION = "0.32.0+cpu"
STARTED = time.time()

# --- knobs -------------------------------------------------------------------------------------------

# Shares of the `startup` knob, in the order of vLLM's start; about those of a real start.
PHASES = {
    "imports": 0.30,
    "config": 0.15,
    "engine": 0.20,
    "distributed": 0.05,
    "weights": 0.10,
    "compile": 0.05,
    "kv_cache": 0.05,
    "graphs": 0.05,
    "http": 0.05,
}

_DOCS = "See https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details."
_OOM = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which "
    "1.02 GiB is free."
)
_VALIDATION = "pydantic_core._pydantic_core.ValidationError: 1 validation error for "
# fail_start: the phase that fails and the last lines of its traceback.
FAILURES = {
    "exit1": ("config", "RuntimeError: the fake was told to exit with 1"),
    "segv": ("config", ""),
    "oom_killed": ("weights", ""),
    "port": ("config", "OSError: [Errno 98] Address already in use"),
    "badarg": ("imports", "--not-a-flag"),
    "tool_parser_missing": (
        "imports",
        "TypeError: Error: --enable-auto-tool-choice requires --tool-call-parser",
    ),
    "tool_parser": (
        "imports",
        "KeyError: 'invalid tool call parser: nope (chose from { hermes,llama3_json,mistral })'",
    ),
    "reasoning_parser": (
        "config",
        "KeyError: \"Reasoning parser 'nope' not found. Available parsers: qwen3\"",
    ),
    "tool_parser_tokenizer": (
        "http",
        "TypeError: --tool-call-parser llama3_json cannot be used with the tokenizer of 'm': "
        "Llama3JsonToolParser could not locate the bot token '<|python_tag|>' in the tokenizer.",
    ),
    "missing_model": (
        "config",
        "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or "
        "'namespace/repo_name': '{model}'. Use `repo_type` argument if needed.",
    ),
    "offline": (
        "config",
        "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder "
        "for the specified revision on the local disk and outgoing traffic has been disabled.",
    ),
    "gated": (
        "config",
        "huggingface_hub.errors.GatedRepoError: 403 Client Error.\n\nCannot access gated repo for url "
        "https://huggingface.co/{model}/resolve/main/config.json.\nYou are trying to access a gated repo.\n"
        "Make sure to have access to it at https://huggingface.co/{model}.",
    ),
    "unsupported_arch": (
        "config",
        _VALIDATION + "ModelConfig\n  Value error, Model architectures ['FooForCausalLM'] are not supported "
        "for now. Supported architectures: dict_keys(['LlamaForCausalLM']) [type=value_error, "
        "input_value=ArgsKwargs(()), input_type=ArgsKwargs]\n"
        "    For further information visit https://errors.pydantic.dev/2.14/v/value_error",
    ),
    "transformers": (
        "config",
        "ValueError: The checkpoint you are trying to load has model type `foozle` but Transformers does not "
        "recognize this architecture.",
    ),
    "trust_remote_code": (
        "config",
        "ValueError: The repository {model} contains custom code which must be executed to correctly load "
        "the model. Please pass the argument `trust_remote_code=True` to allow custom code to be run.",
    ),
    "quantization": (
        "config",
        _VALIDATION + "ModelConfig\n  Value error, Unknown quantization method: nope. Must be one of ['awq'] "
        "[type=value_error, input_value=ArgsKwargs(()), input_type=ArgsKwargs]",
    ),
    "tp_too_large": (
        "config",
        "ValueError: World size (8) is larger than the number of available GPUs (4) in this node.",
    ),
    "no_gpu": (
        "config",
        "RuntimeError: Failed to infer device type, please set the environment variable "
        "`VLLM_LOGGING_LEVEL=DEBUG` to turn on verbose logging to help debug the issue.",
    ),
    "gpu_busy": (
        "distributed",
        "ValueError: Free memory on device cuda:0 (10.12/79.11 GiB) on startup is less than desired GPU "
        "memory utilization (0.92, 72.78 GiB). Decrease GPU memory utilization or reduce GPU memory used by "
        "other processes.",
    ),
    "nccl": (
        "distributed",
        "RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)",
    ),
    "shm": (
        "distributed",
        "RuntimeError: Insufficient space in /dev/shm for shared memory ring buffer: 240 MiB required, "
        "64 MiB free. Increase /dev/shm (e.g. --shm-size or --ipc=host).",
    ),
    "missing_weights": ("weights", "RuntimeError: Cannot find any model weights with `{model}`"),
    "corrupt_weights": (
        "weights",
        "safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata, file not "
        "fully covered",
    ),
    "oom": ("weights", f"torch.OutOfMemoryError: {_OOM}"),
    "sampler_oom": (
        "compile",
        "RuntimeError: CUDA out of memory occurred when warming up sampler with 256 dummy requests. Please "
        "try lowering `max_num_seqs` or `gpu_memory_utilization` when initializing the engine.",
    ),
    "cotenant": (
        "compile",
        "AssertionError: Error in memory profiling. Initial free memory 40.1 GiB, current free memory 60.2 "
        "GiB. This happens when other processes sharing the same container release GPU memory while vLLM is "
        "profiling during initialization. To fix this, ensure consistent GPU memory allocation or isolate "
        "vLLM in its own container.",
    ),
    "no_kv": (
        "kv_cache",
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
        f"initializing the engine. {_DOCS}",
    ),
    "kv_too_small": (
        "kv_cache",
        "ValueError: To serve at least one request with the model's max seq len (131072), (16.0 GiB KV cache "
        "is needed, which is larger than the available KV cache memory (9.42 GiB). Based on the available "
        "memory, the estimated maximum model length is 77168. Try increasing `gpu_memory_utilization` (which "
        "also controls CPU memory on the CPU backend) or decreasing `max_model_len` when initializing the "
        f"engine. {_DOCS}",
    ),
    "lora_missing": ("http", "ValueError: Loading lora x failed: No adapter found for /no/such/lora"),
    "ssl": ("http", "FileNotFoundError: [Errno 2] No such file or directory"),
}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


KNOBS: dict[str, tuple[Callable[[Any], bool], Any]] = {
    "startup": (_number, 0.2),
    "startup_delay": (lambda v: v == "inf" or _number(v), 0),
    "stall_at": (lambda v: v in PHASES, None),
    "fail_start": (lambda v: v in FAILURES, None),
    "fail_start_times": (_count, None),
    "die_after": (_number, None),
    "engine_death_delay": (_number, 0.5),
    "teardown": (_number, 0.1),
    "ignore_sigterm": (_flag, False),
    "hang_on_stop": (_flag, False),
    "escape_session": (_flag, False),
    "hang": (_count, False),
    "stall": (_count, False),
    "slow_health": (_number, 0),
    "slow_first_token": (_number, 0),
    "token_delay": (_number, 0),
    "spew": (_number, 0),
    "wrong_model_name": (_flag, False),
    "warmup_500": (_flag, False),
    "drop_mid_stream": (_flag, False),
    "no_chat_template": (_flag, False),
    "silent_tasks": (_flag, False),
    "not_finite": (_flag, False),
    "no_sound_libraries": (_flag, False),
    "empty_completion": (_flag, False),
}


def read_knobs() -> argparse.Namespace:
    """The knobs of $FAKE_VLLM; exits with 64 where they make no sense."""
    try:
        given = json.loads(os.environ.get("FAKE_VLLM") or "{}")
    except ValueError as error:
        sys.exit(misuse(f"FAKE_VLLM is not JSON: {error}"))
    for name, value in given.items():
        if name not in KNOBS:
            sys.exit(misuse(f"no knob {name!r}; there are {', '.join(KNOBS)}"))
        if not KNOBS[name][0](value):
            sys.exit(misuse(f"knob {name} can't be {value!r}"))
    return argparse.Namespace(**{name: given.get(name, default) for name, (_, default) in KNOBS.items()})


def misuse(message: str) -> int:
    """Say that the test, not vLLM, is wrong."""
    print(f"fake_vllm: {message}", file=sys.stderr)
    return 64


# --- log, process titles, waiting --------------------------------------------------------------------


def log(tag: str, where: str, message: str, level: str = "INFO") -> None:
    """One record as vLLM writes it: every line with the prefix, on stdout."""
    prefix = f"({tag} pid={os.getpid()}) {level} {time.strftime('%m-%d %H:%M:%S')} [{where}] "
    out("".join(f"{prefix}{line}\n" for line in message.split("\n")))


def out(text: str) -> None:
    """To stdout in one write, so that the processes' lines don't mix."""
    os.write(1, text.encode())


def err(text: str) -> None:
    """To stderr in one write."""
    os.write(2, text.encode())


def set_title(title: str, *, wipe_environ: bool = True) -> None:
    """What setproctitle does: the title over argv and environ, and as the process's name.

    Afterwards /proc/PID/environ is NULs. ``wipe_environ=False`` replaces argv alone.
    """
    with open("/proc/self/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    arg_start, arg_end, _, env_end = (int(field) for field in fields[45:49])  # proc(5): 48 to 51
    size = (env_end if wipe_environ else arg_end) - arg_start
    with open("/proc/self/mem", "wb", buffering=0) as memory:
        memory.seek(arg_start)
        memory.write(title.encode()[: size - 1].ljust(size, b"\0"))
    with open("/proc/self/comm", "w") as file:
        file.write(title.partition("\0")[0][:15])


def hung_up(peer: socket.socket, seconds: float | None) -> bool:
    """Wait so long (None: for ever) or until the peer of a socket is gone; says whether it is."""
    poll = select.poll()
    poll.register(peer, 0)  # POLLHUP is always reported
    return bool(poll.poll(None if seconds is None else seconds * 1000))


class StartFailure(Exception):
    """The start fails here, with this text as the traceback's end."""


class Start:
    """What the processes of one start share: arguments, knobs, names."""

    def __init__(self, args: argparse.Namespace, knobs: argparse.Namespace, version: str) -> None:
        self.args = args
        self.knobs = knobs
        self.release = version.partition("+")[0]
        self.gpu = not version.endswith("+cpu")
        self.prefix = os.environ.get("VLLM_PROCESS_NAME_PREFIX", "VLLM")
        self.temporary = os.environ.get("TMPDIR") or "/tmp"
        self.shared_memory = [f"/dev/shm/psm_{os.urandom(4).hex()}" for _ in range(2)]
        self.failing = self._failing()
        self.model = Model(args, {})  # until its configuration is read
        tp, pp = args.tensor_parallel_size, args.pipeline_parallel_size
        # On CUDA a world of one runs inside EngineCore; the CPU build always has a worker process.
        self.ranks = ["Worker"] if tp * pp == 1 and not self.gpu else []
        if tp * pp > 1:
            self.ranks = [
                "Worker" + (f"_PP{p}" if pp > 1 else "") + (f"_TP{t}" if tp > 1 else "")
                for p in range(pp)
                for t in range(tp)
            ]

    def _failing(self) -> str | None:
        name, times = self.knobs.fail_start, self.knobs.fail_start_times
        if name is None or times is None:
            return name
        # Counted beside the engine: an instance's own directories may be new at every start.
        served = (self.args.served_model_name or [self.args.model])[0].replace("/", "_")
        with open(os.path.join(sys.prefix, f"fail_start.{served}"), "ab") as file:
            file.write(b".")
            return name if file.tell() <= times else None

    def phase(self, name: str, parent: socket.socket | None = None) -> None:
        """Spend the phase's time; a child without its parent leaves.

        Raises:
            StartFailure: `fail_start` names a failure of this phase.
        """
        seconds: float | None = PHASES[name] * self.knobs.startup
        if self.knobs.stall_at == name:
            seconds = None
        elif name == "distributed" and self.knobs.startup_delay:
            delay = self.knobs.startup_delay
            seconds = None if delay == "inf" else seconds + delay
        if parent is None:
            threading.Event().wait(seconds) if seconds is None else time.sleep(seconds)
        elif hung_up(parent, seconds):
            os._exit(0)
        if self.failing and FAILURES[self.failing][0] == name:
            if self.failing == "segv":
                os.kill(os.getpid(), signal.SIGSEGV)
            if self.failing == "oom_killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise StartFailure(FAILURES[self.failing][1].replace("{model}", self.args.model))


def traceback_text(text: str, function: str) -> str:
    """A traceback of one frame that ends in ``text``."""
    frame = f'  File "vllm/fake.py", line 1, in {function}\n    raise\n'
    return f"Traceback (most recent call last):\n{frame}{text}\n"


# --- the processes beside the API server -------------------------------------------------------------


def fork(body: Callable[[socket.socket], None], close: list[socket.socket]) -> tuple[int, socket.socket]:
    """Run ``body`` in a child with a socket to its parent; gives its pid and our end."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    code = 1
    try:
        ours.close()
        for inherited in close:
            inherited.close()
        body(theirs)
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except Exception as error:
        err(f"fake_vllm: {error!r}\n")
        raise
    finally:
        os._exit(code)


def resource_tracker(start: Start, holders: int) -> None:
    """Python's resource tracker: deaf to SIGTERM and SIGINT, ends (and cleans up) after the last holder."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    command = ("python3", "-B", "-c", f"from multiprocessing.resource_tracker import main;main({holders})")
    set_title("\0".join(command), wipe_environ=False)
    os.read(holders, 1)
    leaked = [path for path in start.shared_memory if os.path.exists(path)]
    if leaked:
        err(
            "multiprocessing/resource_tracker.py:224: UserWarning: resource_tracker: There appear to be "
            f"{len(leaked)} leaked shared_memory objects to clean up at shutdown\n"
            "  warnings.warn('resource_tracker: There appear to be %d '\n"
        )
    for path in leaked:
        os.unlink(path)


def load_model(start: Start, tag: str, rank: int, parent: socket.socket | None) -> None:
    """The part of a start that a worker does; ``parent`` is None inside EngineCore."""
    world = max(1, len(start.ranks))
    rendezvous = os.path.join(start.temporary, f"vllm_dist_{os.urandom(16).hex()}")
    with open(rendezvous, "xb"):
        pass
    log(
        tag,
        "parallel_state.py:1906",
        f"world_size={world} rank={rank} local_rank={rank} distributed_init_method=file://{rendezvous} "
        f"backend={'nccl' if start.gpu else 'gloo'}",
    )
    start.phase("distributed", parent)
    if rank == 0:
        log(
            tag,
            "gpu_model_runner.py:5040" if start.gpu else "cpu_model_runner.py:68",
            f"Starting to load model {start.args.model}...",
        )
    shards = checkpoint_shards(start.args.model) if start.args.load_format != "dummy" else 0
    for shard in range(shards + 1 if rank == 0 and shards else 0):
        left = "00:00<?, ?it/s" if shard == 0 else "00:00<00:00, 10.00it/s"
        percent = 100 * shard // shards
        err(f"Loading safetensors checkpoint shards: {percent:3d}% Completed | {shard}/{shards} [{left}]\n")
        if shard == shards // 2:
            start.phase("weights", parent)
    if not shards:
        start.phase("weights", parent)
    if start.args.load_format != "dummy":
        if not shards:
            raise StartFailure(FAILURES["missing_weights"][1].replace("{model}", start.args.model))
        log(tag, "default_loader.py:501", "Loading weights took 0.01 seconds")
    if start.gpu:
        log(tag, "gpu_model_runner.py:5150", "Model loading took 14.99 GiB memory and 1.250000 seconds")
        if not start.args.enforce_eager:
            log(tag, "backends.py:700", "Using cache directory: /root/.cache/vllm for vLLM's torch.compile")
            log(tag, "backends.py:760", "Dynamo bytecode transform time: 3.10 s")
            start.phase("compile", parent)
            log(tag, "monitor.py:34", "torch.compile took 10.42 s in total")
        else:
            start.phase("compile", parent)
        log(tag, "gpu_worker.py:760", "Available KV cache memory: 50.12 GiB")
    else:
        log(tag, "base_loader.py:82", "Initializing model took 0.110766 seconds")
        start.phase("compile", parent)


def checkpoint_shards(model: str) -> int:
    """How many weight files: those of a local directory, 4 for a model of the hub."""
    if not model.startswith("/"):
        return 4
    return sum(name.endswith(".safetensors") for name in os.listdir(model))


def worker(start: Start, rank: int, parent: socket.socket) -> None:
    """``VLLM::Worker``: answers EngineCore's steps, ends with it."""
    name = start.ranks[rank]
    set_title(f"{start.prefix}::{name}")
    if start.knobs.escape_session:
        os.setsid()

    def terminate(*_: Any) -> NoReturn:
        hung_up(parent, 0.1)  # a real worker's teardown takes longer than EngineCore's exit
        os._exit(0)

    if not start.knobs.ignore_sigterm:
        signal.signal(signal.SIGTERM, terminate)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        load_model(start, name, rank, parent)
    except StartFailure as failure:
        log(
            name,
            "multiproc_executor.py:953",
            "WorkerProc failed to start.\n" + traceback_text(str(failure), "worker_main").rstrip(),
            "ERROR",
        )
        sys.exit(1)
    parent.sendall(b"r")
    while parent.recv(1):
        parent.sendall(b".")
    log(name, "multiproc_executor.py:843", "Parent process exited, terminating worker queues")


def engine_core(start: Start, parent: socket.socket) -> None:
    """``VLLM::EngineCore``: starts the workers and steps them. Doesn't care whether its parent lives."""
    tag = "EngineCore"
    set_title(f"{start.prefix}::{tag}")

    def terminate(number: int, _: Any) -> NoReturn:
        log(
            tag,
            "core.py:1454",
            f"[shutdown] EngineCore: trigger received signal={signal.Signals(number).name}",
        )
        tell(parent, b"t")
        os._exit(0)

    if not start.knobs.ignore_sigterm:
        signal.signal(signal.SIGTERM, terminate)
        signal.signal(signal.SIGINT, terminate)
    workers: list[socket.socket] = []
    try:
        start.phase("engine")
        args = start.args
        log(
            tag,
            "core.py:133",
            f"Initializing a V1 LLM engine (v{start.release}) with config: model={args.model!r}, "
            f"tokenizer={args.model!r}, dtype=torch.bfloat16, max_seq_len={args.max_model_len}, "
            f"load_format={args.load_format}, tensor_parallel_size={args.tensor_parallel_size}, "
            f"enforce_eager={args.enforce_eager}, served_model_name={args.served_model_name[0]}",
        )
        for path in start.shared_memory if start.ranks else []:
            os.ftruncate(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600), 1 << 20)  # kept open
        for rank in range(len(start.ranks)):
            pid, channel = fork(lambda up, rank=rank: worker(start, rank, up), [parent, *workers])
            workers.append(channel)
            tell(parent, b"worker %d\n" % pid)
        if not workers:
            load_model(start, tag, 0, None)
        if not all(channel.recv(1) for channel in workers):
            raise StartFailure(
                "Exception: WorkerProc initialization failed due to an exception in a background process. "
                "See stack trace for root cause."
            )
        start.phase("kv_cache")
        tokens = 2_097_152
        log(
            tag,
            "kv_cache_utils.py:2327",
            f"{'GPU' if start.gpu else 'CPU'} KV cache size: {tokens:,} tokens, Maximum concurrency for "
            f"{args.max_model_len:,} tokens per request: {tokens / args.max_model_len:.2f}x",
        )
        if start.gpu and not args.enforce_eager:
            err("Capturing CUDA graphs (decode, FULL): 100%|██████████| 35/35 [00:01<00:00, 30.10it/s]\n")
            log(tag, "gpu_model_runner.py:6582", "Graph capturing finished in 1 secs, took 0.52 GiB")
        start.phase("graphs")
    except StartFailure as failure:
        text = traceback_text(str(failure), "run_engine_core")
        log(tag, "core.py:1510", f"EngineCore failed to start.\n{text.rstrip()}", "ERROR")
        err(f"Process EngineCore:\n{text}")
        sys.exit(1)
    log(tag, "core.py:402", "init engine (profile, create kv cache, warmup model) took 0.05 s")
    tell(parent, b"ready\n")
    step_for_ever(parent, workers)


def tell(peer: socket.socket, message: bytes) -> None:
    """Send; a peer that is gone doesn't matter."""
    with contextlib.suppress(OSError):
        peer.sendall(message)


def step_for_ever(parent: socket.socket, workers: list[socket.socket]) -> NoReturn:
    """Answer the API server's steps through the workers until one of those dies."""
    poll = select.poll()
    poll.register(parent, select.POLLIN)
    for channel in workers:
        poll.register(channel, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == parent.fileno():
                if not parent.recv(1):
                    poll.unregister(parent)  # orphaned: vLLM's EngineCore lives on
                    continue
                for channel in workers:
                    tell(channel, b"x")
                if all(channel.recv(1) for channel in workers):
                    tell(parent, b".")
                    continue
            log(
                "EngineCore",
                "multiproc_executor.py:315",
                "Worker proc VllmWorker-0 died unexpectedly (exit code: None), shutting down executor.",
                "ERROR",
            )
            log("EngineCore", "core.py:1520", "EngineCore encountered a fatal error.", "ERROR")
            sys.exit(1)


# --- the API server's view of its engine -------------------------------------------------------------


class EngineDead(Exception):
    """EngineCore is gone."""


class Aborted(Exception):
    """The server is being stopped and gives up its requests."""


class Engine:
    """EngineCore as the API server has it."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.channel = channel
        self.workers: list[int] = []
        self.terminated = False  # died of a SIGTERM of its own
        self._told = b""
        self._turn = threading.Lock()

    def wait_ready(self, *, notice_death: bool) -> None:
        """Wait for the start; without ``notice_death`` a dead engine is waited for, for ever."""
        while b"ready\n" not in self._told:
            more = self.channel.recv(4096)
            if not more:
                if notice_death:
                    raise EngineDead
                threading.Event().wait(600)  # VLLM_ENGINE_READY_TIMEOUT_S
            self._told += more
            lines = self._told.split(b"\n")[:-1]
            self.workers = [int(line[7:]) for line in lines if line.startswith(b"worker ")]

    def step(self) -> None:
        """One token. Blocks while EngineCore or a worker is frozen.

        Raises:
            EngineDead: EngineCore is gone.
        """
        with self._turn:
            answer = b""
            with contextlib.suppress(OSError):
                tell(self.channel, b"s")
                answer = self.channel.recv(1)
            if answer != b".":
                self.terminated = self.terminated or answer == b"t"
                raise EngineDead

    def kill(self) -> int:
        """SIGKILL what is left of it; its exit code."""
        for pid in [self.pid, *self.workers]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return self.reap()

    def reap(self) -> int:
        """EngineCore's exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class Stats:
    """The counters behind /metrics."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.iterations = 0
        self.finished = dict.fromkeys(("stop", "length", "abort", "error", "repetition"), 0)

    def add(self, **amounts: int) -> None:
        """Add to counters by name."""
        with self.lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)

    def finish(self, reason: str) -> None:
        """A request ended."""
        with self.lock:
            self.finished[reason] += 1

    def render(self, model: str) -> str:
        """In Prometheus' text format, with vLLM's names and labels."""
        labels = f'engine="0",model_name="{model}"'
        rows = [
            ("vllm:num_requests_running", "gauge", labels, self.running),
            ("vllm:num_requests_waiting", "gauge", labels, 0),
            ("vllm:kv_cache_usage_perc", "gauge", labels, min(1.0, self.running / 100)),
            ("vllm:prompt_tokens_total", "counter", labels, self.prompt_tokens),
            ("vllm:generation_tokens_total", "counter", labels, self.generation_tokens),
            ("vllm:num_preemptions_total", "counter", labels, 0),
            ("vllm:iteration_tokens_total_count", "histogram", labels, self.iterations),
            (
                "vllm:iteration_tokens_total_sum",
                "histogram",
                labels,
                self.prompt_tokens + self.generation_tokens,
            ),
            ("process_start_time_seconds", "gauge", "", STARTED),
        ]
        rows += [
            ("vllm:request_success_total", "counter", f'engine="0",finished_reason="{why}",{labels[11:]}', n)
            for why, n in self.finished.items()
        ]
        text, described = [], set()
        for name, kind, label, value in rows:
            family = name.removesuffix("_count").removesuffix("_sum") if kind == "histogram" else name
            if family not in described:
                described.add(family)
                text.append(f"# HELP {family} {family}\n# TYPE {family} {kind}\n")
            text.append(f"{name}{{{label}}} {float(value)}\n" if label else f"{name} {float(value)}\n")
        return "".join(text)


# --- HTTP --------------------------------------------------------------------------------------------

GUARDED = ("/v1", "/v2", "/inference", "/cohere")
REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    501: "Not Implemented",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
WORDS = ("Hello", ",", " this", " is", " the", " fake", " model", ".")
CHAT_TEMPLATE_TOKENS = 17
CHARS_PER_TOKEN = 2
MAX_CHARS_PER_TOKEN = 14
DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class HttpError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self.status = status
        self.body = body
        self.headers = headers or {}


class Disconnected(Exception):
    """The client is gone, or is to be dropped."""


def refused(
    message: str, param: str | None = None, status: int = 400, kind: str = "BadRequestError"
) -> HttpError:
    """An error in vLLM's shape."""
    return HttpError(status, {"error": {"message": message, "type": kind, "param": param, "code": status}})


def invalid(problem: dict[str, Any], param: str | None) -> HttpError:
    """A pydantic error as vLLM words it."""
    return refused(f"1 validation error:\n  {problem}", param, kind="Bad Request")


def tokens_in(text: str) -> int:
    """The fake tokenizer's count."""
    return -(-len(text) // CHARS_PER_TOKEN)


def identifier(prefix: str) -> str:
    """Such as chatcmpl-0123456789abcdef."""
    return f"{prefix}-{os.urandom(8).hex()}"


class Connection:
    """One client connection: HTTP/1.1 with keep-alive, as uvicorn answers."""

    def __init__(self, peer: socket.socket, address: tuple[Any, ...]) -> None:
        self.peer = peer
        self.client = f"{address[0]}:{address[1]}"
        self.reader = peer.makefile("rb")
        self.method = self.path = ""
        self.headers: dict[str, str] = {}
        self.body = b""

    def read(self) -> bool:
        """The next request; False at the end of the connection."""
        line = self.reader.readline(65536).decode("latin-1").split()
        if len(line) != 3:
            return False
        self.method, self.path = line[0], line[1].partition("?")[0]
        self.headers = {}
        while header := self.reader.readline(65536).strip():
            name, _, value = header.decode("latin-1").partition(":")
            self.headers[name.strip().lower()] = value.strip()
        if self.headers.get("expect", "").lower() == "100-continue":
            self.peer.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.body = self.reader.read(int(self.headers.get("content-length", 0)))
        return True

    def _head(self, status: int, headers: dict[str, str]) -> bytes:
        out(f'INFO:     {self.client} - "{self.method} {self.path} HTTP/1.1" {status} {REASONS[status]}\n')
        now = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
        lines = [f"HTTP/1.1 {status} {REASONS[status]}", f"date: {now}", "server: uvicorn"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        """A whole answer: JSON, or text, or nothing for None."""
        data, kind = b"", {}
        if isinstance(body, str):
            data, kind = body.encode(), {"content-type": "text/plain; version=1.0.0; charset=utf-8"}
        elif body is not None:
            data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
            kind = {"content-type": "application/json"}
        head = self._head(status, {"content-length": str(len(data)), **kind, **(headers or {})})
        self.peer.sendall(head + (b"" if self.method == "HEAD" else data))

    def start_stream(self) -> None:
        """The head of a stream of server-sent events."""
        kind = {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"}
        self.peer.sendall(self._head(200, kind))

    def event(self, data: Any) -> None:
        """One event; a string as it is, anything else as JSON."""
        text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        chunk = f"data: {text}\n\n".encode()
        self.peer.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))

    def end_stream(self) -> None:
        """The end of a stream."""
        self.event("[DONE]")
        self.peer.sendall(b"0\r\n\r\n")


class Api:
    """vLLM's routes over one engine."""

    def __init__(self, start: Start, engine: Engine) -> None:
        self.start = start
        self.args = start.args
        self.knobs = start.knobs
        self.engine = engine
        self.stats = Stats()
        self.model = start.model
        self.adapters = {} if self.knobs.wrong_model_name else adapters(self.args)
        self.names = ["some-other-model"] if self.knobs.wrong_model_name else self.args.served_model_name
        self.fingerprint = f"vllm-{start.release}-{os.urandom(4).hex()}"
        self.keys = self.args.api_key or [key for key in [os.environ.get("VLLM_API_KEY")] if key]
        self.aborting = self.draining = self.dead = False
        self.in_flight = 0  # generations and poolings, also those that the engine hasn't taken
        self.answering = 0  # requests whose answer isn't written yet
        self.taken = 0
        self._lock = threading.Lock()
        self._halt_read, self._halt_write = os.pipe()  # readable for ever once requests must end
        self.tls = None
        if self.args.ssl_certfile:
            import ssl  # 2 MB, which no other instance pays

            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(self.args.ssl_certfile, self.args.ssl_keyfile)
        self.routes = self._routes()

    def _routes(self) -> dict[str, dict[str, Callable[[Connection], None]]]:
        routes = {
            "/openapi.json": {"GET": self.openapi},
            "/load": {"GET": lambda c: c.reply(200, {"server_load": self._load()})},
            "/version": {"GET": lambda c: c.reply(200, {"version": self.start.release})},
            "/health": {"GET": self.health},
            "/metrics": {"GET": lambda c: c.reply(200, self.stats.render(self.names[0]))},
            "/tokenize": {"POST": self.tokenize},
            "/v1/models": {"GET": self.models},
            "/ping": {"GET": self.health, "POST": self.health},
        }
        # As vllm/entrypoints/launchers/api_server/routers.py: by what is supported, which is more than what
        # the pooler does. A route whose handler is missing answers 501.
        if "generate" in self.model.supported:
            chat, completion = {"POST": self.chat}, {"POST": self.completion}
            routes |= {
                "/invocations": chat,
                "/v1/chat/completions": chat,
                "/v1/completions": completion,
            }
        if "transcription" in self.model.supported:
            routes |= {"/v1/audio/transcriptions": {"POST": self.transcription}}
        if self.model.pooling:
            routes |= {"/pooling": {"POST": self.pooling}}
        if self.model.scores:
            score, rerank = {"POST": self.score}, {"POST": self.rerank}
            routes |= {"/score": score, "/v1/score": score}
            routes |= {"/rerank": rerank, "/v1/rerank": rerank, "/v2/rerank": rerank}
        if "classify" in self.model.supported:
            routes |= {"/classify": {"POST": self.classify}}
        if "embed" in self.model.supported:
            routes |= {"/v1/embeddings": {"POST": self.embeddings}}
        return routes

    def _load(self) -> int:
        return self.in_flight if self.args.enable_server_load_tracking else 0

    def halt(self, state: str) -> None:
        """Set ``aborting`` or ``dead`` and wake every waiting request."""
        setattr(self, state, True)
        os.write(self._halt_write, b"!")

    def serve(self, peer: socket.socket, address: tuple[Any, ...]) -> None:
        """Answer one connection's requests until it ends."""
        try:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.tls.wrap_socket(peer, server_side=True) if self.tls else peer as peer:
                connection = Connection(peer, address)
                while connection.read():
                    self.count(1)
                    try:
                        self.answer(connection)
                    finally:
                        self.count(-1)
        except (Disconnected, OSError, ValueError):
            pass

    def count(self, change: int) -> None:
        """A request came or is answered."""
        with self._lock:
            self.answering += change

    def answer(self, connection: Connection) -> None:
        """Authenticate, route, answer."""
        try:
            path = connection.path
            if self.keys and connection.method != "OPTIONS" and path.startswith(GUARDED):
                scheme, _, key = connection.headers.get("authorization", "").partition(" ")
                if scheme.lower() != "bearer" or key not in self.keys:
                    raise HttpError(401, {"error": "Unauthorized"})
            if path not in self.routes:
                raise HttpError(404, {"detail": "Not Found"}, {"vary": "Origin"})
            methods = self.routes[path]
            if connection.method not in methods:
                allow = {"allow": ", ".join(methods), "vary": "Origin"}
                raise HttpError(405, {"detail": "Method Not Allowed"}, allow)
            methods[connection.method](connection)
        except HttpError as error:
            connection.reply(error.status, error.body, error.headers)
        except EngineDead:
            error = refused(DEAD, status=500, kind="InternalServerError")
            connection.reply(error.status, error.body)

    # Routes without the engine

    def health(self, connection: Connection) -> None:
        """200 while the engine process is there, hung or not."""
        time.sleep(self.knobs.slow_health)
        connection.reply(503 if self.dead else 200, None)

    def models(self, connection: Connection) -> None:
        """The served names."""
        now = int(time.time())
        permission = {
            "id": identifier("modelperm"),
            "object": "model_permission",
            "created": now,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        known = {"object": "model", "created": now, "owned_by": "vllm", "permission": [permission]}
        length = self.args.max_model_len
        data = [
            {"id": name, "root": self.args.model, "parent": None, "max_model_len": length, **known}
            for name in self.names
        ]
        data += [
            {"id": name, "root": path, "parent": self.names[0], "max_model_len": None, **known}
            for name, path in self.adapters.items()
        ]
        connection.reply(200, {"object": "list", "data": data})

    def openapi(self, connection: Connection) -> None:
        """The paths alone, which tell the task."""
        paths = {
            path: {method.lower(): {} for method in methods}
            for path, methods in self.routes.items()
            if path != "/openapi.json"
        }
        info = {"title": "FastAPI", "version": "0.1.0"}
        connection.reply(200, {"openapi": "3.1.0", "info": info, "paths": paths})

    def tokenize(self, connection: Connection) -> None:
        """Counts as the fake tokenizer does; open without a key, as vLLM's."""
        body = self.body(connection)
        count = tokens_in(str(body["prompt"])) if "prompt" in body else self.chat_tokens(body)
        reply = {"count": count, "max_model_len": self.args.max_model_len, "tokens": list(range(count))}
        connection.reply(200, {**reply, "token_strs": None})

    # What requests have in common

    def body(self, connection: Connection, required: str | None = None) -> dict[str, Any]:
        """The request's JSON object, its ``required`` field there and its model known."""
        if connection.headers.get("content-type", "application/json").partition(";")[0] != "application/json":
            message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
            raise refused(message, kind="Bad Request")
        if not connection.body:
            problem = {"type": "missing", "loc": "body", "msg": "Field required", "input": "None"}
            raise invalid(problem, "body")
        try:
            body = json.loads(connection.body)
        except ValueError as error:
            at = f"body.{getattr(error, 'pos', 0)}"
            problem = {
                "type": "json_invalid",
                "loc": at,
                "msg": "JSON decode error",
                "input": "<dict of 0 items>",
            }
            raise invalid(problem | {"ctx": {"error": getattr(error, "msg", "")}}, at) from None
        if not isinstance(body, dict):
            message = "Input should be a valid dictionary or object to extract fields from"
            given = f"<list of {len(body)} items>" if isinstance(body, list) else str(body)
            kind = "model_attributes_type"
            raise invalid({"type": kind, "loc": "body", "msg": message, "input": given}, "body")
        if required and required not in body:
            problem = {"type": "missing", "loc": f"body.{required}", "msg": "Field required"}
            raise invalid(problem | {"input": f"<dict of {len(body)} items>"}, f"body.{required}")
        self.check_model(body)
        return body

    def check_model(self, body: dict[str, Any]) -> None:
        """Refuse a model that isn't served."""
        model = body.get("model")
        if model and model not in self.names and model not in self.adapters:
            pools = self.model.pooling is not None
            aliases = "" if pools else f" Valid aliases: {', '.join(self.names)}."
            message = f"The model `{model}` does not exist.{aliases}"
            raise refused(message, None if pools else "model", 404, "NotFoundError")

    def answering_as(self, body: dict[str, Any]) -> str:
        """The name in an answer: the first served one, or the adapter's."""
        return body["model"] if body.get("model") in self.adapters else self.names[0]

    def prompt_tokens(self, text: str, overhead: int = 0) -> int:
        """The length of a prompt, refused where it doesn't fit."""
        limit = self.args.max_model_len
        context = f"This model's maximum context length is {limit} tokens. However, your prompt contains"
        advice = "Please reduce the length of the input prompt."
        if len(text) > MAX_CHARS_PER_TOKEN * limit:
            raise refused(
                f"{context} {len(text)} characters (more than {MAX_CHARS_PER_TOKEN * limit} characters, "
                f"which is the upper bound for {limit} input tokens). {advice} (parameter=input_text, "
                f"value={len(text)})",
                "input_text",
            )
        count = tokens_in(text) + overhead
        if count > limit:
            raise refused(
                f"{context} at least {limit + 1} input tokens, which exceeds this limit even without any "
                f"output tokens. {advice} (parameter=input_tokens, value={limit + 1})",
                "input_tokens",
            )
        return count

    def chat_tokens(self, body: dict[str, Any]) -> int:
        """The length of a chat prompt, templated."""
        messages = body.get("messages") or []
        if self.knobs.no_chat_template or not self.model.has_template:
            raise refused(
                "As of transformers v4.44, default chat template is no longer allowed, so you must provide a "
                "chat template if the tokenizer does not define one."
            )
        if not messages:
            raise refused(
                "Cannot apply chat template to an empty conversation. Provide at least one message."
            )
        text = "".join(str(message.get("content", "")) for message in messages)
        return self.prompt_tokens(text, CHAT_TEMPLATE_TOKENS)

    def wanted_tokens(self, body: dict[str, Any], prompt_tokens: int, default: int | None) -> tuple[int, str]:
        """How many tokens the answer has and why it ends."""
        temperature = body.get("temperature")
        if temperature is not None and temperature < 0:
            value = float(temperature)
            message = f"temperature must be non-negative, got {value}."
            raise refused(f"{message} (parameter=temperature, value={value})", "temperature")
        limit = self.args.max_model_len
        asked = body.get("max_completion_tokens") or body.get("max_tokens", default)
        if asked is not None:
            where = f"(parameter=max_tokens, value={asked})"
            if asked < 1:
                raise refused(f"max_tokens must be at least 1, got {asked}. {where}", "max_tokens")
            if asked > limit:
                message = f"max_tokens={asked} cannot be greater than max_model_len={limit}."
                raise refused(f"{message} Please request fewer output tokens. {where}", "max_tokens")
        most = min(asked or limit, limit - prompt_tokens)
        if self.knobs.empty_completion:
            return 0, "stop"
        if body.get("ignore_eos") or most <= len(WORDS):
            return most, "length"
        return len(WORDS), "stop"

    # The engine at work

    def rest(self, connection: Connection, seconds: float | None) -> None:
        """Wait, unless the client leaves or the requests must end."""
        poll = select.poll()
        poll.register(connection.peer, select.POLLRDHUP)
        poll.register(self._halt_read, select.POLLIN)
        for fd, _ in poll.poll(None if seconds is None else seconds * 1000):
            if fd == self._halt_read:
                raise Aborted if self.aborting else EngineDead
            raise Disconnected

    def step(self, connection: Connection) -> None:
        """One engine step, as an abort where the server is going down."""
        try:
            self.engine.step()
        except EngineDead:
            if self.aborting:
                raise Aborted from None
            if self.engine.terminated and not self.args.shutdown_timeout:
                self.rest(connection, None)  # a SIGTERM to the whole group: vLLM never answers these
            raise

    def admit(self, connection: Connection) -> None:
        """Where generation and pooling begin: the faults that concern every request."""
        if self.draining:
            raise refused("cannot schedule new futures after shutdown", None, 500, "InternalServerError")
        if self.dead:
            raise EngineDead
        if self.knobs.warmup_500:
            message = "CUDA error: no kernel image is available for execution on the device"
            raise refused(message, None, 500, "InternalServerError")
        with self._lock:
            self.taken += 1
            taken = self.taken
        if self.broken("hang", taken):
            self.rest(connection, None)
        if self.broken("stall", taken):
            self.stats.add(running=1)
            try:
                self.rest(connection, None)
            finally:
                self.stats.add(running=-1)

    def broken(self, knob: str, taken: int) -> bool:
        """Whether ``hang`` or ``stall`` concerns the n-th request: true, or after so many good ones."""
        value = getattr(self.knobs, knob)
        return value is True or (value is not False and taken > value)

    def generate(
        self, connection: Connection, prompt_tokens: int, wanted: tuple[int, str]
    ) -> Iterator[tuple[str, str | None]]:
        """Tokens, each with the finish reason where it is the last."""
        count, reason = wanted
        with self._lock:
            self.in_flight += 1
        running = False
        try:
            self.admit(connection)
            self.rest(connection, self.knobs.slow_first_token)
            self.step(connection)
            running = True
            self.stats.add(running=1, prompt_tokens=prompt_tokens, iterations=1)
            if not count:
                yield "", reason
            for number in range(count):
                self.rest(connection, self.knobs.token_delay)
                if number:
                    self.step(connection)
                    self.stats.add(iterations=1)
                self.stats.add(generation_tokens=1)
                yield WORDS[number % len(WORDS)], reason if number == count - 1 else None
            self.stats.finish(reason)
        except Aborted:
            self.stats.finish("abort")
            yield "", "abort"
        finally:
            self.stats.add(running=-1 if running else 0)
            with self._lock:
                self.in_flight -= 1

    def usage(self, prompt: int, completion: int, *, details: bool = True) -> dict[str, Any]:
        """vLLM's usage object."""
        usage = {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
        }
        return (
            usage | {"prompt_tokens_details": None, "completion_tokens_details": None} if details else usage
        )

    def chat(self, connection: Connection) -> None:
        """POST /v1/chat/completions."""
        body = self.body(connection, "messages")
        if body.get("tools") == []:
            message = "`tools` must not be an empty array. Either provide at least one tool or omit the field"
            raise refused(f"{message} entirely. (parameter=tools)", "tools")
        auto = self.args.enable_auto_tool_choice and self.args.tool_call_parser
        if body.get("tools") and body.get("tool_choice", "auto") == "auto" and not auto:
            raise refused(
                '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
            )
        self.complete(connection, body, self.chat_tokens(body), None, chat=True)

    def completion(self, connection: Connection) -> None:
        """POST /v1/completions."""
        body = self.body(connection)
        prompt = body.get("prompt")
        if not prompt:
            message = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
            raise refused(message, "prompt")
        parts = prompt if isinstance(prompt, list) else [prompt]
        tokens = sum(isinstance(part, int) for part in parts)
        text = "".join(part for part in parts if isinstance(part, str))
        self.complete(connection, body, self.prompt_tokens(text, tokens), 16, chat=False)

    def complete(
        self, connection: Connection, body: dict[str, Any], prompt: int, default: int | None, *, chat: bool
    ) -> None:
        """Answer with generated text, at once or as a stream."""
        wanted = self.wanted_tokens(body, prompt, default)
        tokens = self.generate(connection, prompt, wanted)
        if body.get("stream"):
            self.stream(connection, body, prompt, tokens, chat=chat)
            return
        pieces = list(tokens)
        text, reason = "".join(piece for piece, _ in pieces), pieces[-1][1]
        count = 0 if wanted[0] == 0 else len([piece for piece, _ in pieces if piece])
        choice: dict[str, Any] = {"index": 0}
        if chat:
            extra = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
            choice["message"] = {"role": "assistant", "content": text, **extra}
        else:
            choice["text"] = text
        choice |= {"logprobs": None, "finish_reason": reason, "stop_reason": None, "token_ids": None}
        answer = {
            "id": identifier("chatcmpl" if chat else "cmpl"),
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": self.answering_as(body),
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": self.fingerprint,
            "usage": self.usage(prompt, count),
            "kv_transfer_params": None,
            "metrics": None,
        }
        connection.reply(200, answer)

    def stream(
        self,
        connection: Connection,
        body: dict[str, Any],
        prompt: int,
        tokens: Iterator[tuple[str, str | None]],
        *,
        chat: bool,
    ) -> None:
        """Answer with server-sent events."""
        options = body.get("stream_options") or {}
        head: dict[str, Any] = {
            "id": identifier("chatcmpl" if chat else "cmpl"),
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": int(time.time()),
            "model": self.answering_as(body),
        }
        begun, count = False, 0
        try:
            for text, reason in tokens:
                if not begun:
                    connection.start_stream()
                    begun = True
                    if chat:
                        first = {"index": 0, "delta": {"role": "assistant", "content": ""}}
                        connection.event(
                            head | {"choices": [first | {"logprobs": None, "finish_reason": None}]}
                        )
                count += bool(text)
                choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": reason}
                choice |= {"delta": {"content": text} if text else {}} if chat else {"text": text}
                if reason or not chat:
                    choice["stop_reason"] = None
                last = {"system_fingerprint": self.fingerprint} if reason else {}
                connection.event(head | {"choices": [choice | {"token_ids": None}]} | last)
                if self.knobs.drop_mid_stream and count == 2:
                    raise Disconnected
        except EngineDead:
            if not begun:
                raise
            connection.event(refused(DEAD, status=500, kind="InternalServerError").body)
        else:
            if options.get("include_usage"):
                usage = self.usage(prompt, count, details=False)
                connection.event(head | {"choices": [], "usage": usage})
        connection.end_stream()

    def pool(self, connection: Connection, *texts: Any) -> int:
        """Have the engine read texts; their tokens."""
        count = sum(self.prompt_tokens(str(text)) for text in texts)
        for _ in self.generate(connection, count, (0, "stop")):
            pass
        return count

    def pooled(self, connection: Connection, prefix: str, data: list[dict[str, Any]], count: int) -> None:
        """The answer that the pooling routes share."""
        answer = {
            "id": identifier(prefix),
            "object": "list",
            "created": int(time.time()),
            "model": self.names[0],
        }
        connection.reply(200, answer | {"data": data, "usage": self.usage(count, 0)})

    def implemented(self, task: str, name: str) -> None:
        """Refuse where the pooler does another task than the route is for."""
        if self.model.pooling != task:
            message = f"The model does not support {name} API"
            raise refused(message, None, 501, "NotImplementedError")

    def inputs(self, connection: Connection) -> tuple[list[Any], int]:
        """The texts of ``input`` and their tokens, read by the engine."""
        given = self.body(connection, "input")["input"]
        texts = given if isinstance(given, list) else [given]
        if not texts:
            raise refused("You must pass at least one prompt")
        return texts, self.pool(connection, *texts)

    def figures(self, values: Any) -> Any:
        """The values, or the null that some encoders make of NaN."""
        if not self.knobs.not_finite:
            return values
        return [self.figures(value) for value in values] if isinstance(values, list) else None

    def embeddings(self, connection: Connection) -> None:
        """POST /v1/embeddings."""
        self.implemented("embed", "Embeddings")
        texts, count = self.inputs(connection)
        vector = self.figures(self.model.vector())
        data = [{"index": i, "object": "embedding", "embedding": vector} for i in range(len(texts))]
        self.pooled(connection, "embd", data, count)

    def pooling(self, connection: Connection) -> None:
        """POST /pooling."""
        texts, count = self.inputs(connection)
        data = [
            {"index": i, "object": "pooling", "data": self.figures(self.model.pooled(tokens_in(str(text))))}
            for i, text in enumerate(texts)
        ]
        self.pooled(connection, "pooling", data, count)

    def classify(self, connection: Connection) -> None:
        """POST /classify."""
        self.implemented("classify", "Classification")
        texts, count = self.inputs(connection)
        probabilities = self.figures(self.model.probabilities())
        verdict = {"label": "LABEL_0", "probs": probabilities, "num_classes": len(probabilities)}
        self.pooled(connection, "classify", [{"index": i} | verdict for i in range(len(texts))], count)

    def score(self, connection: Connection) -> None:
        """POST /v1/score."""
        body = self.body(connection)
        seconds = body["text_2"] if isinstance(body["text_2"], list) else [body["text_2"]]
        count = self.compare(connection, body["text_1"], seconds)
        data = [
            {"index": i, "object": "score", "score": self.figures(self.model.score(body["text_1"], text))}
            for i, text in enumerate(seconds)
        ]
        self.pooled(connection, "score", data, count)

    def compare(self, connection: Connection, query: str, texts: list[str]) -> int:
        """Have the engine read a query with each of the texts; their tokens."""
        if not texts:
            raise refused("At least one text_pair element must be given")
        return self.pool(connection, query, *texts)

    def rerank(self, connection: Connection) -> None:
        """POST /v1/rerank."""
        body = self.body(connection, "documents")
        count = self.compare(connection, body["query"], body["documents"])
        scored = [(self.model.score(body["query"], text), i) for i, text in enumerate(body["documents"])]
        results = [
            {
                "index": i,
                "document": {"text": body["documents"][i], "multi_modal": None},
                "relevance_score": self.figures(score),
            }
            for score, i in sorted(scored, key=lambda pair: -pair[0])
        ]
        usage = {"prompt_tokens": count, "total_tokens": count}
        answer = {"id": identifier("score"), "model": self.names[0], "usage": usage}
        connection.reply(200, answer | {"results": results[: body.get("top_n") or len(results)]})

    def transcription(self, connection: Connection) -> None:
        """POST /v1/audio/transcriptions."""
        fields, sound = form_of(connection)
        if sound is None:
            problem = {"type": "missing", "loc": "body.file", "msg": "Field required"}
            raise invalid(problem | {"input": f"<dict of {len(fields)} items>"}, "body.file")
        self.check_model(fields)
        language = fields.get("language")
        if language and language not in LANGUAGES:
            raise refused(f"Unsupported language: {language!r}.  Must be one of {list(LANGUAGES)}.")
        if self.knobs.no_sound_libraries:
            raise refused("Invalid or unsupported audio file.")
        seconds = seconds_of(sound)
        count = int(fields.get("max_completion_tokens") or 0) or len(WORDS)
        text = "".join(word for word, _ in self.generate(connection, 4, (count, "length")))
        if fields.get("response_format") == "verbose_json":
            known = {"duration": seconds, "language": language or "en", "text": text}
            connection.reply(200, known | {"segments": [], "words": None})
            return
        usage = {"type": "duration", "seconds": -int(-seconds // 1)}
        connection.reply(200, {"text": text, "usage": usage})


LANGUAGES = ("de", "en", "es", "fr", "ja", "zh")


def form_of(connection: Connection) -> tuple[dict[str, str], bytes | None]:
    """The fields of a multipart form, and the content of its ``file``."""
    _, _, boundary = connection.headers.get("content-type", "").partition("boundary=")
    fields: dict[str, str] = {}
    sound = None
    if not boundary:
        return fields, None
    for part in connection.body.split(b"--" + boundary.strip('"').encode())[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = head.decode().partition(' name="')[2].partition('"')[0]
        if name == "file":
            sound = content.removesuffix(b"\r\n")
        else:
            fields[name] = content.removesuffix(b"\r\n").decode()
    return fields, sound


def seconds_of(sound: bytes) -> float:
    """The length of a WAV file."""
    import io
    import wave

    try:
        with wave.open(io.BytesIO(sound)) as file:
            return file.getnframes() / file.getframerate()
    except (EOFError, wave.Error):
        message = "Invalid or corrupted audio data. Ensure the input is a valid audio or video file (e.g. a "
        raise refused(f"{message}complete WAV, MP3, or MP4).") from None


def adapters(args: argparse.Namespace) -> dict[str, str]:
    """--lora-modules: NAME=PATH each."""
    return dict(module.split("=", 1) for module in args.lora_modules or ())


def load_adapters(args: argparse.Namespace) -> None:
    """What vLLM does with adapters once its engine is up.

    Raises:
        StartFailure: LoRA is off, or an adapter isn't there.
    """
    for name, path in adapters(args).items():
        if not args.enable_lora:
            raise StartFailure(
                "ValueError: Call to add_lora method failed: Worker failed with error 'LoRA is not enabled. "
                "Use --enable-lora to enable LoRA.'"
            )
        if path.startswith("/") and not os.path.exists(os.path.join(path, "adapter_config.json")):
            raise StartFailure(f"ValueError: Loading lora {name} failed: No adapter found for {path}")


# --- the API server ----------------------------------------------------------------------------------

TAG = "APIServer"


def bind(args: argparse.Namespace) -> socket.socket:
    """The port, bound early and not yet listening: clients are refused until the model is ready."""
    family = socket.AF_INET6 if ":" in (args.host or "") else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((args.host or "", args.port))
    except OSError as error:
        raise StartFailure(f"{type(error).__name__}: {error}") from None
    return listener


def announce(start: Start, given: dict[str, Any]) -> None:
    """The banner and the arguments."""
    where = "api_utils.py:347"
    banner = (
        "\n       █     █     █▄   ▄█\n ▄▄ ▄█ █     █     █ ▀▄▀ █  version {0}\n"
        "  █▄█▀ █     █     █     █  model   {1}\n   ▀▀  ▀▀▀▀▀ ▀▀▀▀▀ ▀     ▀\n"
    )
    log(TAG, where, banner.format(start.release, start.args.model))
    shown = {name: "***" if name == "api_key" else value for name, value in given.items()}
    log(TAG, "api_utils.py:286", f"non-default args: {shown}")


def configure(start: Start) -> None:
    """Look at the model: the checks that fail early.

    Raises:
        StartFailure: The model isn't there, or the arguments don't fit it.
    """
    args, config, derived = start.args, {}, 131072
    if args.model.startswith("/"):
        if not os.path.isdir(args.model):
            raise StartFailure(FAILURES["missing_model"][1].replace("{model}", args.model))
        try:
            with open(os.path.join(args.model, "config.json"), encoding="utf-8") as file:
                config = json.load(file)
        except FileNotFoundError:
            message = f"ValueError: Invalid repository ID or local directory specified: '{args.model}'."
            raise StartFailure(message) from None
        derived = config.get("max_position_embeddings", derived)
    asked = args.max_model_len
    if asked and asked > derived and os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") != "1":
        raise StartFailure(
            f"{_VALIDATION}ModelConfig\n  Value error, User-specified max_model_len ({asked}) is greater "
            f"than the derived max_model_len (max_position_embeddings={float(derived)} or "
            "model_max_length=None in model's config.json). To allow overriding this maximum, set the env "
            "var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1. [type=value_error, input_value=ArgsKwargs(()), "
            "input_type=ArgsKwargs]\n"
            "    For further information visit https://errors.pydantic.dev/2.14/v/value_error"
        )
    args.max_model_len = asked if asked and asked > 0 else derived
    start.model = Model(args, config)
    log(TAG, "model.py:733", f"Resolved architecture: {config.get('architectures', ['LlamaForCausalLM'])[0]}")
    log(TAG, "model.py:2152", f"Using max model len {args.max_model_len}")


def launch_engine(start: Start, listener: socket.socket) -> Engine:
    """Start the resource tracker and EngineCore."""
    rpc = os.environ.get("VLLM_RPC_BASE_PATH") or start.temporary
    for _ in range(2):
        name = os.urandom(16).hex()
        path = os.path.join(rpc, f"{name[:8]}-{name[8:12]}-4{name[13:16]}-a{name[17:20]}-{name[20:]}")
        with socket.socket(socket.AF_UNIX) as control:
            control.bind(path)  # the file stays, as vLLM's does
    holders, held = os.pipe()
    os.set_inheritable(held, True)
    if os.fork() == 0:
        os.close(held)
        listener.close()
        resource_tracker(start, holders)
        os._exit(0)
    os.close(holders)
    return Engine(*fork(lambda parent: engine_core(start, parent), [listener]))


def await_engine(start: Start, engine: Engine) -> None:
    """Wait for EngineCore as vLLM does: the first SIGTERM is swallowed here, and the engine's death with it.

    Raises:
        StartFailure: EngineCore died.
        KeyboardInterrupt: A second SIGTERM or SIGINT.
    """
    try:
        engine.wait_ready(notice_death=True)
    except KeyboardInterrupt:  # zmq_socket_ctx in vLLM
        try:
            engine.wait_ready(notice_death=False)
        except KeyboardInterrupt:
            engine.kill()
            raise
    except EngineDead:
        code = engine.kill()
        raise StartFailure(
            "RuntimeError: Engine core initialization failed. See root cause above. "
            f"Failed core proc(s): {{'EngineCore': {code}}}"
        ) from None


def open_api(start: Start, listener: socket.socket, api: Api) -> None:
    """Say what is served and listen; a port stolen meanwhile goes unnoticed, as in vLLM."""
    args = start.args
    host = f"[{args.host}]" if ":" in (args.host or "") else args.host or "0.0.0.0"
    log(TAG, "entry.py:140", f"Starting vLLM server on http://{host}:{args.port}")
    log(TAG, "launcher.py:186", "Available routes are:")
    for path, methods in api.routes.items():
        log(TAG, "launcher.py:195", f"Route: {path}, Methods: {', '.join(methods)}")
    err(f"INFO:     Started server process [{os.getpid()}]\nINFO:     Waiting for application startup.\n")
    err("INFO:     Application startup complete.\n")
    try:
        listener.listen(2048)
    except OSError:
        return

    def accept() -> None:
        while True:
            try:
                peer, address = listener.accept()
            except OSError:
                return
            threading.Thread(target=api.serve, args=(peer, address), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def spew(rate: float) -> NoReturn:
    """Write about so many bytes a second to stdout."""
    line = "x" * max(1, int(rate / 20) - 1) + "\n"
    while True:
        out(line)
        time.sleep(0.05)


def run(start: Start, engine: Engine, listener: socket.socket, api: Api) -> NoReturn:
    """Serve until a signal or the engine's death; both exit with 0."""
    if not start.knobs.silent_tasks:
        log(TAG, "entry.py:136", f"Supported tasks: {start.model.supported}")
    start.phase("http")
    load_adapters(start.args)
    asked_read, asked_write = os.pipe()
    if not start.knobs.ignore_sigterm:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        # Written by the C handler, whichever thread has the signal: nothing is lost before poll() blocks.
        os.set_blocking(asked_write, False)
        signal.set_wakeup_fd(asked_write)
    open_api(start, listener, api)
    if start.knobs.spew:
        threading.Thread(target=spew, args=(start.knobs.spew,), daemon=True).start()
    if start.knobs.die_after is not None:
        fuse = threading.Timer(start.knobs.die_after, os.kill, (engine.pid, signal.SIGKILL))
        fuse.daemon = True
        fuse.start()
    poll = select.poll()
    poll.register(asked_read, select.POLLIN)
    poll.register(engine.channel, 0)
    asked = any(fd == asked_read for fd, _ in poll.poll())
    poll.unregister(engine.channel)
    # Where a signal to the whole group killed the engine, ours may come a moment later.
    if asked or poll.poll(30):
        stop(start, engine, listener, api)
    api.halt("dead")
    log(
        TAG,
        "core_client.py:817",
        "[shutdown] MPClient: engine core exited unexpectedly; starting cleanup",
        "WARNING",
    )
    log(TAG, "async_llm.py:906", f"AsyncLLM output_handler failed.\n{engine_dead_text()}", "ERROR")
    # The death is noticed at once; the exit comes with vLLM's watchdog. A signal hastens it.
    poll.poll(start.knobs.engine_death_delay * 1000)
    leave()


def engine_dead_text() -> str:
    """The end of the traceback that vLLM logs."""
    return traceback_text(f"vllm.v1.engine.exceptions.EngineDeadError: {DEAD}", "output_handler").rstrip()


def wait_idle(api: Api, seconds: float | None) -> None:
    """Wait until every request is answered, at most so long."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while api.answering and (deadline is None or time.monotonic() < deadline):
        time.sleep(0.005)


def stop(start: Start, engine: Engine, listener: socket.socket, api: Api) -> NoReturn:
    """The stop that was asked for: abort, or drain where --shutdown-timeout allows."""
    timeout = start.args.shutdown_timeout
    mode = "drain" if timeout else "abort"
    log(TAG, "launcher.py:254", "[shutdown] API server: shutdown triggered")
    log(
        TAG,
        "launcher.py:270",
        f"[shutdown] API server: stopping engine client mode={mode} timeout={timeout}s",
    )
    api.draining = True
    # A signal to the whole group kills the engine too. Its requests then never end, and vLLM waits for them;
    # as it sometimes does after a signal to itself alone.
    if not timeout and api.in_flight and (start.knobs.hang_on_stop or hung_up(engine.channel, 0.1)):
        engine.terminated = True
        engine.kill()
        shutdown_socket(listener)
        err("INFO:     Shutting down\nINFO:     Waiting for connections to close. (CTRL+C to force quit)\n")
        wait_idle(api, None)
        leave()
    if timeout:
        wait_idle(api, timeout)
        if not api.in_flight:
            time.sleep(start.knobs.teardown)
            api.aborting = True
    else:
        api.halt("aborting")
    log(
        TAG,
        "utils.py:653",
        f"[shutdown] Process manager: force killing remaining process EngineCore pid {engine.pid}",
        "WARNING",
    )
    if timeout and api.in_flight:
        api.halt("dead")
    engine.kill()
    shutdown_socket(listener)
    wait_idle(api, 0.2)
    log(TAG, "launcher.py:304", "[shutdown] API server: shutting down FastAPI HTTP server")
    leave()


def shutdown_socket(listener: socket.socket) -> None:
    """Stop listening, also in the thread that accepts."""
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def leave() -> NoReturn:
    """Exit with 0, whatever the threads do."""
    err("INFO:     Shutting down\nINFO:     Waiting for application shutdown.\n")
    err("INFO:     Application shutdown complete.\n")
    os._exit(0)


# --- command line ------------------------------------------------------------------------------------

TEXT_FLAGS = """--allowed-local-media-path --attention-backend --chat-template
--chat-template-content-format --code-revision --config-format --disable-access-log-for-endpoints
--distributed-executor-backend --download-dir --generation-config --hf-config-path --kv-cache-dtype
--model-impl --optimization-level --quantization --reasoning-parser --reasoning-parser-plugin --revision
--root-path --ssl-certfile --ssl-ciphers --ssl-keyfile --tokenizer --tokenizer-mode --tokenizer-revision
--tool-call-parser --tool-parser-plugin --uvicorn-log-level""".split()  # noqa: SIM905 - a word list
INTEGER_FLAGS = """--api-server-count --block-size --data-parallel-size --max-cpu-loras --max-lora-rank
--max-loras --max-num-seqs --num-gpu-blocks-override --pipeline-parallel-size --seed --shutdown-timeout
--tensor-parallel-size""".split()  # noqa: SIM905 - a word list
JSON_FLAGS = """--allowed-headers --allowed-methods --allowed-origins --compilation-config
--default-chat-template-kwargs --kv-transfer-config --limit-mm-per-prompt --logging-config
--mm-processor-kwargs --override-generation-config --pooler-config --speculative-config
--structured-outputs-config""".split()  # noqa: SIM905 - a word list
SHORT = {
    "--api-server-count": "-asc",
    "--compilation-config": "-cc",
    "--data-parallel-size": "-dp",
    "--enable-expert-parallel": "-ep",
    "--gpu-memory-utilization": "--device-memory-utilization",
    "--pipeline-parallel-size": "-pp",
    "--quantization": "-q",
    "--speculative-config": "-sc",
    "--tensor-parallel-size": "-tp",
}
CHOICES: dict[str, tuple[Any, ...]] = {
    "--chat-template-content-format": ("auto", "openai", "string"),
    "--max-lora-rank": (1, 8, 16, 32, 64, 128, 256, 320, 512),
    "--uvicorn-log-level": ("critical", "debug", "error", "info", "trace", "warning"),
}
DEFAULTS = {
    "--data-parallel-size": 1,
    "--pipeline-parallel-size": 1,
    "--shutdown-timeout": 0,
    "--tensor-parallel-size": 1,
}
LIST_FLAGS = ("--allowed-media-domains", "--api-key", "--lora-modules", "--served-model-name")
BOOLEAN_FLAGS = """--async-scheduling --disable-fastapi-docs --disable-uvicorn-access-log
--enable-auto-tool-choice --enable-chunked-prefill --enable-expert-parallel --enable-log-outputs
--enable-log-requests --enable-lora --enable-prefix-caching --enable-prompt-tokens-details
--enable-server-load-tracking --enable-sleep-mode --enable-ssl-refresh --enable-tokenizer-info-endpoint
--enforce-eager --language-model-only --numa-bind --skip-tokenizer-init --trust-remote-code
--use-tqdm-on-load""".split()  # noqa: SIM905 - a word list
DTYPES = ("auto", "bfloat16", "float", "float16", "float32", "half")
USAGE = (
    "usage: vllm [-h] [-v]\n"
    "            {chat,complete,serve,launch,bench,collect-env,download-kernels,preload,run-batch,snapshot}\n"
    "            ...\n"
)


def human_readable_int(text: str) -> int:
    """16K is 16384, 4k is 4000."""
    units = {"k": 10**3, "m": 10**6, "K": 2**10, "M": 2**20}
    return int(float(text[:-1]) * units[text[-1]]) if text[-1:] in units else int(text)


def human_readable_int_or_auto(text: str) -> int:
    """The same, or auto, which is -1."""
    return -1 if text == "auto" else human_readable_int(text)


def parse_dataclass(text: str) -> Any:
    """JSON; or any text, since the keys of dotted flags are cut off here."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def union_dict_and_str(text: str) -> Any:
    """A JSON object, or other text."""
    return parse_dataclass(text) if text.startswith("{") else text


def make_parser(parser: argparse.ArgumentParser | None = None) -> argparse.ArgumentParser:
    """``vllm serve``'s flags: those that a supervisor gives and a few more."""
    parser = parser or argparse.ArgumentParser("vllm serve", usage="vllm serve [model_tag] [options]")

    def add(flag: str, **options: Any) -> None:
        short = [SHORT[flag]] if flag in SHORT else []
        if flag in CHOICES:
            options["choices"] = CHOICES[flag]
        parser.add_argument(flag, *short, **{"default": DEFAULTS.get(flag)} | options)

    parser.add_argument("model_tag", nargs="?")
    add("--host")
    add("--port", type=int, default=8000)
    add("--max-model-len", type=human_readable_int_or_auto)
    add("--dtype", choices=DTYPES, default="auto")
    add("--load-format", default="auto")
    add("--runner", choices=("auto", "draft", "generate", "pooling"), default="auto")
    add("--convert", choices=("auto", "classify", "embed", "none"), default="auto")
    add("--hf-token", nargs="?")
    add("--hf-overrides", type=union_dict_and_str)
    add("--device-ids", type=lambda text: text.split(","))
    add("--middleware", action="append", type=str)
    parser.add_argument("--disable-log-stats", action="store_true")
    for flag in TEXT_FLAGS:
        add(flag)
    for flag in INTEGER_FLAGS:
        add(flag, type=int)
    for flag in ("--cpu-offload-gb", "--gpu-memory-utilization"):
        add(flag, type=float)
    for flag in ("--kv-cache-memory-bytes", "--max-num-batched-tokens"):
        add(flag, type=human_readable_int)
    for flag in JSON_FLAGS:
        add(flag, type=parse_dataclass)
    for flag in LIST_FLAGS:
        add(flag, nargs="+")
    add("--cudagraph-capture-sizes", nargs="+", type=int)
    for flag in BOOLEAN_FLAGS:
        add(flag, action=argparse.BooleanOptionalAction, default=False)
    return parser


def normalised(argument: str) -> str:
    """--max_model_len as --max-model-len, --compilation-config.mode as --compilation-config."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return flag.partition(".")[0].replace("_", "-") + equals + value


def parse(argv: list[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The arguments, and those that differ from their defaults. Exits with 2 as argparse does.

    Raises:
        StartFailure: They contradict each other.
    """
    parser = make_parser()
    args, unknown = parser.parse_known_args([normalised(argument) for argument in argv])
    if unknown:
        unrecognised(unknown)
    given = {name: value for name, value in vars(args).items() if value != parser.get_default(name)}
    if args.model_tag is None:
        if args.served_model_name:
            raise StartFailure("ValueError: `model` should be provided as the first positional argument")
        args.model_tag = "Qwen/Qwen3-0.6B"
    if args.enable_auto_tool_choice and not args.tool_call_parser:
        raise StartFailure(FAILURES["tool_parser_missing"][1])
    args.model = args.model_tag
    args.served_model_name = args.served_model_name or [args.model]
    return args, given


def unrecognised(arguments: list[str]) -> NoReturn:
    """Exit as argparse does."""
    err(f"{USAGE}vllm: error: unrecognized arguments: {' '.join(arguments)}\n")
    sys.exit(2)


def serve(argv: list[str], version: str) -> int:
    """``vllm serve``."""
    knobs = read_knobs()
    if knobs.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        args, given = parse(argv)
        start = Start(args, knobs, version)
        try:
            start.phase("imports")
        except StartFailure as failure:
            if start.failing == "badarg":
                unrecognised([str(failure)])
            raise
        announce(start, given)
        if not knobs.ignore_sigterm:
            signal.signal(signal.SIGTERM, interrupt)
        listener = bind(args)
        start.phase("config")
        configure(start)
        engine = launch_engine(start, listener)
        await_engine(start, engine)
        api = Api(start, engine)
        try:
            run(start, engine, listener, api)
        except (StartFailure, KeyboardInterrupt):
            engine.kill()
            raise
    except StartFailure as failure:
        err(traceback_text(str(failure), "main"))
        return 1


def interrupt(*_: Any) -> NoReturn:
    """vLLM's SIGTERM handler until it serves."""
    raise KeyboardInterrupt("terminated")


def main(version: str = VERSION) -> int:
    """The ``vllm`` command."""
    argv = sys.argv[1:]
    if argv[:1] in (["-v"], ["--version"]):
        print(version)
        return 0
    if argv[:1] != ["serve"]:
        err(USAGE)
        return 2
    return serve(argv[1:], version)


if __name__ == "__main__":
    sys.exit(main())
