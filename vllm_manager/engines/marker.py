"""The marker of a complete engine: ``engine.json`` in its directory, written last.

A directory without a readable one is an interrupted install, and is never used.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from vllm_manager.engines.environments import device_of
from vllm_manager.types import Device, Engine

MARKER = "engine.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledEngine:
    """A provisioned engine, as its marker describes it.

    Attributes:
        name: Such as ``cpu-0.32.0``.
        version: vLLM's, such as ``0.32.0+cpu``.
        path: The directory of its environment.
        size: Bytes on disk when it was installed.
        python_version: Of its interpreter, such as ``3.11.2``.
        installed_at: Seconds since the Unix epoch.
    """

    name: str
    version: str
    path: Path
    size: int
    python_version: str
    installed_at: float

    @property
    def executable(self) -> Path:
        """Its ``vllm`` program."""
        return self.path / "bin" / "vllm"

    @property
    def device(self) -> Device | None:
        """What it computes on."""
        return device_of(self.version)

    @property
    def engine(self) -> Engine:
        """The engine as a launcher wants it."""
        return Engine(
            name=self.name, executable=str(self.executable), version=self.version, device=self.device
        )


def write(engine: InstalledEngine) -> None:
    """Mark the engine as complete, atomically; raises OSError."""
    values = {
        "format": _FORMAT,
        "version": engine.version,
        "size": engine.size,
        "python_version": engine.python_version,
        "installed_at": engine.installed_at,
    }
    # The marker says that all the rest is there, so after a power cut too it must not be there before it.
    os.sync()
    temporary = engine.path / f".{MARKER}.new"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(engine.path / MARKER)
    directory = os.open(engine.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read(directory: Path) -> InstalledEngine | None:
    """The complete engine in a directory, or None where there is none."""
    try:
        values = json.loads((directory / MARKER).read_text(encoding="utf-8"))
        if values["format"] != _FORMAT:
            return None
        return InstalledEngine(
            name=directory.name,
            version=str(values["version"]),
            path=directory,
            size=int(values["size"]),
            python_version=str(values["python_version"]),
            installed_at=float(values["installed_at"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove(directory: Path) -> None:
    """Delete an engine, the marker first: cut short, it leaves an interrupted install. Raises OSError."""
    if directory.is_dir():
        (directory / MARKER).unlink(missing_ok=True)
        shutil.rmtree(directory)
