"""The kinds of values that a manifest has beside plain text and numbers, each with one parser."""

import ipaddress
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from vllm_manager.manifest.explain import complaint, describe

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_DURATION_LIMIT = 366 * 24 * 3600.0
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)")
_UNITS = {"B": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}
# vLLM 0.32's human_readable_int (utils/argparse_utils.py): lower case is decimal, upper case binary.
_TOKENS = re.compile(r"(\d+(?:\.\d+)?)([kmgt])|(\d+)([KMGT])?")
_TOKENS_LIMIT = 2**40
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"\d+(\.\d+)+([-+.]?[a-z0-9]+)*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.:-]*(/[\w.:-]+)?")


def wait(value: Any) -> float:
    """A duration that may be 0."""
    return 0.0 if value in (0, "0", "0s") and not isinstance(value, bool) else seconds(value)


def seconds(value: Any) -> float:
    """``90s``, ``20m``, ``1h30m`` or a number of seconds."""
    if isinstance(value, str) and value and (match := _DURATION.fullmatch(value)):
        hours, minutes, rest = (float(part or 0) for part in match.groups())
        value = hours * 3600 + minutes * 60 + rest
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise complaint(f"expected a duration, got {describe(value)}", "write it as 90s, 20m or 1h30m")
    if not 0 < value <= _DURATION_LIMIT:
        raise complaint("must be more than 0 and at most a year")
    return float(value)


def memory(value: Any) -> int:
    """``30GiB``, ``30GB`` or a number of bytes."""
    given = describe(value)
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        amount = float(match[1]) * _UNITS[match[2]]
        value = int(min(amount, 2.0**63))
    if isinstance(value, bool) or not isinstance(value, int):
        raise complaint(f"expected an amount of memory, got {given}", "write it as 30GiB or 30GB")
    if not 2**20 <= value < 2**63:
        raise complaint(f"{given} is no memory for a model", "write it with a unit, as in 30GiB")
    return value


def context_length(value: Any) -> int | Literal["auto"]:
    """A number of tokens as vLLM reads it: ``8192``, ``16K`` (16384), ``16k`` (16000), ``auto`` or -1."""
    given = describe(value)
    if value == -1 or value == "-1" or (isinstance(value, str) and value.lower() == "auto"):
        return "auto"
    if isinstance(value, str) and len(value) < 20 and (match := _TOKENS.fullmatch(value)):
        if match[1]:
            value = int(float(match[1]) * 1000 ** ("kmgt".index(match[2]) + 1))
        else:
            value = int(match[3]) * 1024 ** (" KMGT".index(match[4]) if match[4] else 0)
    if isinstance(value, bool) or not isinstance(value, int):
        raise complaint(f"expected a number of tokens, got {given}", "write 8192, 16K or auto")
    if not 1 <= value <= _TOKENS_LIMIT:
        raise complaint(f"{given} is no possible number of tokens", "write 8192, 16K or auto")
    return value


def deployment_name(value: str) -> str:
    """Short and safe as a file name, a process title and a word on the command line."""
    if not _NAME.fullmatch(value):
        raise complaint(
            f"{describe(value)} can't be a deployment's name",
            "at most 40 of a-z, 0-9, - _ and ., the first a letter or digit",
        )
    return value


def served_name(value: str) -> str:
    """A name that clients send as ``model``; vLLM takes nearly anything, its command line doesn't."""
    if not value or value.startswith("-") or not value.isprintable() or " " in value:
        raise complaint(f"{describe(value)} can't be a model's name", "no spaces, and no - at the start")
    return value


def adapter_name(value: str) -> str:
    """A LoRA adapter's name; vLLM 0.32 (LoRAParserAction) reads ``name=path``, and JSON if it has a comma."""
    served_name(value)
    if "=" in value or "," in value:
        raise complaint(f"{describe(value)} can't be an adapter's name", "no = and no comma")
    return value


def adapter(value: str) -> str:
    """A LoRA adapter's Hugging Face id or path."""
    if "," in value:
        raise complaint(
            f"{describe(value)} can't be an adapter's place", "no comma in it: rename the directory"
        )
    return model(value)


def names(value: Any) -> Any:
    """One name or a list of them, as a tuple."""
    if isinstance(value, str):
        return (value,)
    return as_tuple(value)


def model(value: str) -> str:
    """A Hugging Face id, a URL that vLLM can load from, or a local path."""
    if value.startswith("/"):
        return value
    if not value or value.startswith("-") or not value.isprintable() or " " in value:
        raise complaint(f"{describe(value)} is no Hugging Face id and no path")
    if "://" not in value and not _REPOSITORY.fullmatch(value):
        raise complaint(
            f"{describe(value)} is no Hugging Face id",
            "write owner/name; a path starts with ./, / or ~",
        )
    return value


def host(value: str) -> str:
    """An address or a host name to listen on."""
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        pass
    if not _HOST.fullmatch(value) or len(value) > 253:
        raise complaint(
            f"{describe(value)} is no address to listen on",
            "write only the address, such as 127.0.0.1, 0.0.0.0 or ::1; the port has its own field",
        )
    return value


def is_loopback(address: str) -> bool:
    """Whether only programs on this machine can reach it; False for names other than localhost."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address.lower() == "localhost"


def version(value: str) -> str:
    """A version of vLLM, such as ``0.32.0``."""
    if not _VERSION.fullmatch(value):
        raise complaint(f"{describe(value)} is no version", 'write a full version, such as "0.32.0"')
    return value


def variable(value: str) -> str:
    """The name of an environment variable."""
    if not _VARIABLE.fullmatch(value):
        raise complaint("is no name of an environment variable", "letters, digits and _, no digit first")
    return value


def not_empty(value: str) -> str:
    """Text that isn't empty."""
    if not value.strip():
        raise complaint("is empty", "give it a value, or leave the field out")
    return value


def as_tuple(value: Any) -> Any:
    """YAML and JSON have lists; the models are frozen and hold tuples."""
    return tuple(value) if isinstance(value, list) else value


_DURATION_SCHEMA = Annotated[str, Field(pattern=r"^(\d+(\.\d+)?h)?(\d+(\.\d+)?m)?(\d+(\.\d+)?s)?$")]

Seconds = Annotated[float, BeforeValidator(seconds, json_schema_input_type=float | _DURATION_SCHEMA)]
Wait = Annotated[float, BeforeValidator(wait, json_schema_input_type=float | _DURATION_SCHEMA)]
Bytes = Annotated[
    int,
    BeforeValidator(
        memory, json_schema_input_type=int | Annotated[str, Field(pattern=r"^\d+(\.\d+)?\s*([KMGT]i?B|B)$")]
    ),
]
ContextLength = Annotated[
    int | Literal["auto"], BeforeValidator(context_length, json_schema_input_type=int | str)
]
Text = Annotated[str, AfterValidator(not_empty)]
Names = Annotated[
    tuple[Annotated[str, AfterValidator(served_name)], ...],
    BeforeValidator(names, json_schema_input_type=str | list[str]),
]
