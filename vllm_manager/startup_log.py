"""Reads where a start is from vLLM's own log.

The lines and their order are those of vLLM 0.30 to 0.32; a message is matched by its text, never by the
``[file.py:123]`` before it, which changes with every version.
"""

import re
from typing import Final

from vllm_manager.types import Phase, Step, StepName

_ORDER: Final = tuple(StepName)

# "(Worker_TP0 pid=12) INFO 11-20 12:27:56 [api_utils.py:286] message"; every part but the message may lack.
_PREFIX: Final = re.compile(
    r"(?:\([^()]+ pid=\d+\) )?(?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[?[\w./]+:\d+\] )?(?:\[\w+\] )?"
)

# The first line of each step: the first that matches decides.
_BEGINS: Final = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        (StepName.CONFIG, r"non-default args: |Resolved architecture: |Using max model len "),
        (StepName.ENGINE, r"Initializing a V\d LLM engine "),
        (StepName.DISTRIBUTED, r"world_size=\d+ rank=\d+ local_rank=\d+ "),
        (
            StepName.WEIGHTS,
            r"Starting to load model |Loading model from scratch|Loading .*: +\d+% Completed "
            r"|Time spent downloading weights |Loading weights took |Model loading took ",
        ),
        (
            StepName.COMPILE,
            r"Starting torch\.compile|Using cache directory: .* torch\.compile|Dynamo bytecode transform "
            r"|Compiling a graph for |Directly load |Warming up model for the compilation",
        ),
        (
            StepName.PROFILE,
            r"torch\.compile took |Initial profiling/warmup run took |Profiling CUDA graph memory: "
            r"|Memory profiling takes ",
        ),
        (StepName.KV_CACHE, r"Available KV cache memory: |\w+ KV cache size: "),
        (StepName.HTTP, r"init engine \(|Supported[_ ]tasks: |Starting vLLM (?:API )?server"),
    )
)

# tqdm: "Loading safetensors checkpoint shards:  75% Completed | 3/4 [..]" ends with a newline,
# "Capturing CUDA graphs (decode, FULL):  43%|####    | 15/35 [..]" only with a carriage return.
_SHARDS: Final = re.compile(r"Loading .*: +\d+% Completed \| (?P<done>\d+)/(?P<total>\d+)")
_GRAPHS: Final = re.compile(r"Capturing (?P<what>.*?graphs.*?): +\d+%\|.*?\| *(?P<done>\d+)/(?P<total>\d+)")

_KV_CACHE: Final = re.compile(r"\w+ KV cache size: (?P<tokens>[\d,]+) tokens")
_MAX_LEN: Final = re.compile(r"Using max model len (\d+)|Auto-fit max_model_len: reduced from \d+ to (\d+)")
_WEIGHTS: Final = re.compile(r"Loading weights took ([\d.]+) seconds")
_TASKS: Final = re.compile(r"Supported[_ ]tasks: [\[({](.*)[\])}]")
_HTTP: Final = re.compile(r"Starting vLLM (?:API )?server|INFO: +Application startup complete")


class StartupLog:
    """The steps of one start, fed line by line from its log.

    Several processes may print the same line (one worker per GPU): a step begins with the first of them,
    and a step once left doesn't come back.

    Attributes:
        supported_tasks: Such as ``("generate",)``; empty until the log names them.
        kv_cache_tokens: Room in the KV cache; with data parallelism, of the smallest engine.
        max_model_len: The one that vLLM uses, in tokens, also where it chose it by itself.
        weights_seconds: How long the slowest process read weights; without the download.
        http_started: Whether vLLM says that it serves HTTP. It may not listen all the same.
    """

    def __init__(self) -> None:
        self._steps = [Step(name=StepName.IMPORT, began=0.0)]
        self._bar = ""
        self.supported_tasks: tuple[str, ...] = ()
        self.kv_cache_tokens: int | None = None
        self.max_model_len: int | None = None
        self.weights_seconds: float | None = None
        self.http_started = False

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps so far, in order; the last one is under way."""
        return tuple(self._steps)

    @property
    def current(self) -> Step:
        """The step under way."""
        return self._steps[-1]

    @property
    def phase_hint(self) -> Phase:
        """STARTING, or LOADING from the weights on."""
        return Phase.LOADING if self._reached(StepName.WEIGHTS) else Phase.STARTING

    def begin(self, name: StepName, at: float) -> Step | None:
        """Enter a step that the log can't show, such as the warm-up.

        Args:
            name: The step.
            at: Seconds after the process was started.

        Returns:
            The step, or None where it or a later one has begun already.
        """
        if self._reached(name):
            return None
        self._steps.append(Step(name=name, began=at))
        self._bar = ""
        return self.current

    def feed(self, line: str, at: float) -> Step | None:
        """Read one line.

        Args:
            line: With or without vLLM's prefix. Of several parts between carriage returns the last counts.
            at: Seconds after the process was started.

        Returns:
            The current step where the line begins it or moves its progress, else None.
        """
        line = line.rstrip("\r\n").rpartition("\r")[2]
        message = line[_PREFIX.match(line).end() :]  # type: ignore[union-attr]  # every part is optional
        self._note(message)
        begun = None
        for name, pattern in _BEGINS:
            if pattern.match(message):
                begun = self.begin(name, at)
                break
        return self._progress(message, at) or begun

    def _reached(self, name: StepName) -> bool:
        return _ORDER.index(self.current.name) >= _ORDER.index(name)

    def _note(self, message: str) -> None:
        if found := _TASKS.match(message):
            self.supported_tasks = tuple(re.findall(r"'([^']+)'", found[1]))
        elif found := _MAX_LEN.match(message):
            self.max_model_len = int(found[1] or found[2])
        elif found := _WEIGHTS.match(message):
            self.weights_seconds = max(self.weights_seconds or 0.0, float(found[1]))
        elif _HTTP.match(message):
            self.http_started = True

    def _progress(self, message: str, at: float) -> Step | None:
        if found := _KV_CACHE.match(message):
            tokens = int(found["tokens"].replace(",", ""))
            self.kv_cache_tokens = min(tokens, self.kv_cache_tokens or tokens)
            return self._move(StepName.KV_CACHE, "", None, f"{self.kv_cache_tokens:,} tokens")
        if found := _SHARDS.match(message):
            done, total = int(found["done"]), int(found["total"])
            return self._move(StepName.WEIGHTS, "shards", _share(done, total), f"{done}/{total} shards")
        if found := _GRAPHS.match(message):
            # Before the KV cache has its size, graphs are captured only to measure them: that is profiling.
            name = StepName.GRAPHS if self._reached(StepName.KV_CACHE) else StepName.PROFILE
            self.begin(name, at)
            done, total = int(found["done"]), int(found["total"])
            return self._move(name, found["what"], _share(done, total), f"{done}/{total} {found['what']}")
        return None

    def _move(self, name: StepName, bar: str, progress: float | None, detail: str) -> Step | None:
        """Update the current step, if it is that one and ``progress`` of the same bar doesn't fall."""
        now = self.current
        if now.name is not name or detail == now.detail:
            return None
        if bar == self._bar and (progress or 0.0) < (now.progress or 0.0):
            return None
        self._bar = bar
        self._steps[-1] = Step(name=name, began=now.began, progress=progress, detail=detail)
        return self.current


def _share(done: int, total: int) -> float:
    return min(done / total, 1.0) if total else 0.0
