"""Fetching one repository's files with huggingface_hub. The worker's alone.

The bytes are streamed here and not by ``hf_hub_download``: that one (2.4) begins an interrupted file anew,
since its temporary file has a random name, and takes its size for proof. Here a file goes on from what is
there, and must have the hash that the hub announced. Cache, locks and names are the hub's, so that both may
work on one cache at once.
"""

import errno
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Protocol, TypeVar

from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url
from huggingface_hub.utils import WeakFileLock, build_hf_headers, get_session, hf_raise_for_status

from vllm_manager.errors import NoWeights
from vllm_manager.weights import cache, wanted
from vllm_manager.weights.cache import HubFile, Listing
from vllm_manager.weights.explain import BrokenContent, explain, transient
from vllm_manager.weights.wanted import Need

T = TypeVar("T")

ASK_PAUSES = (0.5, 1.0)
"""Seconds between tries of a question; a cache that has everything is taken at the first failure."""

TRANSFER_PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds between tries of a file; begins anew when bytes have come."""

LONGEST_WAIT = 60.0
"""A hub that wants to be left alone for longer is an error."""

# What a plain request can't get; such a file comes through hf_xet, and isn't resumed.
_TOO_LARGE = 50_000_000_000
_PIECE = 1 << 20


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


def ask(need: Need, *, patient: bool) -> Listing:
    """All files of the revision, as the hub has them now.

    Raises:
        DownloadError: It doesn't tell.
    """

    def question() -> Listing:
        info = HfApi().model_info(
            need.repository,
            revision=need.revision,
            files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
        siblings = info.siblings or ()
        files = tuple(
            HubFile(path=s.rfilename, size=s.size, etag=s.lfs.sha256 if s.lfs else s.blob_id)
            for s in siblings
            if _harmless(s.rfilename)
        )
        return Listing(commit=str(info.sha), files=files)

    try:
        listing = _patiently(question, ASK_PAUSES if patient else ())
    except Exception as error:
        raise explain(error, need) from error
    with suppress(OSError):  # the cache may be somebody else's, and complete
        cache.remember(need, listing)
    return listing


def choose(need: Need, listing: Listing) -> tuple[HubFile, ...]:
    """The files that are needed, the small kinds first; fetches the index of the weights to tell.

    Raises:
        NoWeights: There are none that vLLM would load.
        DownloadError: The index can't be fetched.
    """
    index = wanted.index_file(listing.paths, need)
    shards: frozenset[str] = frozenset()
    if index:
        (file,) = listing.select((index,))
        fetch(need, listing.commit, file)
        shards = cache.shards_of(cache.snapshot(need, listing.commit) / index)
    if need.weights and not wanted.weights(listing.paths, need, shards):
        kinds = " or ".join(wanted.patterns(listing.paths, need))
        gguf = any(path.endswith(".gguf") for path in listing.paths)
        raise NoWeights(
            cause=f"{need.repository} holds no weights that vLLM would load ({kinds})",
            hint="vLLM needs the model's original repository, not one of GGUF files"
            if gguf
            else f"its files are at https://huggingface.co/{need.repository}/tree/{need.revision}",
            repository=need.repository,
            permanent=True,
        )
    return listing.select(wanted.wanted(listing.paths, need, shards))


def fetch(need: Need, commit: str, file: HubFile) -> None:
    """Have a file in the snapshot, whole.

    Raises:
        DownloadError: It isn't to be had.
    """
    if cache.is_there(need, commit, file):
        return
    try:
        if file.etag is None or file.size is None or file.size > _TOO_LARGE:
            hf_hub_download(need.repository, file.path, revision=commit, cache_dir=need.cache_dir)
            return
        blob = cache.blob(need, file.etag)
        blob.parent.mkdir(parents=True, exist_ok=True)
        lock = Path(need.cache_dir) / ".locks" / cache.folder(need).name / f"{file.etag}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):  # the hub's own: another download of the same file is waited for
            if not (blob.exists() and cache.size_of(blob) == file.size):
                _fill(need, commit, file, cache.partial(need, file.etag), blob)
            _link(cache.snapshot(need, commit) / file.path, blob)
    except Exception as error:
        raise explain(error, need, file.path) from error


def settle(need: Need, commit: str) -> None:
    """Let the revision mean this commit, now that all of it is there.

    Raises:
        DownloadError: The cache can't be written.
    """
    try:
        cache.point(need, commit)
    except OSError as error:
        raise explain(error, need) from error


def _fill(need: Need, commit: str, file: HubFile, part: Path, blob: Path) -> None:
    def stream() -> None:
        _stream(need, commit, file, part)

    for last in (False, True):
        try:
            _patiently(stream, TRANSFER_PAUSES, lambda: cache.size_of(part))
            break
        except BrokenContent:  # what was there before may be to blame: once more from the beginning
            part.unlink(missing_ok=True)
            if last:
                raise
    part.replace(blob)


def _stream(need: Need, commit: str, file: HubFile, part: Path) -> None:
    digest = _digest(file)
    with part.open("a+b", buffering=0) as out:
        out.seek(0)
        while piece := out.read(_PIECE):
            digest.update(piece)
        if out.tell() != file.size:
            digest = _receive(need, commit, file, out, digest)
        if out.tell() != file.size or digest.hexdigest() != file.etag:
            raise BrokenContent("what arrived isn't the file that the hub announced")


def _receive(need: Need, commit: str, file: HubFile, out: FileIO, digest: _Hash) -> _Hash:
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    begin = out.tell()
    if begin:
        headers["Range"] = f"bytes={begin}-"
    url = hf_hub_url(need.repository, file.path, revision=commit)
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        if begin and response.status_code != 206:  # the whole file comes, not its rest
            out.truncate(0)
            digest = _digest(file)
        for data in response.iter_bytes():
            digest.update(data)
            rest = memoryview(data)
            while rest:
                rest = rest[out.write(rest) or 0 :]
    return digest


def _digest(file: HubFile) -> _Hash:
    if file.etag is not None and len(file.etag) == 64:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % (file.size or 0))  # noqa: S324 - git's name of the content


def _link(pointer: Path, blob: Path) -> None:
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.unlink(missing_ok=True)  # a link to a blob that was removed, or of another size
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        blob.replace(pointer)  # a file system without links: one name, as the hub's library does it


def _patiently(
    action: Callable[[], T], pauses: Sequence[float], progress: Callable[[], int] = lambda: 0
) -> T:
    left, mark = list(pauses), progress()
    while True:
        try:
            return action()
        except Exception as error:
            wait = transient(error)
            if (now := progress()) > mark:
                left, mark = list(pauses), now
            if wait is None or wait > LONGEST_WAIT or not left:
                raise
            time.sleep(max(wait, left.pop(0)))


def _harmless(path: str) -> bool:
    # A path comes from the hub, or from whoever HF_ENDPOINT names, and becomes one on this disk.
    return not path.startswith("/") and ".." not in path.split("/") and "\0" not in path
