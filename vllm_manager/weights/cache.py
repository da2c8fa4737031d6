"""The hub's cache on the disk, read and written without its library.

The layout is documented at https://huggingface.co/docs/huggingface_hub/guides/manage-cache: a repository's
folder has ``blobs/<etag>``, ``snapshots/<commit>/<path>`` that link to them, and ``refs/<revision>`` with a
commit. Beside them lies what only we write, ``vllm-manager/<commit>.json``: all files of a commit with their
sizes, which never change, so that it can be told without a network whether everything needed is there. The
library's own record, ``trees/<commit>.json``, isn't written: where there is one, the library (2.x) offline
insists on files that vLLM never asked for.
"""

import json
import os
import re
import string
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vllm_manager.codec import decode, encode
from vllm_manager.weights import wanted
from vllm_manager.weights.wanted import Need

COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file of a repository.

    Attributes:
        path: Inside the repository, with slashes.
        size: Bytes; None where the hub doesn't tell.
        etag: The name of its blob: the SHA-256 of a large file, git's SHA-1 of a small one; or None.
    """

    path: str
    size: int | None = None
    etag: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """All files of a commit."""

    commit: str
    files: tuple[HubFile, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """Their paths."""
        return tuple(file.path for file in self.files)

    def select(self, paths: tuple[str, ...]) -> tuple[HubFile, ...]:
        """The files of these paths, in their order."""
        by_path = {file.path: file for file in self.files}
        return tuple(by_path[path] for path in paths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A repository whose needed files are all there.

    Attributes:
        repository: Its id.
        revision: As it was asked for.
        commit: What that was.
        path: The snapshot's directory.
        bytes: Size of the needed files.
    """

    repository: str
    revision: str
    commit: str
    path: str
    bytes: int


def expanded(path: str, environment: Mapping[str, str]) -> str:
    """The path with ``~`` and variables expanded as in that environment."""
    if path == "~" or path.startswith("~/"):
        path = environment.get("HOME", os.path.expanduser("~")) + path[1:]
    return string.Template(path).safe_substitute(environment)


def default_cache_dir(environment: Mapping[str, str]) -> str:
    """Where the hub's library keeps its cache in that environment (``constants.py`` of huggingface_hub)."""
    base = environment.get("XDG_CACHE_HOME", "~/.cache")
    home = environment.get("HF_HOME", os.path.join(base, "huggingface"))
    hub = environment.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub"))
    return os.path.abspath(expanded(environment.get("HF_HUB_CACHE", hub), environment))


def offline(environment: Mapping[str, str]) -> bool:
    """Whether that environment forbids to ask the hub."""
    value = environment.get("HF_HUB_OFFLINE") or environment.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")


def folder(need: Need) -> Path:
    """The repository's folder."""
    return Path(need.cache_dir) / "--".join(("models", *need.repository.split("/")))


def snapshot(need: Need, commit: str) -> Path:
    """The directory of a commit's files."""
    return folder(need) / "snapshots" / commit


def blob(need: Need, etag: str) -> Path:
    """Where the content of a file belongs."""
    if not _ETAG.fullmatch(etag):
        raise ValueError(f"{etag!r} is no hash")
    return folder(need) / "blobs" / etag


def partial(need: Need, etag: str) -> Path:
    """The part of a file that has arrived, named as older versions of the hub's library do."""
    whole = blob(need, etag)
    return whole.with_name(f"{whole.name}.incomplete")


def is_there(need: Need, commit: str, file: HubFile) -> bool:
    """Whether the snapshot has that file, whole."""
    try:
        size = (snapshot(need, commit) / file.path).stat().st_size
    except OSError:
        return False
    return file.size is None or size == file.size


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def shards_of(index: Path) -> frozenset[str]:
    """The files that an index of safetensors names; none where it can't be read."""
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        return frozenset(map(str, weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return frozenset()


def remember(need: Need, listing: Listing) -> None:
    """Keep a commit's listing."""
    _replace(folder(need) / "vllm-manager" / f"{listing.commit}.json", json.dumps(encode(listing)))


def point(need: Need, commit: str) -> None:
    """Let the revision mean that commit from now on."""
    ref = folder(need) / "refs" / need.revision
    if need.revision != commit and _text(ref) != commit:
        _replace(ref, commit)


def commit_of(need: Need) -> str | None:
    """The commit that the revision meant when the hub was asked last, or None."""
    commit = (
        need.revision if COMMIT.fullmatch(need.revision) else _text(folder(need) / "refs" / need.revision)
    )
    return commit if commit and COMMIT.fullmatch(commit) else None


def complete(need: Need) -> Fetched | None:
    """What is needed, where the cache has all of it; None where something is missing.

    Without a listing of ours (somebody else filled the cache) a snapshot counts as complete when it has
    weights, and all that its index names; that is what vLLM itself goes by when it is offline.
    """
    commit = commit_of(need)
    if commit is None:
        return None
    listing = _recorded(need, commit) or _found(need, commit)
    if listing is None:
        return None
    index = wanted.index_file(listing.paths, need)
    shards = shards_of(snapshot(need, commit) / index) if index else frozenset()
    files = listing.select(wanted.wanted(listing.paths, need, shards))
    lacking = need.weights and not wanted.weights(listing.paths, need, shards)
    if not files or lacking or not all(is_there(need, commit, file) for file in files):
        return None
    if not shards <= set(listing.paths):
        return None
    return fetched(need, commit, files)


def fetched(need: Need, commit: str, files: tuple[HubFile, ...]) -> Fetched:
    """The result, once all files are there."""
    path = snapshot(need, commit)
    return Fetched(
        repository=need.repository,
        revision=need.revision,
        commit=commit,
        path=str(path),
        bytes=sum(size_of(path / file.path) for file in files),
    )


def _recorded(need: Need, commit: str) -> Listing | None:
    with suppress(OSError, ValueError):
        data = json.loads((folder(need) / "vllm-manager" / f"{commit}.json").read_bytes())
        return decode(Listing, data)
    return None


def _found(need: Need, commit: str) -> Listing | None:
    root = snapshot(need, commit)
    files = tuple(HubFile(path=path) for path in sorted(_files(root)))
    return Listing(commit=commit, files=files) if files else None


def _files(root: Path) -> Iterator[str]:
    for directory, _, names in os.walk(root):
        for name in names:
            yield os.path.relpath(os.path.join(directory, name), root)


def _text(path: Path) -> str | None:
    with suppress(OSError, ValueError):
        return path.read_text().strip()
    return None


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
