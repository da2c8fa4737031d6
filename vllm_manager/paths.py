"""Where things lie on this machine.

============= ============================================================ =================================
state         ``$VLLM_MANAGER_STATE_DIR``, systemd's ``$STATE_DIRECTORY``,   records, secrets, logs, the lock
              else ``$XDG_STATE_HOME/vllm-manager/<machine-id>``
runtime       ``$RUNTIME_DIRECTORY``, ``$XDG_RUNTIME_DIR/vllm-manager``,     the control socket, one for each
              else ``/tmp/vllm-manager-<uid>``                             state directory
engines       ``$VLLM_MANAGER_ENGINES_DIR``,                                 provisioned vLLM environments
              else ``$XDG_DATA_HOME/vllm-manager/engines``
============= ============================================================ =================================

The state is per machine, since home directories may be shared between machines.
"""

import os
import stat
import zlib
from pathlib import Path

from vllm_manager.errors import ControlError, SocketDenied

# sun_path holds 108 bytes with its NUL (unix(7)); the rest is margin for a temporary sibling.
SOCKET_PATH_LIMIT = 100


def _first(*variables: str) -> Path | None:
    # systemd may name several directories, separated by colons; the first is the main one.
    for variable in variables:
        value = os.environ.get(variable, "").split(":")[0]
        if value:
            return Path(value).absolute()
    return None


def _xdg(variable: str, default: str) -> Path:
    # The XDG specification says that a relative value is to be ignored.
    value = os.environ.get(variable, "")
    return Path(value) if value.startswith("/") else Path.home() / default


def machine_id() -> str:
    """The first 8 hex digits of this machine's id, or ``unknown`` where it has none."""
    try:
        return Path("/etc/machine-id").read_text().strip()[:8] or "unknown"
    except OSError:
        return "unknown"


def state_dir() -> Path:
    """The directory of records, secrets and logs (not created here)."""
    configured = _first("VLLM_MANAGER_STATE_DIR", "STATE_DIRECTORY")
    return configured or _xdg("XDG_STATE_HOME", ".local/state") / "vllm-manager" / machine_id()


def engines_dir() -> Path:
    """The directory of provisioned engines (not created here)."""
    configured = _first("VLLM_MANAGER_ENGINES_DIR")
    return configured or _xdg("XDG_DATA_HOME", ".local/share") / "vllm-manager" / "engines"


def socket_path() -> Path:
    """The control socket: ``$VLLM_MANAGER_SOCKET``, else one in the runtime directory.

    Its name is made from the state directory's, so that two of those (another ``HOME``, say) never meet in
    one supervisor; a service's own runtime directory has one ``control.sock``.

    Raises:
        ControlError: The configured path is longer than a socket's may be.
    """
    if configured := _first("VLLM_MANAGER_SOCKET"):
        if len(os.fsencode(configured)) > SOCKET_PATH_LIMIT:
            raise ControlError(
                cause=f"the path of the control socket is too long: {configured}",
                hint=f"set VLLM_MANAGER_SOCKET to one of at most {SOCKET_PATH_LIMIT} bytes",
            )
        return configured
    if directory := _first("RUNTIME_DIRECTORY"):
        return _short(directory / "control.sock")
    name = f"{zlib.crc32(os.fsencode(os.path.realpath(state_dir()))):08x}.sock"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return _short((Path(runtime) / "vllm-manager" if runtime.startswith("/") else fallback_dir()) / name)


def _short(path: Path) -> Path:
    return path if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT else fallback_dir() / path.name


def fallback_dir() -> Path:
    """A short directory of this user's under /tmp, for sockets whose usual place is too long."""
    return Path(f"/tmp/vllm-manager-{os.getuid()}")  # noqa: S108 - owned and checked by private_dir()


def private_dir(path: Path) -> Path:
    """Create a directory that is this user's alone (0700), or check that it is.

    Raises:
        SocketDenied: It is somebody else's, a link, or open to others.
        ControlError: It can't be created.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.lstat()
    except OSError as error:
        raise ControlError(cause=f"can't create {path}: {error.strerror}") from error
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise SocketDenied(
            cause=f"{path} isn't a directory of this user's",
            hint="remove it, or set VLLM_MANAGER_SOCKET to a path in a directory of yours",
            path=str(path),
        )
    if stat.S_IMODE(info.st_mode) & 0o077:
        path.chmod(0o700)
    return path
