"""A deployment's flags against those of the engine that will run it. Pure.

What passes here, vLLM's own command line takes; whether the values go with the model is vLLM's to say.
"""

import difflib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vllm_manager.flag_words import FlagIndex, Spelled, as_text
from vllm_manager.manifest.explain import Problem, describe
from vllm_manager.manifest.flags import FLAG_OF, normal, refusal
from vllm_manager.manifest.model import Deployment
from vllm_manager.near import nearest
from vllm_manager.types import EngineFlags, Flag

# What became of flags that vLLM had once. Asked only where the engine doesn't have them.
_GONE = {
    "task": "use the field `runner: pooling`, and `convert: embed` or classify where the model generates",
    "disable-log-requests": "remove it: requests are logged with `enable-log-requests: true` only",
    "swap-space": "remove it: this vLLM doesn't swap",
    "device": "remove it: the engine's build decides; `gpus: none` is for the CPU",
    "guided-decoding-backend": "write `structured-outputs-config.backend:`",
    "enable-reasoning": "remove it: the field `reasoning_parser` is enough",
    "num-scheduler-steps": "remove it: this vLLM has no multi-step scheduling",
    "rope-scaling": "write it under `hf-overrides:`, as the model's config.json would have it",
    "rope-theta": "write it under `hf-overrides:`, as the model's config.json would have it",
    "max-seq-len-to-capture": "write `max-cudagraph-capture-size:`",
    "cuda-graph-sizes": "write `cudagraph-capture-sizes:`",
    "tokenizer-pool-size": "remove it",
    "use-v2-block-manager": "remove it",
    "worker-use-ray": "write `distributed-executor-backend: ray`",
    "speculative-model": "write `speculative-config: {model: …, num_speculative_tokens: …}`",
    "num-speculative-tokens": "write `speculative-config: {model: …, num_speculative_tokens: …}`",
    "override-pooler-config": "write `pooler-config:`",
}

# Fields that reach vLLM otherwise than by their flag.
_NO_FLAG = frozenset({"model", "api_key", "gpus"})
_CHECKED_FIELDS = ("runner", "convert", "dtype", "quantization", "max_model_len")

_TYPO = 0.8  # difflib's ratio; fp8 and my_fp8 have 0.67, dummy and dumy 0.89
_WHOLE = re.compile(r"\s*[-+]?\d+\s*")
_TOKENS = re.compile(r"\s*(\d+(\.\d+)?[kmgt]|\d+[KMGT]?)\s*")
# vLLM takes 80m or 4K for a number in its JSON values (engine/arg_utils.py,
# _expand_json_human_readable_numbers); quoted text is left alone.
_QUOTED = re.compile(r'("(?:[^"\\]|\\.)*")')
_SUFFIXED = re.compile(r"\b(\d+(?:\.\d+)?)[kKmMgGtT]\b")

_Flaw = tuple[str, str | None]


def problems(deployment: Deployment, flags: EngineFlags) -> list[Problem]:
    """What that engine wouldn't take, located as in the manifest."""
    index = FlagIndex(flags)
    return [*_of_fields(deployment, flags, index), *_of_args(deployment.args, flags, index)]


# --- fields --------------------------------------------------------------------------------------------


def _of_fields(deployment: Deployment, flags: EngineFlags, index: FlagIndex) -> Iterator[Problem]:
    for field, name in FLAG_OF.items():
        value = getattr(deployment, field)
        if field in _NO_FLAG or value == type(deployment).model_fields[field].default:
            continue
        spelled = index.find(name)
        if spelled is None:
            cause = f"vLLM {flags.version} has no --{name}"
            yield Problem(path=(field,), cause=cause, hint="remove it, or use another version", at_key=True)
        elif field in _CHECKED_FIELDS and (flaw := _flaw(spelled.flag, value) or _typo(name, value, flags)):
            yield Problem(path=(field,), cause=flaw[0], hint=flaw[1])
    args = {normal(name) for name in deployment.args}
    for kind, names in (("tool", flags.tool_parsers), ("reasoning", flags.reasoning_parsers)):
        field = "tool_call_parser" if kind == "tool" else "reasoning_parser"
        chosen = getattr(deployment, field)
        if chosen is None or names is None or chosen in names or f"{kind}-parser-plugin" in args:
            continue
        cause = f"vLLM {flags.version} has no {kind} parser {describe(chosen)}"
        yield Problem(path=(field,), cause=cause, hint=_alternatives(chosen, names))


# --- args ----------------------------------------------------------------------------------------------


def _of_args(args: Mapping[str, Any], flags: EngineFlags, index: FlagIndex) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for name, value in args.items():
        path = ("args", name)
        spelled = index.find(name)
        if spelled is None:
            cause, hint = _unknown(name, flags, index)
            yield Problem(path=path, cause=cause, hint=hint, at_key=True)
        elif refused := refusal(spelled.flag.name):  # an alias that only the engine knows
            cause = f"is vLLM's --{spelled.flag.name}, which {refused[0]}"
            yield Problem(path=path, cause=cause, hint=refused[1], at_key=True)
        elif earlier := _taken(spelled, name, seen):
            # vLLM takes the last one, a dotted key after a whole value too.
            cause = f"sets the same flag as {earlier}"
            yield Problem(path=path, cause=cause, hint="write both as one", at_key=True)
        elif flaw := _keyed_flaw(spelled, value) if spelled.keys else _named_flaw(spelled, name, value):
            yield Problem(path=path, cause=flaw[0], hint=flaw[1], at_key=value is None)
        elif not spelled.keys and (flaw := _typo(spelled.flag.name, value, flags)):
            yield Problem(path=path, cause=flaw[0], hint=flaw[1])


def _taken(spelled: Spelled, name: str, seen: dict[str, str]) -> str | None:
    flag = spelled.flag.name
    places = [flag, f"{flag}.{spelled.keys}"] if spelled.keys else [flag, f"{flag}."]
    earlier = next((seen[place] for place in places if place in seen), None)
    seen[places[1] if spelled.keys else flag] = name
    if spelled.keys:
        seen.setdefault(f"{flag}.", name)
    return earlier


def _unknown(name: str, flags: EngineFlags, index: FlagIndex) -> _Flaw:
    head = normal(name).partition(".")[0]
    positive = head.removeprefix("no-")
    if head != positive and (spelled := index.find(positive)):
        if spelled.flag.kind == "bool":
            return f"vLLM {flags.version} can't negate --{positive}", "remove it: it is off unless it is set"
        return f"vLLM {flags.version} has no --{head}", f"--{positive} takes a value"
    cause = f"vLLM {flags.version} has no flag --{head}"
    if advice := _GONE.get(positive):
        return cause, advice
    longer = sorted(known for known in index.names if known.startswith(positive))
    near = longer[0] if len(longer) == 1 else nearest(positive, index.names)
    if near is None:
        return cause, "its flags are listed by `vllm serve --help=all`"
    return cause, f"did you mean {near}?"


def _keyed_flaw(spelled: Spelled, value: Any) -> _Flaw | None:
    if spelled.flag.kind not in ("json", "other"):
        return f"--{spelled.flag.name} takes one value, no keys", f"write `{spelled.flag.name}:`"
    return _nothing() if value is None else None


def _named_flaw(spelled: Spelled, name: str, value: Any) -> _Flaw | None:
    if spelled.negated and value is False:
        return "negates twice", f"write `{spelled.flag.name}: true`"
    if spelled.flag.kind == "bool" and value is False and not spelled.flag.negatable:
        return f"--{name} can't be negated", "remove it: it is off unless it is set"
    return _flaw(spelled.flag, value)


def _flaw(flag: Flag, value: Any) -> _Flaw | None:
    """Why that flag doesn't take the value, or None."""
    if value is None:
        return _nothing()
    if flag.kind == "bool":
        retyped = isinstance(value, str) and value.lower() in ("true", "false")
        hint = "write it without quotes" if retyped else None
        return None if isinstance(value, bool) else (f"expected true or false, got {describe(value)}", hint)
    if flag.kind == "json":
        return _json_flaw(value)
    if not isinstance(value, list | tuple):
        return _single_flaw(flag, value)
    if flag.kind == "other" and not flag.many:
        return None
    if not (flag.many or flag.repeats):
        return "takes one value, got a list", "write one value"
    if not value:
        return "is an empty list", "name at least one, or remove it"
    for item in value:
        if flaw := _single_flaw(flag, item):
            return flaw
        text = as_text(item)
        if not flag.repeats and text.startswith("-") and not _WHOLE.fullmatch(text):
            return f"{describe(item)} in a list would be taken for a flag", "a dash can't come first there"
    return None


def _single_flaw(flag: Flag, value: Any) -> _Flaw | None:
    text = as_text(value)
    if value is None:
        return _nothing()
    if flag.kind == "other":
        if flag.choices and text.lower().replace("-", "_") not in flag.choices:
            return _no_choice(text, value, flag.choices)
        return None
    if isinstance(value, bool | Mapping | Sequence) and not isinstance(value, str):
        hint = f'quote it: "{text}"' if isinstance(value, bool) and flag.kind == "str" else None
        return f"expected {_NAMES[flag.kind]}, got {describe(value)}", hint
    if not _READS[flag.kind](text):
        return f"expected {_NAMES[flag.kind]}, got {describe(value)}", _retype(flag, text)
    if flag.choices and text not in flag.choices:
        return _no_choice(text, value, flag.choices)
    return None


def _typo(name: str, value: Any, flags: EngineFlags) -> _Flaw | None:
    # A value that vLLM doesn't have may be a plugin's; one that is nearly one of its own is taken for a typo.
    known = flags.known_values.get(name, ())
    # vLLM reads load formats in any case (config/load.py), quantizations as they are.
    text = value.lower() if isinstance(value, str) and name == "load-format" else value
    if not isinstance(text, str) or text in known:
        return None
    near = difflib.get_close_matches(text.lower(), known, n=1, cutoff=_TYPO)
    return (
        (f"vLLM {flags.version} has no {name} {describe(value)}", f"did you mean {near[0]}?")
        if near
        else None
    )


def _json_flaw(value: Any) -> _Flaw | None:
    if isinstance(value, str):
        parts = _QUOTED.split(value)
        parts[::2] = [_SUFFIXED.sub(r"\1", part) for part in parts[::2]]
        try:
            json.loads("".join(parts))
        except (ValueError, RecursionError) as error:
            return f"is no JSON: {error}", "write it as a mapping or a list, without quotes around it"
    elif not isinstance(value, Mapping | list | tuple):
        return f"expected a mapping or a list, got {describe(value)}", None
    return None


def _is_float(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "tokens": "a number, such as 8192 or 16K",
    "tokens-or-auto": "a number of tokens, such as 8192, 16K or auto",
}
_READS: Mapping[str, Callable[[str], bool]] = {
    "int": lambda text: bool(_WHOLE.fullmatch(text)),
    "float": _is_float,
    "str": lambda text: True,
    "tokens": lambda text: bool(_TOKENS.fullmatch(text)),
    "tokens-or-auto": lambda text: bool(_TOKENS.fullmatch(text)) or text.strip().lower() in ("-1", "auto"),
}


def _retype(flag: Flag, text: str) -> str | None:
    if flag.many and "," in text:
        return "write a list: [" + ", ".join(part.strip() for part in text.split(",")) + "]"
    if flag.kind == "int" and _is_float(text) and float(text).is_integer():
        return f"write {int(float(text))}"
    return None


def _no_choice(text: str, value: Any, choices: Sequence[str]) -> _Flaw:
    return f"can't be {describe(value)}", _alternatives(text, choices)


def _alternatives(name: str, known: Sequence[str]) -> str:
    numbers = all(_is_float(each) for each in known)
    near = None if numbers else nearest(name, known)
    others = f"there is {', '.join(known)}"
    return (
        others
        if near is None
        else f"did you mean {near}?"
        if len(known) > 12
        else f"did you mean {near}? {others}"
    )


def _nothing() -> _Flaw:
    return "has no value", "give it one, or remove it"
