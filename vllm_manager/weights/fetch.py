"""Has a deployment's files on the disk before its engine starts, by a process of its own.

A branch is asked for at every call, since vLLM does the same at every start and would otherwise find a newer
commit itself, without progress and with the start's clocks running; that costs half a second beside the many
that an engine takes. A commit can't change, so that nobody is asked where all of it is there; offline nobody
may be asked.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from vllm_manager.codec import decode, encode
from vllm_manager.errors import DownloadError, HubUnreachable, ManagerError, from_payload
from vllm_manager.manifest.model import Deployment
from vllm_manager.types import Download
from vllm_manager.weights import cache
from vllm_manager.weights.cache import Fetched
from vllm_manager.weights.protocol import Request, Result
from vllm_manager.weights.repositories import needs
from vllm_manager.weights.wanted import Need


async def fetch(
    deployment: Deployment,
    environment: Mapping[str, str],
    on_progress: Callable[[Download], None],
) -> None:
    """Return when everything that the deployment's engine will read from the hub is on the disk.

    Cancelling ends the download at once; the next one goes on from what has arrived.

    Args:
        deployment: Its ``env`` wins over ``environment``.
        environment: What ``command.inherited`` kept: token, cache, proxies.
        on_progress: Called at least every half second while files are on their way.

    Raises:
        DownloadError: Something can't be had; ``permanent`` where trying again can't help.
    """
    merged = {**environment, **deployment.env}
    try:
        await _bring(needs(deployment, environment), merged, on_progress)
    except DownloadError as error:
        raise replace(error, deployment=deployment.name) from None


def cached(deployment: Deployment, environment: Mapping[str, str]) -> bool:
    """Whether all of it was there when the hub was asked last, and still is. Reads a few small files."""
    return all(cache.complete(need) is not None for need in needs(deployment, environment))


def pull(
    wanted: Sequence[Need], environment: Mapping[str, str], on_progress: Callable[[Download], None]
) -> tuple[Fetched, ...]:
    """The same for a program without an event loop; arguments and errors as for ``fetch``."""
    return asyncio.run(_bring(wanted, environment, on_progress))


async def _bring(
    wanted: Sequence[Need], environment: Mapping[str, str], on_progress: Callable[[Download], None]
) -> tuple[Fetched, ...]:
    offline = cache.offline(environment)
    found: dict[Need, Fetched] = {}
    for need in wanted:
        if offline or cache.COMMIT.fullmatch(need.revision):
            there = await asyncio.to_thread(cache.complete, need)
            if there is not None:
                found[need] = there
            elif offline:
                raise _forbidden(need)
    missing = tuple(need for need in wanted if need not in found)
    if missing:
        result = await _download(missing, environment, on_progress)
        found.update(zip(missing, result.fetched, strict=True))
    return tuple(found[need] for need in wanted)


def _forbidden(need: Need) -> HubUnreachable:
    there = "only a part of" if cache.folder(need).is_dir() else "nothing of"
    return HubUnreachable(
        cause=f"{there} {need.repository} is in {need.cache_dir}, and HF_HUB_OFFLINE forbids to ask the hub",
        hint=f"unset HF_HUB_OFFLINE, or run `vllm-manager pull {need.repository}` while there is a network",
        repository=need.repository,
        permanent=True,
    )


async def _download(
    wanted: tuple[Need, ...], environment: Mapping[str, str], on_progress: Callable[[Download], None]
) -> Result:
    # Python's own variables are this interpreter's: they may be how it finds this package.
    python = {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "vllm_manager.weights.worker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=python | dict(environment),
        cwd="/",
        start_new_session=True,  # Ctrl-C is for the parent, which then ends it
    )
    assert process.stdin is not None  # noqa: S101 - PIPE
    assert process.stdout is not None  # noqa: S101
    assert process.stderr is not None  # noqa: S101
    said = asyncio.create_task(process.stderr.read())
    try:
        process.stdin.write(json.dumps(encode(Request(needs=wanted))).encode() + b"\n")
        outcome: Result | ManagerError | None = None
        async for line in process.stdout:
            message = json.loads(line)
            if "progress" in message:
                on_progress(decode(Download, message["progress"]))
            elif "result" in message:
                outcome = decode(Result, message["result"])
            else:
                outcome = from_payload(message["error"])
        status = await process.wait()
        words = (await said).decode(errors="replace").strip().splitlines()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        said.cancel()
        process.stdin.close()
        await process.wait()
    if isinstance(outcome, Result):
        return outcome
    raise outcome or DownloadError(
        cause=f"the download's process {_ending(status)}" + (f": {words[-1]}" if words else ""),
        repository=wanted[0].repository,
    )


def _ending(status: int) -> str:
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with {status}"
