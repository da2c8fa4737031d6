"""Where pip looks for packages, by what was given."""

from pathlib import Path

import pytest

from vllm_manager.engines.sources import InstallOptions, given

EMPTY = Path("/engines/.tmp/wheels")
A, B = Path("/a"), Path("/b")


def test_without_options_pip_keeps_its_own_configuration() -> None:
    options = given({})
    assert options == InstallOptions()
    assert options.arguments() == []
    assert options.environment(EMPTY) == {}


def test_an_index_replaces_every_other_place() -> None:
    options = given({}, index_url="https://u:p@mirror/simple")
    assert options.environment(EMPTY) == {
        "PIP_INDEX_URL": "https://u:p@mirror/simple",
        "PIP_EXTRA_INDEX_URL": "https://u:p@mirror/simple",
        "PIP_FIND_LINKS": "file:///engines/.tmp/wheels",
        "PIP_NO_INDEX": "0",
    }
    assert "p@" not in " ".join(options.arguments()), "everybody can read a command line"


def test_directories_alone_are_all_that_is_looked_at() -> None:
    options = given({}, find_links=(A, B))
    assert options.arguments() == ["--find-links", "/a", "--find-links", "/b", "--no-index"]
    assert options.environment(EMPTY) == {"PIP_FIND_LINKS": "file:///engines/.tmp/wheels"}


def test_directories_beside_an_index_are_looked_at_too() -> None:
    options = given({}, find_links=(A,), index_url="https://mirror/simple")
    assert not options.offline
    assert options.arguments() == ["--find-links", "/a"]


def test_one_index_can_be_asked_instead_of_all_others() -> None:
    options = given({}, index_url="https://mirror/simple")
    assert options.environment(EMPTY, "https://torch")["PIP_INDEX_URL"] == "https://torch"
    assert options.environment(EMPTY, "https://torch")["PIP_EXTRA_INDEX_URL"] == "https://torch"


VARIABLES = {"VLLM_MANAGER_INDEX_URL": "https://mirror/simple", "VLLM_MANAGER_FIND_LINKS": "/a:/b:"}


def test_the_variables_stand_in_for_options() -> None:
    assert given(VARIABLES) == InstallOptions(index_url="https://mirror/simple", find_links=(A, B))
    assert given(dict.fromkeys(VARIABLES, "")) == InstallOptions()


@pytest.mark.parametrize(
    "options", [InstallOptions(find_links=(Path("/c"),)), InstallOptions(index_url="https://other/simple")]
)
def test_an_option_replaces_both_variables(options: InstallOptions) -> None:
    found = given(VARIABLES, index_url=options.index_url, find_links=options.find_links)
    assert found == options


def test_the_interpreter_is_no_matter_of_places() -> None:
    assert given(VARIABLES, python="/p").find_links == (A, B)
