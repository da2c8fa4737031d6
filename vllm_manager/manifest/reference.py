"""The manifest reference, as Markdown, from the same models that read manifests.

``python -m vllm_manager.manifest.reference > manifests/README.md``
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from vllm_manager.manifest.schema import json_schema

INTRODUCTION = """\
# Manifests

A manifest is a YAML file that declares one deployment: a model, the name it is known by, and how it runs.
`vllm-manager up FILE` brings it up; `vllm-manager validate FILE` checks it without starting anything.

| file | what |
|---|---|
| [tiny.yaml](tiny.yaml) | a dummy model on the CPU, for trying things out; downloads no weights |
| [llama.yaml](llama.yaml) | a chat model with tool calls on one GPU |
| [schema.json](schema.json) | JSON Schema; the first line of a manifest points editors to it |

YAML is read strictly: an unknown or duplicate field is an error, and so is what YAML 1.1 would quietly
change (`no`, `on`, `1:30`, `0777`): write it in quotes. Durations are written `90s`, `20m`, `1h30m` or as a
number of seconds; sizes `30GiB`, `500MB` or as a number of bytes. Paths are relative to the manifest.

## Fields

"""

TRAILER = """
This page is generated: `python -m vllm_manager.manifest.reference > manifests/README.md`.
"""


def markdown() -> str:
    """The whole page."""
    schema = json_schema()
    lines = ["| field | value | default | what it means |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in _rows(schema, schema["$defs"], "")]
    return INTRODUCTION + "\n".join(lines) + "\n" + TRAILER


def _rows(schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str) -> Iterator[list[str]]:
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        path = f"{prefix}{name}"
        nested = _nested(field, definitions)
        default = "required" if name in required else _default(field.get("default"))
        value = " or ".join(dict.fromkeys(_kinds(field, definitions)))
        shown = "" if nested and default == "`{}`" else default
        yield [f"`{path}`", value, shown, _cell(field["description"])]
        for part in nested:
            yield from _rows(part, definitions, f"{path}.")


def _nested(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    references = [part["$ref"] for part in (field, *field.get("anyOf", ())) if "$ref" in part]
    found = [definitions[reference.rpartition("/")[2]] for reference in references]
    return [part for part in found if "properties" in part]


def _kinds(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[str]:
    for part in field.get("anyOf", (field,)):
        if "$ref" in part:
            target = definitions[part["$ref"].rpartition("/")[2]]
            yield "mapping" if "properties" in target else "anything"
        elif "const" in part:
            yield f"`{part['const']}`"
        elif "enum" in part:
            yield from (f"`{value}`" for value in part["enum"])
        elif part.get("type") == "array":
            yield "list"
        elif part.get("type") == "object":
            yield "mapping"
        elif "type" in part:
            yield {"null": "`null`"}.get(part["type"], part["type"])


def _default(value: Any) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, dict):
        return "`{}`"
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("\n", " ")


if __name__ == "__main__":
    print(markdown(), end="")
