"""Which of vLLM's flags and variables a manifest may pass through, and which are somebody else's to set."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from vllm_manager.manifest.explain import Problem, complaint
from vllm_manager.manifest.values import variable

# Flags with a field of their own: the value is read there, and the flag is rendered from it.
_FIELDS = {
    "model": "model",
    "revision": "revision",
    "runner": "runner",
    "convert": "convert",
    "dtype": "dtype",
    "quantization": "quantization",
    "lora-modules": "lora_modules",
    "host": "host",
    "port": "port",
    "api-key": "api_key",
    "served-model-name": "served_model_name",
    "enable-auto-tool-choice": "enable_auto_tool_choice",
    "tool-call-parser": "tool_call_parser",
    "reasoning-parser": "reasoning_parser",
    "chat-template": "chat_template",
    "max-model-len": "max_model_len",
    "tensor-parallel-size": "tensor_parallel_size",
    "tp": "tensor_parallel_size",
    "pipeline-parallel-size": "pipeline_parallel_size",
    "pp": "pipeline_parallel_size",
    "data-parallel-size": "data_parallel_size",
    "dp": "data_parallel_size",
    "gpu-memory-utilization": "gpu_memory_utilization",
    "device-memory-utilization": "gpu_memory_utilization",
    "device-ids": "gpus",
}

FLAG_OF = {field: flag for flag, field in reversed(_FIELDS.items())}
"""The long flag of each field that has one."""

_ONE_MACHINE = "a deployment runs on this machine alone"
_OVER_TCP = "probes and clients reach a deployment over HTTP at its host and port"
_NO_CLIENT_CERTIFICATES = "probes and clients have no certificates of their own; `api_key` keeps others out"

# Flags that would break what the manager relies on, and why.
_OWNED = {
    "help": "it would print a page and exit",
    "config": "vLLM drops some values of its own config files; write its entries under `args:`",
    "uds": _OVER_TCP,
    "grpc": _OVER_TCP,
    "grpc-port": _OVER_TCP,
    "root-path": _OVER_TCP,
    "ssl-ca-certs": _NO_CLIENT_CERTIFICATES,
    "ssl-cert-reqs": _NO_CLIENT_CERTIFICATES,
    "headless": _ONE_MACHINE,
    "nnodes": _ONE_MACHINE,
    "node-rank": _ONE_MACHINE,
    "master-addr": _ONE_MACHINE,
    "master-port": _ONE_MACHINE,
    "data-parallel-rank": _ONE_MACHINE,
    "data-parallel-start-rank": _ONE_MACHINE,
    "data-parallel-size-local": _ONE_MACHINE,
    "data-parallel-address": _ONE_MACHINE,
    "data-parallel-rpc-port": _ONE_MACHINE,
    "data-parallel-hybrid-lb": _ONE_MACHINE,
    "data-parallel-external-lb": _ONE_MACHINE,
    "data-parallel-multi-port-external-lb": _ONE_MACHINE,
    "data-parallel-supervisor-port": _ONE_MACHINE,
    "prefill-context-parallel-size": "it changes how many GPUs are needed, which isn't supported yet",
    "shutdown-timeout": "the supervisor sets it, as the time that a stop waits for running requests",
    "hf-token": "everybody on this machine could read it in `ps`; set HF_TOKEN where the supervisor starts",
}

_VARIABLES = {
    "VLLM_API_KEY": "it is set from the field `api_key`",
    "CUDA_VISIBLE_DEVICES": "it is set from the placement; choose GPUs with the field `gpus`",
    "CUDA_DEVICE_ORDER": "it is set from the placement; choose GPUs with the field `gpus`",
    "TMPDIR": "each instance has its own, which is removed after it",
    "VLLM_RPC_BASE_PATH": "each instance has its own, which is removed after it",
    "VLLM_PROCESS_NAME_PREFIX": "it marks the processes of an instance",
    "HF_TOKEN": "it is inherited; a value written here would be stored in plain files",
    "HUGGING_FACE_HUB_TOKEN": "HF_TOKEN is inherited; a value written here would be stored in plain files",
}

_FLAG = re.compile(r"[a-z][a-z0-9-]*(\.[A-Za-z0-9_.-]+\+?)?")


def normal(name: str) -> str:
    """The flag as vLLM documents it: dashes, except in the keys after a dot."""
    flag, dot, rest = name.partition(".")
    return flag.replace("_", "-") + dot + rest


def passed_flag(name: str) -> str:
    """The normal form of a flag under ``args``, refused where a field or the manager sets it."""
    flag = normal(name)
    if flag.startswith("-"):
        raise complaint("is written without leading dashes here", f"write `{flag.lstrip('-')}:`")
    if not _FLAG.fullmatch(flag):
        raise complaint("is no flag of vLLM", "write the long name, such as max-num-seqs")
    head = flag.partition(".")[0].removeprefix("no-")
    if refused := refusal(head):
        raise complaint(*refused)
    # vLLM's parser takes any unique abbreviation, so that `api-k` would be `api-key`.
    # But `device` was a flag of its own once, and flag_check tells what became of it.
    short = next((known for known in (*_FIELDS, *_OWNED) if known.startswith(head)), None)
    if short is not None and head != "device":
        raise complaint(f"is an abbreviation of {short}", "write flags in full")
    return flag


def refusal(flag: str) -> tuple[str, str] | None:
    """Why that flag, by its long name, can't be under ``args``, with a hint; None where it can."""
    if flag in _FIELDS:
        return "has a field of its own", f"write it as `{_FIELDS[flag]}:`, outside `args:`"
    return ("can't be set here", _OWNED[flag]) if flag in _OWNED else None


def contradictions(args: Mapping[str, Any]) -> Iterator[Problem]:
    """The flags under ``args`` that don't go together, whatever the engine."""
    given = {normal(name): name for name in args}
    yield from _repeats(args)
    for one, other in (("ssl-keyfile", "ssl-certfile"), ("ssl-certfile", "ssl-keyfile")):
        if one in given and other not in given:
            yield Problem(
                path=("args", given[one]), cause=f"needs {other}", hint=f"add `{other}:`", at_key=True
            )


def _repeats(args: Mapping[str, Any]) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for name in args:
        if (first := seen.setdefault(normal(name), name)) != name:
            cause = f"is the same flag as {first}"
            yield Problem(path=("args", name), cause=cause, hint="remove one", at_key=True)


def passed_variable(name: str) -> str:
    """The name of a variable under ``env``, refused where the manager sets it."""
    if name in _VARIABLES:
        raise complaint("can't be set here", _VARIABLES[name])
    return variable(name)
