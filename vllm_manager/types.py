"""The values that layers hand to each other: plain, frozen, standard library only.

Memory is in bytes, durations in seconds, ports are TCP. Instants are wall-clock seconds since the
epoch (``*_at``), as they are stored and shown; decisions use the monotonic clock and are not stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

# --- lifecycle ---------------------------------------------------------------------------------------


class Phase(StrEnum):
    """Where an instance is. Only READY is handed to clients."""

    PENDING = "pending"  # wanted; waits for its turn, its GPUs or its port
    STARTING = "starting"  # the process is there; no weights yet
    LOADING = "loading"  # weights, compilation, KV cache, graphs
    WARMING = "warming"  # HTTP is up; the 1-token request is on its way
    READY = "ready"  # a token was produced
    STOPPING = "stopping"  # asked to end
    SWEEPING = "sweeping"  # ended; what is left of it is being removed
    BACKOFF = "backoff"  # waits before the next start
    FAILED = "failed"  # given up; says why
    STOPPED = "stopped"  # ended as asked

    @property
    def live(self) -> bool:
        """Whether processes of the instance may exist."""
        return self in _LIVE

    @property
    def settled(self) -> bool:
        """Whether it stays as it is until somebody asks for something."""
        return self in (Phase.READY, Phase.FAILED, Phase.STOPPED)


_LIVE = frozenset({Phase.STARTING, Phase.LOADING, Phase.WARMING, Phase.READY, Phase.STOPPING, Phase.SWEEPING})


class StepName(StrEnum):
    """The steps of a vLLM start, in the order in which its log shows them."""

    IMPORT = "import"  # Python imports; vLLM prints nothing for about 9 s
    CONFIG = "config"
    ENGINE = "engine"
    DISTRIBUTED = "distributed"
    WEIGHTS = "weights"
    COMPILE = "compile"
    PROFILE = "profile"
    KV_CACHE = "kv-cache"
    GRAPHS = "graphs"
    HTTP = "http"
    WARM_UP = "warm-up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a start.

    Attributes:
        name: Which.
        began: Seconds after the process was started.
        progress: 0 to 1 where the log tells, else None.
        detail: Such as ``3/4 shards``.
    """

    name: StepName
    began: float
    progress: float | None = None
    detail: str | None = None


class Task(StrEnum):
    """What a model is for; decides the warm-up and what the client offers."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBED = "embed"
    CLASSIFY = "classify"
    SCORE = "score"  # rerank and score: a pair of texts gives one figure
    POOLING = "pooling"  # vectors that are none of the above, such as one per token
    TRANSCRIPTION = "transcription"


# --- GPUs --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that NVML reports on a GPU.

    Attributes:
        pid: As NVML sees it (may belong to another pid namespace).
        memory: Bytes, or None where the driver doesn't tell (WSL2, some containers).
        name: The command's name, or None.
    """

    pid: int
    memory: int | None
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU at one moment.

    Attributes:
        index: NVML's index, which is the order of ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.
        uuid: Its identity; indices may change at a reboot. Empty where NVML can't tell it (a lost GPU).
        memory_total: What CUDA sees: NVML's v2 total minus ``reserved``.
        memory_free: What a new allocation could take.
        processes: None where NVML doesn't tell.
        mig: Whether MIG is enabled (then no process is placed on it).
        problem: Why it can't be used, or None.
    """

    index: int
    uuid: str
    name: str
    pci_bus_id: str | None = None
    compute_capability: tuple[int, int] | None = None
    memory_total: int = 0
    memory_free: int = 0
    processes: tuple[GpuProcess, ...] | None = None
    utilization: int | None = None
    mig: bool = False
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuInventory:
    """The GPUs of this machine, or why there are none.

    Attributes:
        gpus: In index order; also those with a problem.
        driver_version: Such as ``570.86.15``.
        cuda_version: The newest that the driver supports, such as ``12.8``.
        problem: Why there is no inventory (no driver, no library, driver and library differ), or None.
        hint: What would help against ``problem``.
    """

    gpus: tuple[Gpu, ...] = ()
    driver_version: str | None = None
    cuda_version: str | None = None
    problem: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRequest:
    """What a deployment asks of the GPUs, per replica.

    Attributes:
        count: How many GPUs; 0 runs on the CPU.
        memory: Bytes on each, or None for ``utilization`` of each.
        utilization: Share of each GPU's ``memory_total`` where ``memory`` is None.
        indices: Only these, or any where empty.
        uuids: Only these, or any where empty.
        name: A shell pattern that the GPU's name must match, or None.
    """

    count: int = 1
    memory: int | None = None
    utilization: float = 0.92
    indices: tuple[int, ...] = ()
    uuids: tuple[str, ...] = ()
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Memory on one GPU that is promised to one instance.

    Attributes:
        instance: Its id.
        deployment: Its deployment, for messages.
        gpu_uuid: Which GPU.
        memory: Bytes promised.
        used: Bytes its processes use already, or None where NVML doesn't tell.
        ready: Whether it has allocated what it will: where ``used`` is unknown, a ready lease counts as
            wholly used, a loading one as unused.
    """

    instance: str
    deployment: str
    gpu_uuid: str
    memory: int
    used: int | None = None
    ready: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedGpu:
    """One GPU of a placement.

    Attributes:
        memory: Bytes leased on it.
        memory_total: Its total, of which vLLM's ``--gpu-memory-utilization`` is the share.
    """

    index: int
    uuid: str
    memory: int
    memory_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Which GPUs an instance gets, in index order; none means the CPU."""

    gpus: tuple[PlacedGpu, ...] = ()


# --- engines and launching ---------------------------------------------------------------------------


class Device(StrEnum):
    """What an engine's build computes on."""

    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A vLLM that can be started as a process.

    Attributes:
        name: For people, such as ``cpu-0.32.0`` or the path of the environment.
        executable: Absolute path of its ``vllm`` program.
        version: Such as ``0.32.0+cpu``; None where it can't be told.
        device: What it computes on; None where it can't be told.
    """

    name: str
    executable: str
    version: str | None = None
    device: Device | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One option of an engine's `vllm serve`, as its own parser has it.

    Attributes:
        name: The documented long name without dashes in front, such as ``max-num-seqs``.
        aliases: Its other long and short names, likewise; a ``no-`` twin isn't among them.
        kind: ``bool``, ``int``, ``float``, ``str``, ``json``, ``tokens`` (16K), ``tokens-or-auto``, or
            ``other`` where its type isn't one that we could check.
        negatable: Whether there is a ``no-`` twin.
        many: Whether it takes several values (argparse's ``nargs`` of ``+``, ``*`` or a number).
        repeats: Whether it is given once per value (argparse's ``append``).
        choices: The only values, as text; empty where any goes.
    """

    name: str
    aliases: tuple[str, ...] = ()
    kind: str = "other"
    negatable: bool = False
    many: bool = False
    repeats: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFlags:
    """What one engine's `vllm serve` understands, read from that engine once.

    Attributes:
        version: The engine's, such as ``0.32.0+cpu``.
        tool_parsers: The names that ``--tool-call-parser`` takes; None where they couldn't be read.
        reasoning_parsers: Likewise.
        tool_parser_tokens: The tokens that a tokenizer must have for a parser to start, by its name; only
            where the parser's source tells.
        reasoning_parser_tokens: Likewise.
        known_values: The values that this vLLM has for flags to which plugins may add others, by the flag's
            name; only where they could be read.
    """

    version: str
    flags: tuple[Flag, ...]
    tool_parsers: tuple[str, ...] | None = None
    reasoning_parsers: tuple[str, ...] | None = None
    tool_parser_tokens: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reasoning_parser_tokens: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    known_values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """Everything a launcher needs to start one instance. Its ``env`` holds secrets: never shown.

    Attributes:
        instance: The instance's id; also the mark in its processes' titles.
        argv: The command, program first.
        env: The whole environment.
        cwd: The instance's private directory, created by the launcher.
        tmp: Its private TMPDIR, inside or beside ``cwd``; short, since vLLM puts unix sockets there.
        log: The file that gets stdout and stderr.
        host: Where it will listen.
        port: Likewise.
    """

    instance: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: str
    tmp: str
    log: str
    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Handle:
    """What is needed to find a running instance again; written by one launcher, opaque to the rest.

    Attributes:
        launcher: Which launcher understands it.
        version: The layout of ``data``.
        data: JSON-ready values.
    """

    launcher: str
    version: int
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """How far the download of a model's files is.

    Attributes:
        repository: The Hugging Face id.
        done: Bytes on disk, of the files that are needed.
        total: Bytes of all of them.
        speed: Bytes a second, lately; 0 while nothing comes.
    """

    repository: str
    done: int
    total: int
    speed: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Why a start failed, as far as its log tells.

    Attributes:
        cause: One line for people; the exception's own words where nothing better is known.
        code: A slug for a recognised cause, such as ``gpu-memory-busy``; None when it isn't recognised.
        hint: What would help, with the value that vLLM names, or None.
        permanent: Whether the same start would fail the same way again.
        exception: The line of the log that names the error, or None.
        tail: The last lines of the log.
    """

    cause: str
    code: str | None = None
    hint: str | None = None
    permanent: bool = False
    exception: str | None = None
    tail: tuple[str, ...] = ()


# --- what `up` does ----------------------------------------------------------------------------------


class Action(StrEnum):
    """What is done to one deployment."""

    START = "start"  # it isn't known yet
    RESTART = "restart"  # it runs, and is replaced
    RESUME = "resume"  # it is known, and doesn't run: stopped, failed, or waiting to try again
    UNCHANGED = "unchanged"
    END = "end"  # no manifest declares it any more, and that is to end it
    KEEP = "keep"  # no manifest declares it any more, and it is left as it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What happens to one deployment, and why.

    Attributes:
        changes: What differs from the manifest before, in words, and takes a new instance.
        applied: What differs, in words, and applies to the instance that runs.
    """

    name: str
    action: Action
    changes: tuple[str, ...] = ()
    applied: tuple[str, ...] = ()


# --- what is shown and handed out --------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """How to reach a deployment's model, and whether it can answer.

    Attributes:
        deployment: The name it was declared under.
        model: The name to send as ``model`` (the first served one).
        names: All served names, ``model`` first.
        adapters: The names of its LoRA adapters, which may be sent as ``model`` too.
        root_url: Such as ``http://127.0.0.1:8000``; None until it has a port.
        phase: Of its instance.
        api_key: Filled in by the registry from the owner's secrets; never stored beside the rest.
        certificate: The file of the TLS certificate that it serves with; None where it speaks plain HTTP.
        task: None until it was ready once.
        max_model_len: Tokens; None until it was ready once.
        step: The start-up step under way, such as ``weights 62 %``.
        cause: Why it isn't ready, where that is known.
        hint: What would help.
    """

    deployment: str
    model: str
    names: tuple[str, ...]
    root_url: str | None
    phase: Phase
    api_key: str | None = field(default=None, repr=False)
    adapters: tuple[str, ...] = ()
    certificate: str | None = None
    task: Task | None = None
    max_model_len: int | None = None
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    step: str | None = None
    cause: str | None = None
    hint: str | None = None

    @property
    def base_url(self) -> str | None:
        """The root with ``/v1``, as OpenAI clients want it; no trailing slash."""
        return None if self.root_url is None else f"{self.root_url}/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A deployment as ``ps`` shows it.

    Attributes:
        name: The deployment.
        source: The manifest's path.
        instance: The id of the running or last attempt.
        pid: Its main process, where there is one.
        gpus: Indices; empty on the CPU.
        engine: Its name.
        steps: The start-up steps of the running or last attempt, with seconds since the spawn.
        elapsed: Seconds since the spawn while it starts, else None.
        ready_after: Seconds from spawn to READY.
        kv_cache_tokens: As vLLM logged it.
        failed_starts: In a row.
        restarts: Since it was brought up.
        retry_in: Seconds until the next start, in BACKOFF.
        error: The payload of what went wrong last, where it isn't ready.
        log: The running or last attempt's log.
        notes: What a user should know about it, such as that its weights are random.
        download: The weights' download under way, before the start.
    """

    name: str
    source: str
    endpoint: Endpoint
    instance: str | None = None
    pid: int | None = None
    gpus: tuple[int, ...] = ()
    engine: str | None = None
    phase_since: float = 0.0
    steps: tuple[Step, ...] = ()
    elapsed: float | None = None
    ready_after: float | None = None
    kv_cache_tokens: int | None = None
    failed_starts: int = 0
    restarts: int = 0
    retry_in: float | None = None
    error: Mapping[str, Any] | None = None
    log: str | None = None
    notes: tuple[str, ...] = ()
    download: Download | None = None

    @property
    def phase(self) -> Phase:
        """Where its instance is."""
        return self.endpoint.phase
