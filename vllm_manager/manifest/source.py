"""The text of one manifest, and errors that point into it."""

import difflib
import os
import re
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from vllm_manager.errors import ManifestError, ManifestUnreadable
from vllm_manager.redact import MASK

E = TypeVar("E", bound=ManifestError)

FieldPath = tuple[str | int, ...]

SIZE_LIMIT = 1024 * 1024  # bytes; a manifest has some 1 KiB
_SHOWN = 160  # characters of a source line that an error quotes

_BREAK = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")  # as YAML 1.1 counts lines
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# Whatever follows such a key, on its line or on the next, isn't quoted in errors.
_SECRET = re.compile(r"(?i)((?:key|token|secret|password)[\"']?\s*:\s*)(.*)")
_CONTINUES = re.compile(r"\s*(?:[|>][-+0-9]*)?\s*(?:#.*)?")  # the value is on the next line


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A manifest's text.

    Attributes:
        path: As the user gave it.
        text: Never shown as it is: it may hold a literal key.
    """

    path: str
    text: str = field(repr=False)

    def error(
        self,
        kind: type[E],
        cause: str,
        *,
        line: int,
        column: int,
        field: str | None = None,
        hint: str | None = None,
    ) -> E:
        """An error of that kind at a place (both 1-based); the quoted line shows no secret."""
        return kind(
            cause=cause,
            hint=hint,
            path=self.path,
            line=line,
            column=column,
            field=field,
            source=self._quote(line, field),
        )

    def line(self, number: int) -> str:
        """The text of that line (1-based), secrets included; empty where there is none."""
        lines = _BREAK.split(self.text)
        return lines[number - 1] if 1 <= number <= len(lines) else ""

    def _quote(self, line: int, field: str | None) -> str | None:
        shown, masked = _SECRET.subn(rf"\g<1>{MASK}", self.line(line))
        above = _SECRET.search(self.line(line - 1))
        if not masked and (field == "api_key" or (above and _CONTINUES.fullmatch(above[2]))):
            return None  # a secret on a line of its own
        return shown if len(shown) <= _SHOWN else shown[:_SHOWN] + " …"


def dotted(path: FieldPath) -> str:
    """The path of a field as people write it: ``gpus.indices[1]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def read_source(path: Path) -> Source:
    """The text of a manifest.

    Raises:
        ManifestUnreadable: The file isn't there, is no regular file, can't be read, is larger than
            SIZE_LIMIT, or holds no UTF-8 text.
    """

    def refusal(cause: str, hint: str | None = None, line: int | None = None) -> ManifestUnreadable:
        return ManifestUnreadable(cause=cause, hint=hint, path=str(path), line=line)

    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise refusal("is a directory, not a manifest", _files_in(path))
        if not stat.S_ISREG(mode):
            raise refusal("isn't a regular file", "a manifest is a YAML file on disk")
        with path.open("rb") as file:
            content = file.read(SIZE_LIMIT + 1)
    except FileNotFoundError:
        raise refusal("no such file", _similar(path)) from None
    except PermissionError:
        raise refusal("no permission to read it", f"see `ls -l {path}`") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise refusal(f"can't be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > SIZE_LIMIT:
        raise refusal("is larger than 1 MiB, so hardly a manifest", "name the YAML file of a deployment")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise refusal("isn't UTF-8 text", "save the file as UTF-8", line) from None
    if control := _CONTROL.search(text):
        line = len(_BREAK.split(text[: control.start()]))
        raise refusal("isn't text: it holds control characters", "name the YAML file of a deployment", line)
    return Source(path=str(path), text=text)


def files_of(paths: Sequence[Path]) -> tuple[list[Path], list[ManifestError]]:
    """The files that are meant, each once, with directories replaced by the manifests directly in them.

    Returns:
        The files, those of a directory in the order of their names; and an error for each directory without
        any.
    """
    files: dict[str, Path] = {}
    errors: list[ManifestError] = []
    for path in paths:
        if not _is_directory(path):
            files.setdefault(_identity(path), path)
            continue
        cause, hint = "no manifests in it", "manifests are the files *.yaml and *.yml directly in it"
        names: list[str] = []
        try:
            names = _manifests_in(path)
        except OSError as error:
            cause, hint = f"can't be read: {error.strerror}", f"see `ls -ld {path}`"
        if not names:
            errors.append(ManifestUnreadable(cause=cause, hint=hint, path=str(path)))
        for file in (path / name for name in names):
            files.setdefault(_identity(file), file)
    return list(files.values()), errors


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a loop of links, a NUL, no right to look
        return False


def _identity(path: Path) -> str:
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return str(path)


def _manifests_in(directory: Path) -> list[str]:
    return sorted(
        path.name
        for path in directory.iterdir()
        if path.suffix in (".yaml", ".yml") and not path.name.startswith(".") and not path.is_dir()
    )


def _files_in(directory: Path) -> str:
    with suppress(OSError):
        for name in _manifests_in(directory):
            return f"name a file in it, such as {directory / name}"
    return "name a file in it"


def _similar(path: Path) -> str | None:
    with suppress(OSError, ValueError):
        for near in difflib.get_close_matches(path.name, _manifests_in(path.parent), n=1):
            return f"did you mean {path.parent / near}?"
    return None
