"""TCP ports for instances: what is free, who holds what isn't, which to take."""

import errno
import os
import re
import socket
from collections.abc import Collection
from pathlib import Path

from vllm_manager import proc
from vllm_manager.errors import PortInUse

DEFAULT_RANGE = range(8000, 9000)
"""Outside Linux's ephemeral range (32768 to 60999), from which gloo and NCCL take theirs at random."""

_TIME_WAIT = "06"


def configured_range() -> range:
    """``$VLLM_MANAGER_PORTS`` such as ``8100-8199``, else 8000-8999."""
    match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", os.environ.get("VLLM_MANAGER_PORTS", ""))
    return range(int(match[1]), min(int(match[2]), 65535) + 1) if match else DEFAULT_RANGE


def available(host: str, port: int) -> bool:
    """Whether an instance could listen there.

    The test binds without SO_REUSEADDR: with it, the bind succeeds beside a vLLM that holds the port and
    doesn't listen yet (measured, 0.32). Connections of an earlier instance in TIME_WAIT make that bind fail
    too, and vLLM's own doesn't mind them; so where they explain the failure the port counts as available.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return not proc.listening_inodes(port) and _in_time_wait(port)
    return True


def _in_time_wait(port: int) -> bool:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            columns = line.split()
            if columns[3] == _TIME_WAIT and int(columns[1].rpartition(":")[2], 16) == port:
                return True
    return False


def owner(port: int) -> str | None:
    """Who listens on the port, such as ``pid 4242 (python3)``, as far as this user may know."""
    inodes = proc.listening_inodes(port)
    holding = proc.holders(proc.all_pids(), inodes) if inodes else []
    if not holding:
        return None
    process = proc.stat(holding[0])
    return f"pid {holding[0]} ({process.name})" if process else f"pid {holding[0]}"


def choose(host: str, wanted: int | None, preferred: int | None, taken: Collection[int]) -> int:
    """A port for an instance.

    Args:
        host: The address it will listen on.
        wanted: The manifest's port; only this one will do.
        preferred: The one it had before; taken again when it is free.
        taken: Ports promised to other deployments.

    Raises:
        PortInUse: ``wanted`` is somebody else's, or no port of the range is free.
    """
    try:
        if wanted is not None:
            if available(host, wanted):
                return wanted
            holder = owner(wanted)
            raise PortInUse(
                cause=f"port {wanted} is in use by {holder or 'another program'}",
                hint="stop that program, choose another port, or leave `port` out to get a free one",
                port=wanted,
                owner=holder,
            )
        numbers = configured_range()
        candidates: list[int] = [*([preferred] if preferred else []), *numbers]
        for port in candidates:
            if port not in taken and available(host, port):
                return port
    except OSError as error:
        raise PortInUse(
            cause=f"can't listen on {host}{f':{wanted}' if wanted else ''}: {error.strerror}",
            hint="ports below 1024 need root; `host` must be an address of this machine",
            port=wanted or 0,
            permanent=True,
        ) from error
    raise PortInUse(
        cause=f"no port from {numbers.start} to {numbers.stop - 1} is free",
        hint="set `port`, or another range in $VLLM_MANAGER_PORTS, such as 8100-8299",
        port=numbers.start,
    )
