"""Whether logging out would end what runs in the background."""

import os
import re
from pathlib import Path

CONFIGURATION = (
    "/etc/systemd/logind.conf",
    "/etc/systemd/logind.conf.d",
    "/run/systemd/logind.conf.d",
    "/usr/lib/systemd/logind.conf.d",
)


def logout_risk() -> str | None:
    """Why a background supervisor and its models would die at logout, and the fix; None where they wouldn't.

    systemd-logind kills a user's processes at logout where ``KillUserProcesses=yes``, unless the user lingers
    (logind.conf(5)).
    """
    if os.getuid() == 0 or not Path("/run/systemd/system").exists() or not _kills():
        return None
    user = os.environ.get("USER") or str(os.getuid())
    if Path(f"/var/lib/systemd/linger/{user}").exists():
        return None
    return (
        "logging out ends everything of yours here (KillUserProcesses); "
        f"`loginctl enable-linger {user}` lets it run on"
    )


def _kills() -> bool:
    value = "no"
    for place in CONFIGURATION:
        path = Path(place)
        for file in sorted(path.glob("*.conf")) if path.is_dir() else [path]:
            try:
                found = re.findall(r"^\s*KillUserProcesses\s*=\s*(\S+)", file.read_text(), re.M)
            except OSError:
                continue
            value = found[-1] if found else value
    return value.lower() in ("yes", "true", "1", "on")
