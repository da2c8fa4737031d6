"""From a deployment and its placement to the exact command and environment. Pure.

Flags go on the command line, the model first: options with several values (``--served-model-name a b``) would
swallow a model that follows them, and vLLM's own ``--config`` drops ``false`` (measured, 0.32).
"""

import json
import re
from collections.abc import Mapping
from pathlib import PurePath

from vllm_manager.flag_words import FlagIndex, words
from vllm_manager.manifest.model import Deployment
from vllm_manager.placement import utilization_of
from vllm_manager.types import Engine, EngineFlags, LaunchSpec, Placement

INHERITED = re.compile(
    r"""(?x)
    PATH | HOME | USER | LOGNAME | SHELL | LANG | LC_\w+ | TZ | LD_LIBRARY_PATH | CC | CXX
    | XDG_CACHE_HOME | XDG_CONFIG_HOME
    | (?i:https?_proxy | no_proxy | all_proxy) | SSL_CERT_(?:FILE|DIR) | REQUESTS_CA_BUNDLE | CURL_CA_BUNDLE
    | HF_\w+ | HUGGING_FACE_HUB_TOKEN | HUGGINGFACE_HUB_CACHE | TRANSFORMERS_\w+ | MODELSCOPE_\w+
    | CUDA_HOME | CUDA_PATH | CUDA_CACHE_PATH | NCCL_\w+ | GLOO_\w+ | OMP_\w+ | MKL_\w+
    | TORCH_\w+ | TORCHINDUCTOR_\w+ | TRITON_\w+ | PYTORCH_\w+ | VLLM_\w+
    """
)
"""Variables that an instance takes over from whoever brings it up; the rest is the manifest's ``env``."""

NOT_INHERITED = re.compile(
    r"VLLM_(?:PORT|HOST_IP|API_KEY|RPC_BASE_PATH|PROCESS_NAME_PREFIX|MANAGER_\w+|SERVER_DEV_MODE)"
)
"""``VLLM_PORT`` and ``VLLM_HOST_IP`` are internal addresses (a Kubernetes service named vllm sets one); the
development mode opens endpoints that need no key; the others are set per instance."""

DEFAULTS = {
    # uvicorn's 5 s close pooled connections under clients' hands.
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "300",
    "VLLM_NO_USAGE_STATS": "1",
    # The log is a file: no colour, and each line at once.
    "VLLM_LOGGING_COLOR": "0",
    "NO_COLOR": "1",
    "PYTHONUNBUFFERED": "1",
}


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of a person's environment that an instance gets."""
    return {
        name: value
        for name, value in environment.items()
        if INHERITED.fullmatch(name) and not NOT_INHERITED.fullmatch(name)
    }


def arguments(
    deployment: Deployment, placement: Placement, port: int, flags: EngineFlags | None = None
) -> tuple[str, ...]:
    """The arguments after ``vllm``, without secrets (the key goes into the environment).

    Args:
        deployment: What is to be served.
        placement: On which GPUs.
        port: Where it listens.
        flags: What the engine understands; without them, ``args`` are written as most flags are.
    """
    index = FlagIndex(flags) if flags else None
    result = ["serve", deployment.model, "--host", deployment.host, "--port", str(port)]
    result += ["--served-model-name", *deployment.names]
    sizes = {
        "tensor-parallel-size": deployment.tensor_parallel_size,
        "pipeline-parallel-size": deployment.pipeline_parallel_size,
        "data-parallel-size": deployment.data_parallel_size,
    }
    for name, size in sizes.items():
        if size != 1:
            result += words(name, size)
    if placement.gpus:
        share = min(utilization_of(gpu) for gpu in placement.gpus)
        result += ["--gpu-memory-utilization", f"{share:g}"]
    fields = {
        "revision": deployment.revision,
        "runner": deployment.runner,
        "convert": deployment.convert,
        "dtype": deployment.dtype,
        "quantization": deployment.quantization,
        "max-model-len": deployment.max_model_len,
        "chat-template": deployment.chat_template,
        "tool-call-parser": deployment.tool_call_parser,
        "reasoning-parser": deployment.reasoning_parser,
    }
    for name, value in fields.items():
        result += words(name, value)
    if deployment.lora_modules:
        modules = [_adapter(name, path) for name, path in deployment.lora_modules.items()]
        result += ["--enable-lora", "--lora-modules", *modules]
    if deployment.enable_auto_tool_choice:
        result.append("--enable-auto-tool-choice")
    for name, given in deployment.args.items():
        result += words(name, given, index.find(name) if index else None)
    return tuple(result)


def _adapter(name: str, path: str) -> str:
    # vLLM takes NAME=PATH where there is no comma, and else JSON (LoRAParserAction in cli_args.py).
    if "=" in name or "," in name + path:
        return json.dumps({"name": name, "path": path})
    return f"{name}={path}"


def environment(
    deployment: Deployment,
    *,
    engine: Engine,
    placement: Placement,
    api_key: str | None,
    base: Mapping[str, str],
    tmp: str,
    title: str,
) -> dict[str, str]:
    """The instance's whole environment.

    Args:
        deployment: Its ``env`` wins over ``base``.
        engine: Its directory comes first on PATH (ninja and the like are there).
        placement: Becomes ``CUDA_VISIBLE_DEVICES``; UUIDs there crash several vLLM versions, so indices in
            NVML's order.
        api_key: Goes here and not on the command line, where ``ps`` shows it.
        base: What ``inherited`` kept.
        tmp: Its own TMPDIR, also for vLLM's unix sockets.
        title: Begins the titles of its processes.
    """
    result = dict(DEFAULTS)
    result.update(base)
    result.update(deployment.env)
    # By default beside other temporary files, which are removed with the instance: each start would compile
    # the same again (17 s with vLLM 0.30 on a CPU).
    result.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{_vllm_cache(result)}/torchinductor")
    result["PATH"] = (
        f"{PurePath(engine.executable).parent}:{result.get('PATH', '/usr/local/bin:/usr/bin:/bin')}"
    )
    if placement.gpus:
        result["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        result["CUDA_VISIBLE_DEVICES"] = ",".join(str(gpu.index) for gpu in placement.gpus)
    else:
        result["CUDA_VISIBLE_DEVICES"] = ""
    result["TMPDIR"] = result["VLLM_RPC_BASE_PATH"] = tmp
    result["VLLM_PROCESS_NAME_PREFIX"] = title
    if api_key is not None:
        result["VLLM_API_KEY"] = api_key
    return result


def _vllm_cache(environment: Mapping[str, str]) -> str:
    # As vllm/envs.py has it.
    home = environment.get("HOME", "/")
    default = f"{environment.get('XDG_CACHE_HOME') or f'{home}/.cache'}/vllm"
    return environment.get("VLLM_CACHE_ROOT") or default


def launch_spec(
    deployment: Deployment,
    *,
    engine: Engine,
    placement: Placement,
    api_key: str | None,
    base: Mapping[str, str],
    instance: str,
    title: str,
    port: int,
    cwd: str,
    tmp: str,
    log: str,
    flags: EngineFlags | None = None,
) -> LaunchSpec:
    """Everything that a launcher needs; ``flags`` as for ``arguments``."""
    return LaunchSpec(
        instance=instance,
        argv=(engine.executable, *arguments(deployment, placement, port, flags)),
        env=environment(
            deployment, engine=engine, placement=placement, api_key=api_key, base=base, tmp=tmp, title=title
        ),
        cwd=cwd,
        tmp=tmp,
        log=log,
        host=deployment.host,
        port=port,
    )


def notes(deployment: Deployment) -> tuple[str, ...]:
    """What a user should know about a deployment before using it."""
    found = []
    if {name.replace("_", "-"): value for name, value in deployment.args.items()}.get(
        "load-format"
    ) == "dummy":
        found.append("its weights are random (load-format: dummy): it answers, but talks gibberish")
    return tuple(found)
