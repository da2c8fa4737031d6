"""The process that downloads: ``python -m vllm_manager.weights.worker``.

It reads a ``Request`` on stdin and prints lines on stdout: ``{"progress": Download}`` at least every half
second, at last ``{"result": Result}`` or ``{"error": payload}``. When stdin ends, so does it: a parent that
dies, in whatever way, closes the pipe, also before this process has begun to look. What has arrived is kept.
"""

import json
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vllm_manager.codec import decode, encode
from vllm_manager.errors import DownloadError
from vllm_manager.types import Download
from vllm_manager.weights import cache
from vllm_manager.weights.cache import Fetched, HubFile
from vllm_manager.weights.protocol import Request, Result
from vllm_manager.weights.wanted import Need

REPORT_SECONDS = 0.25
SPEED_SECONDS = 5.0
"""The speed is that of the last so many seconds."""

STREAMS = 8
"""Files at once, as many as the hub's own library takes."""

MARGIN = 0.05
"""Share of the missing bytes that must be free beyond them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    need: Need
    commit: str
    files: tuple[HubFile, ...]

    def missing(self) -> list[HubFile]:
        return [file for file in self.files if not cache.is_there(self.need, self.commit, file)]


class _Meter:
    """Bytes on the disk, whoever puts them there: two downloads of one file share what arrives."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        self._total = sum(file.size or 0 for file in plan.files)
        self._missing = plan.missing()
        self._seen: deque[tuple[float, int]] = deque()

    def read(self) -> Download:
        need, commit = self._plan.need, self._plan.commit
        self._missing = [file for file in self._missing if not cache.is_there(need, commit, file)]
        done = self._total - remaining(need, self._missing)
        now = time.monotonic()
        self._seen.append((now, done))
        while self._seen[0][0] < now - SPEED_SECONDS:
            self._seen.popleft()
        began, had = self._seen[0]
        speed = max(0.0, (done - had) / (now - began)) if now > began else 0.0
        return Download(repository=need.repository, done=done, total=self._total, speed=speed)


def remaining(need: Need, files: Sequence[HubFile]) -> int:
    """Bytes of these files that haven't arrived."""
    return sum(max(0, (file.size or 0) - _arrived(need, file)) for file in files)


def _arrived(need: Need, file: HubFile) -> int:
    if file.etag is None:
        return 0
    return cache.size_of(cache.blob(need, file.etag)) or cache.size_of(cache.partial(need, file.etag))


def main() -> NoReturn:
    """Do what the request on stdin says, and exit with 0 where it was done, 1 where not."""
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        os._exit(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    try:
        request = decode(Request, json.loads(line))
        _say({"result": encode(Result(fetched=tuple(_fetch_all(request.needs))))})
    except DownloadError as error:
        _say({"error": error.payload()})
        os._exit(1)  # other files may be on their way
    except Exception as error:
        _say(
            {"error": DownloadError(cause=f"the download failed: {type(error).__name__}: {error}").payload()}
        )
        os._exit(1)
    os._exit(0)


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def _say(message: Mapping[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _fetch_all(needs: Sequence[Need]) -> Iterator[Fetched]:
    from vllm_manager.weights import transfer

    # All that can be told beforehand is told before the first large file.
    plans: list[_Plan | Fetched] = []
    for need in needs:
        there = cache.complete(need)
        try:
            listing = transfer.ask(need, patient=there is None)
            files = transfer.choose(need, listing)
            plans.append(_Plan(need=need, commit=listing.commit, files=files))
        except DownloadError:
            if there is None:
                raise
            plans.append(there)  # as vLLM does it: what is in the cache is good enough
    _check_disk([plan for plan in plans if isinstance(plan, _Plan)])
    for plan in plans:
        yield _carry_out(plan) if isinstance(plan, _Plan) else plan


def _carry_out(plan: _Plan) -> Fetched:
    from vllm_manager.weights import transfer

    meter = _Meter(plan)
    _say({"progress": encode(meter.read())})
    pool = ThreadPoolExecutor(STREAMS)  # not left as a context: after a failure nobody waits for the others
    pending = {pool.submit(transfer.fetch, plan.need, plan.commit, file) for file in plan.missing()}
    while pending:
        done, pending = wait(pending, REPORT_SECONDS, FIRST_EXCEPTION)
        for each in done:
            each.result()
        _say({"progress": encode(meter.read())})
    transfer.settle(plan.need, plan.commit)
    return cache.fetched(plan.need, plan.commit, plan.files)


def _check_disk(plans: Sequence[_Plan]) -> None:
    from vllm_manager.weights.explain import disk_full

    needed: dict[int, int] = {}
    for plan in plans:
        place = _nearest(Path(plan.need.cache_dir))
        device = place.stat().st_dev
        needed[device] = needed.get(device, 0) + remaining(plan.need, plan.missing())
        free = shutil.disk_usage(place).free
        if needed[device] and free < needed[device] * (1 + MARGIN):
            raise disk_full(plan.need, needed[device], free)


def _nearest(path: Path) -> Path:
    return path if path.exists() else _nearest(path.parent)


if __name__ == "__main__":
    main()
