"""What a user can meet is documented: every field, command, option, error code and variable."""

import re
import shlex
from pathlib import Path

import click
import pytest

from tests.unit.test_errors import every_class
from vllm_manager.cli.app import COMMANDS, EXIT_CODES, app
from vllm_manager.errors import ManagerError
from vllm_manager.manifest.load import load_manifest
from vllm_manager.manifest.reference import markdown

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "vllm_manager" / "README.md").read_text()


def commands(group: click.Group = app, path: tuple[str, ...] = ()):
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def test_the_manifest_reference_is_current():
    """Refresh it: python -m vllm_manager.manifest.reference > manifests/README.md"""
    assert (ROOT / "manifests" / "README.md").read_text() == markdown()


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_is_in_the_readme(name):
    assert re.search(rf"^\| `{name}[` ]", README, re.MULTILINE)


@pytest.mark.parametrize(("path", "command"), [(" ".join(p), c) for p, c in commands()])
def test_every_command_has_help_with_an_example_and_every_option_a_text(path, command):
    assert command.help
    if not isinstance(command, click.Group):
        assert "Example" in command.help
        assert f"vllm-manager {path}" in command.help
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            assert option.help, f"{path} {option.opts}"


def shown_commands() -> dict[str, str]:
    """The command lines in the documents, the help and the hints of the code, and where each is."""
    found = {}
    code = sorted((ROOT / "vllm_manager").rglob("*.py"))
    for path in (ROOT / "README.md", ROOT / "manifests" / "README.md", *code):
        text = path.read_text()
        if path.suffix == ".md":
            text = "\n".join(re.findall(r"```sh\n.*?```|`[^`\n]+`", text, re.DOTALL))
        lines = re.findall(r"(?:^ *|[`(]|&& )vllm-manager ([a-z][^`\n)]*)", text, re.MULTILINE)
        found |= {line.split("  #")[0].split(" &&")[0].split(" |")[0].strip(): path.name for line in lines}
    return found


@pytest.mark.parametrize(("line", "where"), shown_commands().items())
def test_every_command_line_that_is_shown_is_one(line, where):
    words = [re.sub(r"\{[^}]*\}?|%s|…", "x", word) for word in shlex.split(line.replace("'", ""))]
    command, context = app, click.Context(app)
    while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z-]+", words[0]):
        command = command.get_command(context, words[0])
        assert command is not None, f"{where}: {line}"
        words = words[1:]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        assert not word.startswith("-") or word.split("=")[0] in options, f"{where}: {line}"


@pytest.mark.parametrize("cls", list(every_class()), ids=lambda cls: cls.__name__)
def test_every_error_code_is_in_the_architecture_page_with_its_exit_code(cls: type[ManagerError]):
    assert f"| `{cls.code}` | {cls.exit_code} |" in ARCHITECTURE


def test_every_exit_code_is_in_the_readme_and_in_the_help():
    for code in {cls.exit_code for cls in every_class()} | {0, 130}:
        assert re.search(rf"\b{code} \w", README[README.index("Exit codes") :]), code
        assert re.search(rf"\b{code}  \w", EXIT_CODES), code


def test_every_variable_that_the_code_reads_is_in_the_readme():
    code = "".join(path.read_text() for path in (ROOT / "vllm_manager").rglob("*.py"))
    for name in set(re.findall(r"\bVLLM_MANAGER_[A-Z_]+\b", code)) - {"VLLM_MANAGER_"}:
        assert name in README, name


def test_every_module_is_in_the_table_of_layers():
    table = ARCHITECTURE[ARCHITECTURE.index("## Layers") : ARCHITECTURE.index("## Decisions")]
    for path in (ROOT / "vllm_manager").iterdir():
        name = (
            path.stem
            if path.suffix == ".py"
            else f"{path.name}/"
            if (path / "__init__.py").exists()
            else None
        )
        if name and not name.startswith("__"):
            assert f"`{name}`" in table, name


@pytest.mark.parametrize("path", sorted((ROOT / "manifests").glob("*.yaml")), ids=lambda p: p.name)
def test_every_bundled_manifest_is_valid(path):
    assert load_manifest(path, {})


def test_the_manifest_in_the_readme_is_valid(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "llama.yaml"
    path.write_text(text)
    (loaded,) = load_manifest(path, {})
    assert loaded.deployment.name == "llama"


def test_links_of_the_documents_lead_somewhere():
    for document in ROOT.rglob("README.md"):
        if ".venv" in document.parts:
            continue
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document}: {target}"
