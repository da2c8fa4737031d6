"""Causes that say which part of vLLM ended, and hardly why: looked for after all the others."""

from vllm_manager.diagnose.cause import passing, permanent

KILLED = "it was killed from outside (SIGKILL), most likely by the kernel for lack of memory"
OUT_OF_RAM = "look for 'Out of memory' in `dmesg`; start fewer models at once, or add RAM"
CRASHED_HINT = "look at the end of the log and at `dmesg`; try another engine version"

RUNNING = (
    # Here, since vLLM also logs such errors of parts that it can do without.
    permanent(
        "module-missing",
        r"^ModuleNotFoundError: No module named '(?P<module>[^'\n]+)'",
        "the engine's environment has no Python module $module",
        "`vllm-manager engine check` tells whether an installed engine is damaged; in an environment of your "
        "own, install vLLM again, or $module where it is an extra of vLLM or named in `args`",
    ),
    permanent(
        "architecture-broken",
        r"Model architectures \[(?P<names>[^\]\n]*)\] failed to be inspected",
        "vLLM's code for the architecture $names doesn't load",
        "look further up in the log: mostly a package is missing in the engine's environment",
    ),
    permanent(
        "arguments",
        r"^vllm[\w ]*: error: (?P<reason>.+)",
        "vLLM refuses its arguments: $reason",
        "correct the manifest's fields and `args`",
    ),
    passing(
        "engine-start-timeout",
        r"Timed out waiting for engine core processes to start",
        "vLLM's own patience with its engine ran out",
        "set `env: {VLLM_ENGINE_READY_TIMEOUT_S: ...}` higher (vLLM's default is 600)",
    ),
    passing(
        "engine-killed",
        r"Failed core proc\(s\): \{.*: -9\b|died unexpectedly \(exit code: -9\)",
        "a process of the engine was killed from outside, most likely by the kernel for lack of memory",
        OUT_OF_RAM,
    ),
    passing(
        "engine-hung",
        r"RPC call to (?P<method>\w+) timed out",
        "the engine hung: $method didn't end in time",
        "look for Xid in `dmesg`; for slow steps, `env: {VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS: ...}`",
    ),
    passing(
        "cuda-error",
        r"CUDA error: (?P<reason>.+)",
        "the GPU reported an error: $reason",
        "look for Xid in `dmesg`; if it repeats, try another vLLM with `engine: {version: ...}`",
    ),
    passing(
        "worker-died",
        r"Worker proc (?P<worker>\S+) died unexpectedly \(exit code: (?P<status>[^)\n]+)\)",
        "vLLM's process $worker ended (exit code $status)",
        "look further up in the log, and for 'Out of memory' and Xid in `dmesg`",
    ),
    passing(
        "engine-died",
        r"EngineDeadError|Engine core process \S+ died unexpectedly|Engine core initialization failed",
        "vLLM's engine process ended without naming an error",
        "look further up in the log, and for 'Out of memory' and Xid in `dmesg`",
    ),
    passing(
        "engine-stalled",
        r"No available shared memory broadcast block found in (?P<seconds>\d+) seconds",
        "the engine's processes waited for each other for more than $seconds s",
        "long compilation does that too; where it never ends, the GPUs can't talk to each other: "
        "`env: {NCCL_DEBUG: INFO}`",
    ),
)
