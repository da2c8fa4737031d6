"""The resolved manifest of one deployment: what `up` sends, what is stored, what the planners read.

The models are pure: paths are made absolute and files looked at in ``load``. Rules between fields are
validators of the later field, so that all problems of a manifest are found in one pass; the order of the
fields matters for them.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from vllm_manager.errors import ManifestErrors, ManifestFieldError
from vllm_manager.manifest import flags, values
from vllm_manager.manifest.explain import complaint, describe, problems
from vllm_manager.manifest.source import dotted
from vllm_manager.types import GpuRequest

# vLLM's own default of --gpu-memory-utilization (0.32).
DEFAULT_UTILIZATION = 0.92

WATCHING = frozenset({"expose_without_key", "readiness", "liveness", "restart", "stop"})
"""Fields that decide how an instance is watched, not how it runs: changing them needs no new instance."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class EnvRef(_Model):
    """A key in an environment variable of whoever runs `up`."""

    env: Annotated[str, AfterValidator(values.variable)] = Field(
        description="Name of the environment variable that holds the key."
    )


class FileRef(_Model):
    """A key in a file."""

    file: values.Text = Field(description="File that holds the key alone; relative to the manifest.")


class GpuSpec(_Model):
    """Which GPUs a deployment needs, and how much of each."""

    count: int | None = Field(
        default=None,
        ge=0,
        description="How many GPUs; follows from the parallel sizes when left out. 0 runs on the CPU.",
    )
    memory: values.Bytes | None = Field(
        default=None,
        description="Memory to take on each GPU, such as 30GiB, instead of gpu_memory_utilization.",
    )
    indices: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(values.as_tuple)] = Field(
        default=(), description="Use only these GPUs, by index as nvidia-smi shows it."
    )
    uuids: Annotated[tuple[values.Text, ...], BeforeValidator(values.as_tuple)] = Field(
        default=(), description="Use only these GPUs, by UUID."
    )
    name: values.Text | None = Field(
        default=None, description="Use only GPUs whose name matches this shell pattern, such as *A100*."
    )

    @field_validator("indices", "uuids")
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) < len(value):
            raise complaint("names a GPU twice")
        return value

    @field_validator("uuids")
    @classmethod
    def _one_way(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if value and info.data.get("indices"):
            raise complaint("indices and uuids exclude each other", "keep the UUIDs: indices may change")
        return value


class EngineSpec(_Model):
    """Which vLLM runs it; by default the one on PATH for GPUs, else one that is installed once."""

    launcher: Literal["process", "docker"] = Field(
        default="process",
        description="How it is started: as a process of this machine; docker is for a later version.",
    )
    image: values.Text | None = Field(
        default=None,
        validate_default=True,
        description="The container image, such as vllm/vllm-openai:v0.32.0; with launcher: docker only.",
    )
    version: Annotated[str, AfterValidator(values.version)] | None = Field(
        default=None, description='Version of vLLM, such as "0.32.0"; installed once, in its own environment.'
    )
    python: values.Text | None = Field(
        default=None,
        description="An existing environment with vLLM (its directory or python), relative to the manifest.",
    )

    @field_validator("image")
    @classmethod
    def _for_docker(cls, value: str | None, info: ValidationInfo) -> str | None:
        launcher = info.data.get("launcher")
        if value is None and launcher == "docker":
            raise complaint("is missing: a container needs an image", "such as vllm/vllm-openai:v0.32.0")
        if value is not None and launcher == "process":
            raise complaint("is for containers", "add `launcher: docker`, or remove it")
        return value

    @field_validator("version", "python")
    @classmethod
    def _one_way(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return value
        if info.data.get("launcher") == "docker":
            raise complaint("is for processes: an image brings its own vLLM", "remove it")
        if info.field_name == "python" and info.data.get("version") is not None:
            raise complaint("version and python exclude each other", "remove one of them")
        return value


class ReadinessSpec(_Model):
    """When a start counts as done, and when as failed."""

    timeout: values.Seconds = Field(
        default=1200.0, description="Longest start, once the weights are on disk, as in 20m."
    )
    stall: values.Seconds = Field(default=300.0, description="Longest time without any progress, as in 5m.")
    warm_up: bool = Field(
        default=True,
        description="Ready means that the model produced a token; false is content with an HTTP 200.",
    )


class LivenessSpec(_Model):
    """How a ready instance that hangs is found: its counters stand still, and two requests get no token."""

    enabled: bool = Field(default=True, description="Whether a hung instance is looked for.")
    after: values.Seconds = Field(
        default=60.0,
        description="Time without progress after which a 1-token request is sent, as in 60s.",
    )
    timeout: values.Seconds = Field(
        default=30.0, description="Longest answer to it; after two failures it is restarted, as in 30s."
    )


class StopSpec(_Model):
    """How an instance is ended."""

    drain: values.Wait = Field(
        default=30.0, description="Time that running requests have to finish, as in 30s; 0 doesn't wait."
    )
    grace: values.Seconds = Field(default=30.0, description="Time between SIGTERM and SIGKILL, as in 30s.")


class RestartSpec(_Model):
    """What happens when an instance ends that nobody stopped."""

    policy: Literal["on-failure", "never"] = Field(
        default="on-failure", description="Whether it is started again."
    )
    backoff_initial: values.Seconds = Field(
        default=1.0, description="Wait before the first restart, as in 1s."
    )
    backoff_max: values.Seconds = Field(
        default=60.0,
        validate_default=True,
        description="Longest wait; each is twice the one before, as in 60s.",
    )
    max_failed_starts: int = Field(
        default=5, ge=1, description="Give up after so many starts in a row that didn't become ready."
    )
    max_restarts: int = Field(default=10, ge=1, description="Give up after so many restarts ...")
    within: values.Seconds = Field(default=1800.0, description="... within this time, as in 30m.")

    @field_validator("backoff_max")
    @classmethod
    def _not_shorter(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("backoff_initial", 0):
            raise complaint("is shorter than backoff_initial")
        return value


def _key_form(value: Any) -> str | None:
    if value is None:
        return "none"
    if isinstance(value, str):
        return "word"
    if isinstance(value, FileRef) or (isinstance(value, Mapping) and "file" in value):
        return "file"
    return "env" if isinstance(value, (EnvRef, Mapping)) else None


def _one_reference(value: Any) -> Any:
    if isinstance(value, Mapping) and {"env", "file"} <= set(value):
        raise complaint("env and file exclude each other", "remove one of them")
    return value


ApiKey = Annotated[
    Annotated[
        Annotated[Literal["generate", "given"], Tag("word")]
        | Annotated[EnvRef, Tag("env")]
        | Annotated[FileRef, Tag("file")]
        | Annotated[None, Tag("none")],
        Discriminator(_key_form),
    ],
    BeforeValidator(_one_reference, json_schema_input_type=str | EnvRef | FileRef | None),
]


def _gpus(value: Any) -> Any:
    if isinstance(value, str):
        if value != "none":
            hint = "write none, or a mapping with fields such as count and memory"
            raise complaint(f"expected none or a mapping, got {describe(value)}", hint)
        return GpuSpec(count=0)
    return value


class Deployment(_Model):
    """A model that is to be served by vLLM under a name."""

    name: Annotated[str, AfterValidator(values.deployment_name)] = Field(
        description="The name for ps, logs, down and registry.client()."
    )
    model: Annotated[str, AfterValidator(values.model)] = Field(
        description="A Hugging Face id, or a path (starting with ./, / or ~) relative to the manifest."
    )
    revision: values.Text | None = Field(
        default=None, description="A branch, tag or commit of the Hugging Face repository."
    )
    served_model_name: values.Names = Field(
        default=(),
        validate_default=True,
        description="Names that clients send as `model`, a text or a list; default: the name and the HF id.",
    )
    aliases: values.Names = Field(default=(), description="Further names, which vLLM serves too.")
    api_key: ApiKey = Field(
        default=None,
        description=(
            "The key that clients must send: generate, {env: NAME}, {file: path}, a literal, or null."
        ),
    )
    expose_without_key: bool = Field(
        default=False, description="Allow a host that others can reach without an api_key: anybody may ask."
    )
    host: Annotated[str, AfterValidator(values.host)] = Field(
        default="127.0.0.1", description="The address to listen on."
    )
    port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="The TCP port; left out: a free one, kept across restarts.",
    )
    tool_call_parser: values.Text | None = Field(
        default=None, description="vLLM's parser for the model's tool calls, such as llama3_json or hermes."
    )
    enable_auto_tool_choice: bool = Field(
        default=False, description="Let the model decide when to call tools; needs tool_call_parser."
    )
    reasoning_parser: values.Text | None = Field(
        default=None, description="vLLM's parser for the model's reasoning, such as deepseek_r1 or qwen3."
    )
    chat_template: values.Text | None = Field(
        default=None, description="A Jinja file, relative to the manifest, or the template itself."
    )
    runner: Literal["auto", "generate", "pooling", "draft"] | None = Field(
        default=None, description="What vLLM runs it as; pooling is for embedding and rerank models."
    )
    convert: Literal["auto", "none", "embed", "classify"] | None = Field(
        default=None, description="What vLLM turns a generating model into, with runner: pooling."
    )
    dtype: values.Text | None = Field(
        default=None, description="The weights' type while computing, such as bfloat16; default: the model's."
    )
    quantization: values.Text | None = Field(
        default=None, description="The quantization method, such as fp8 or awq; default: as the model says."
    )
    lora_modules: dict[
        Annotated[str, AfterValidator(values.adapter_name)], Annotated[str, AfterValidator(values.adapter)]
    ] = Field(
        default={},
        description="LoRA adapters, as {name: path or Hugging Face id}; clients send the name as `model`.",
    )
    max_model_len: values.ContextLength | None = Field(
        default=None, description="The longest context in tokens: 8192, 16K (16384), 16k (16000) or auto."
    )
    tensor_parallel_size: int = Field(default=1, ge=1, description="GPUs that each layer is split over.")
    pipeline_parallel_size: int = Field(
        default=1, ge=1, description="Groups of GPUs that layers are spread over."
    )
    data_parallel_size: int = Field(default=1, ge=1, description="Copies of the model behind one port.")
    gpu_memory_utilization: float | None = Field(
        default=None, gt=0, le=1, description="Share of each GPU's memory to take; vLLM's default is 0.92."
    )
    gpus: Annotated[GpuSpec, BeforeValidator(_gpus, json_schema_input_type=Literal["none"] | GpuSpec)] = (
        Field(
            default=GpuSpec(),
            validate_default=True,
            description="The GPUs to use; none runs on the CPU.",
        )
    )
    args: dict[Annotated[str, AfterValidator(flags.passed_flag)], JsonValue] = Field(
        default={},
        description="Every other flag of vLLM, as in {max-num-seqs: 256}: true sets one, false negates it.",
    )
    env: dict[Annotated[str, AfterValidator(flags.passed_variable)], str] = Field(
        default={}, description="Environment variables for vLLM; numbers and booleans in quotes."
    )
    engine: EngineSpec = Field(default=EngineSpec(), description="Which vLLM runs it.")
    readiness: ReadinessSpec = Field(default=ReadinessSpec(), description="When a start is done, or failed.")
    liveness: LivenessSpec = Field(
        default=LivenessSpec(), description="When a ready instance counts as hung."
    )
    stop: StopSpec = Field(default=StopSpec(), description="How it is ended.")
    replicas: int = Field(
        default=1,
        ge=1,
        le=64,
        description="How many instances of it run side by side; this version runs one, no more.",
    )
    restart: RestartSpec = Field(default=RestartSpec(), description="What happens after a crash.")

    @field_validator("served_model_name", mode="before")
    @classmethod
    def _some_name(cls, value: Any) -> Any:
        if value == []:  # not the default, which is an empty tuple
            raise complaint("is an empty list", "name at least one, or leave the field out")
        return value

    @field_validator("served_model_name")
    @classmethod
    def _default_names(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if value or "name" not in info.data or "model" not in info.data:
            return value
        name, model = info.data["name"], info.data["model"]
        return (name,) if model.startswith("/") else (name, model)

    @field_validator("host")
    @classmethod
    def _guarded(cls, value: str, info: ValidationInfo) -> str:
        guarded = info.data.get("api_key", "unknown") is not None or info.data.get("expose_without_key", True)
        if not guarded and not values.is_loopback(value):
            raise complaint(
                f"{value} can be reached from outside, and without an api_key vLLM would answer anybody",
                "add `api_key: generate`, or `expose_without_key: true` if that is meant",
            )
        return value

    @field_validator("enable_auto_tool_choice")
    @classmethod
    def _has_parser(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("tool_call_parser", "unknown") is None:
            raise complaint(
                "needs a tool_call_parser: vLLM won't start without one",
                "add `tool_call_parser:` with the parser of this model, such as llama3_json or hermes",
            )
        return value

    @field_validator("lora_modules")
    @classmethod
    def _names_of_their_own(cls, value: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        own = {*info.data.get("served_model_name", ()), *info.data.get("aliases", ())}
        for name in value:
            if name in own:
                raise complaint(
                    "is a name of the model itself already",
                    "clients choose the adapter by its name: give it another one",
                    at=(name,),
                    at_key=True,
                )
        return value

    @field_validator("replicas")
    @classmethod
    def _ports_of_their_own(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and info.data.get("port") is not None:
            raise complaint(
                "several instances can't share the port that is given",
                "leave `port` out: each instance gets its own",
            )
        return value

    @field_validator("gpus")
    @classmethod
    def _fits(cls, value: GpuSpec, info: ValidationInfo) -> GpuSpec:
        if value.memory is not None and info.data.get("gpu_memory_utilization") is not None:
            raise complaint(
                "memory and gpu_memory_utilization exclude each other", "remove one of them", at=("memory",)
            )
        sizes = [f"{kind}_parallel_size" for kind in ("tensor", "pipeline", "data")]
        if value.count == 0 or not info.data.keys() >= set(sizes):
            return value
        needed = math.prod(info.data[size] for size in sizes)
        if value.count is not None and value.count != needed:
            raise complaint(
                f"is {value.count}, but the tensor, pipeline and data parallel sizes ask for {needed}",
                "leave it out, or set tensor_parallel_size to it",
                at=("count",),
            )
        for field, chosen in (("indices", value.indices), ("uuids", value.uuids)):
            if chosen and len(chosen) < needed:
                raise complaint(f"names {len(chosen)} of {needed} GPUs that are needed", at=(field,))
        return value.model_copy(update={"count": needed})

    @property
    def names(self) -> tuple[str, ...]:
        """All names that it answers to, each once; the first is the one to send."""
        return tuple(dict.fromkeys(self.served_model_name + self.aliases))

    @property
    def certificate(self) -> str | None:
        """The file of the TLS certificate that it serves with, or None where it speaks plain HTTP."""
        file = self.args.get("ssl-certfile")
        return str(file) if file else None

    @property
    def request(self) -> GpuRequest:
        """What it asks of the GPUs."""
        return GpuRequest(
            count=self.gpus.count or 0,
            memory=self.gpus.memory,
            utilization=DEFAULT_UTILIZATION
            if self.gpu_memory_utilization is None
            else self.gpu_memory_utilization,
            indices=self.gpus.indices,
            uuids=self.gpus.uuids,
            name=self.gpus.name,
        )

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change when an instance would have to be replaced.

        Not covered: the value of a key, and what is in files. Fields at their default don't count, so that
        a version with new fields doesn't replace every instance.
        """
        values = self.model_dump(mode="json", exclude_defaults=True, exclude=set(WATCHING))
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def changes(self, other: "Deployment") -> tuple[str, ...]:
        """The names of the fields that differ, in the manifest's order."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) != getattr(other, name))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values, without a key's value; ``from_json`` reads them."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The deployment that ``to_json`` wrote.

        Raises:
            ManifestError: ``data`` describes none.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            errors = tuple(
                ManifestFieldError(cause=p.cause, hint=p.hint, field=dotted(p.path))
                for p in problems(error, cls, data)
            )
            raise (
                errors[0]
                if len(errors) == 1
                else ManifestErrors(cause=f"{len(errors)} fields are wrong", errors=errors)
            ) from None
