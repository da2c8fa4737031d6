"""Broken manifests and command lines, made from good ones; the same for the same seed."""

import random
from collections.abc import Callable, Sequence

# What breaks parsers: YAML's own signs, other versions' types, extremes, secrets' places, other scripts.
VALUES = (
    "", "~", "null", "true", "no", "0", "-1", "1:30", "0777", "1e400", ".nan", ".inf", "1_000",
    "99999999999999999999", "[]", "{}", "[[[[]]]]", "{a: {b: {c: d}}}", "[1, two, null]", "{env: HOME}",
    "{env: NOT_SET}", "{env: 1}", "{env: NOT_SET, default: 5}", "${HOME}", "${NOT_SET}", "${NOT_SET:-5}",
    "${", "$${HOME}", "${HOME", '"${HOME}"', "generate", "none", "8000", "65536", "16K", "30GiB", "20m",
    "a" * 5000, "é☃\U0001f600", "'", '"', "|", ">-", "- x", "&a x", "*a", "!!python/object:os.system x",
    "!tag", "<<: *a", "? x", "@", "`", "%YAML 1.1", "\t", "\\", "../..", "/etc/passwd", "~/x", "--help",
    "0.0.0.0", "::", "llama", "2026-11-21", "0x10", "+1", "1.", "{", "}", "[", "]",
)  # fmt: skip
KEYS = (
    "name", "model", "port", "host", "api_key", "args", "env", "gpus", "engine", "readiness", "liveness",
    "restart", "stop", "replicas", "served_model_name", "aliases", "lora_modules", "chat_template",
    "max_model_len", "deployments", "defaults", "tool_call_parser", "count", "memory", "timeout", "version",
    "python", "launcher", "image", "nmae", "0", "null", "max-num-seqs", "compilation-config",
    "enforce-eager", "tensor_parallel_size", "dtype", "<<", "~",
)  # fmt: skip
CHARACTERS = "\0\x07\x1b\x7f\x85\u2028\ufeff\ud800 \t\n\r:#-?,[]{}&*!|>'\"%@`$\\é☃"


def manifest(rng: random.Random, corpus: Sequence[str]) -> bytes:
    """A manifest with a few things wrong, or none."""
    text = rng.choice(corpus)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 6))):
        text = rng.choice(_CHANGES)(rng, text)
    data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.05:
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.randbytes(rng.randrange(1, 4)) + data[at:]
    return data


def arguments(rng: random.Random, words: Sequence[str]) -> list[str]:
    """A command line of words that belong there, and of some that don't."""
    chosen = [rng.choice(words) for _ in range(rng.randrange(6))]
    if rng.random() < 0.3:
        chosen.insert(rng.randrange(len(chosen) + 1), rng.choice(VALUES).replace("\0", ""))
    return chosen


def _lines(change: Callable[[random.Random, list[str], int], None]) -> Callable[[random.Random, str], str]:
    def changed(rng: random.Random, text: str) -> str:
        lines = text.split("\n")
        change(rng, lines, rng.randrange(len(lines)))
        return "\n".join(lines)

    return changed


def _drop(rng: random.Random, lines: list[str], at: int) -> None:
    del lines[at]


def _repeat(rng: random.Random, lines: list[str], at: int) -> None:
    lines.insert(rng.randrange(len(lines) + 1), lines[at])


def _indent(rng: random.Random, lines: list[str], at: int) -> None:
    lines[at] = " " * rng.randrange(1, 5) + lines[at] if rng.random() < 0.7 else lines[at].lstrip()


def _value(rng: random.Random, lines: list[str], at: int) -> None:
    key, colon, _ = lines[at].partition(":")
    lines[at] = f"{key}{colon} {rng.choice(VALUES)}"


def _key(rng: random.Random, lines: list[str], at: int) -> None:
    _, colon, value = lines[at].partition(":")
    lines[at] = f"{rng.choice(KEYS)}{colon or ':'}{value}"


def _insert(rng: random.Random, lines: list[str], at: int) -> None:
    lines.insert(at, f"{'  ' * rng.randrange(3)}{rng.choice(KEYS)}: {rng.choice(VALUES)}")


def _document(rng: random.Random, lines: list[str], at: int) -> None:
    lines.insert(at, rng.choice(("---", "...", "--- x", "- ")))


def _character(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice(CHARACTERS) + text[at + rng.randrange(2) :]


def _cut(rng: random.Random, text: str) -> str:
    return text[: rng.randrange(len(text) + 1)]


_CHANGES = (
    *map(_lines, (_drop, _repeat, _indent, _value, _value, _value, _key, _key, _insert, _document)),
    _character,
    _cut,
)
