"""Causes in the machine: ports, devices, drivers, limits."""

from vllm_manager.diagnose.cause import passing, permanent

MACHINE = (
    passing(
        "port-in-use",
        r"\[Errno 98\].*[Aa]ddress already in use",
        "somebody else holds the port",
        "set another `port` (or none: a free one is chosen), or stop who listens there",
    ),
    permanent(
        "host-not-local",
        r"\[Errno 99\] Cannot assign requested address",
        "this machine doesn't have the address that vLLM should listen on",
        "set `host` to an address of this machine, such as 127.0.0.1",
    ),
    permanent(
        "port-privileged",
        r"bind\(.*\n(?:[ ^~]*\n)?PermissionError: \[Errno 13\]",
        "only root may listen on that port",
        "set `port` to 1024 or more",
    ),
    passing(
        "shared-memory-full",
        r"Insufficient space in (?P<path>\S+) for .+: (?P<needed>[\d.]+ \w+) required, "
        r"(?P<free>[\d.]+ \w+) free",
        "$path has $free left, and vLLM needs $needed",
        "remove what ended engines left in $path, or make it larger than $needed "
        "(in a container: --ipc=host or --shm-size)",
    ),
    passing(
        "nccl",
        r"NCCL error: (?P<reason>[^(\n]+)",
        "the GPUs can't talk to each other (NCCL: $reason)",
        "set `env: {NCCL_DEBUG: INFO}` and look at the log; `NCCL_P2P_DISABLE: 1` tells whether peer access "
        "is at fault; a container needs --ipc=host and an unlimited memlock",
    ),
    passing(
        "no-gpu",
        r"Failed to infer device type",
        "vLLM sees no GPU",
        "check the driver with `vllm-manager gpus`; without a GPU, set `gpus: none` and use a CPU engine",
    ),
    permanent(
        "visible-devices-uuid",
        r"invalid literal for int\(\) with base 10: '(?P<uuid>(?:GPU|MIG)-[^'\n]*)",
        "this vLLM can't read $uuid in CUDA_VISIBLE_DEVICES",
        "remove CUDA_VISIBLE_DEVICES from `env`; choose the GPU with `gpus: {uuids: [$uuid]}`",
    ),
    permanent(
        "vllm-port-uri",
        r"VLLM_PORT '(?P<value>[^'\n]*)' appears to be a URI",
        "VLLM_PORT is $value, which Kubernetes sets for a service called vllm",
        "remove VLLM_PORT from `env`; the API's port is `port`",
    ),
    passing(
        "too-many-open-files",
        r"^OSError: \[Errno 24\]",
        "vLLM ran out of file descriptors",
        "raise the limit of open files of who starts it: LimitNOFILE=65535 (systemd), or `ulimit -n 65535`",
    ),
    permanent(
        "compiler-missing",
        r"InvalidCxxCompiler: No working C\+\+ compiler found",
        "vLLM compiles code for this machine's CPU, and there is no C++ compiler that works",
        "install one (`apt-get install g++`), and start it again",
    ),
    permanent(
        "library-missing",
        r"ImportError: (?P<library>lib[^\s:]+): cannot open shared object file",
        "the engine needs the system library $library, which isn't installed",
        "install the package that holds $library (libnuma.so.1: libnuma1)",
    ),
)
