"""The manifest reference, as Markdown, from the same models that read manifests.

``python -m vllm_manager.manifest.reference > manifests/README.md``
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from vllm_manager.manifest.schema import VARIABLE, json_schema

INTRODUCTION = """\
# Manifests

A manifest is a YAML file that declares deployments: models, the names they are known by, and how they run.
`vllm-manager up FILE` brings them up; `vllm-manager validate FILE` checks the file without starting anything.
Both take directories too, which stand for the files `*.yaml` and `*.yml` directly in them.

| file | what |
|---|---|
| [tiny.yaml](tiny.yaml) | a dummy model on the CPU, for trying things out; downloads no weights |
| [llama.yaml](llama.yaml) | a chat model with tool calls on one GPU |
| [qwen.yaml](qwen.yaml) | a small model with reasoning and tool calls, free to download |
| [shared-gpu.yaml](shared-gpu.yaml) | two models that share a GPU, in one file |
| [tensor-parallel.yaml](tensor-parallel.yaml) | a large model, split over four GPUs |
| [embed.yaml](embed.yaml) | an embedding model |
| [rerank.yaml](rerank.yaml) | a reranker |
| [speech.yaml](speech.yaml) | a speech model: audio to text |
| [docker.yaml](docker.yaml) | a model in a container |
| [schema.json](schema.json) | JSON Schema; the first line of a manifest points editors to it |

YAML is read strictly: an unknown or duplicate field is an error, and so is what YAML 1.1 would quietly
change (`no`, `on`, `1:30`, `0777`): write it in quotes. Durations are written `90s`, `20m`, `1h30m` or as a
number of seconds; sizes `30GiB`, `500MB` or as a number of bytes. Paths are relative to the manifest.

## Several deployments in one file

As YAML documents, with a line `---` between them; or as a list, with what they have in common beside it:

```yaml
defaults:
  api_key: generate
  args: {max-num-seqs: 64}
deployments:
  - name: chat
    model: Qwen/Qwen3-4B-Instruct-2507
    args: {enforce-eager: true}        # max-num-seqs is 64 here too
  - name: embed
    model: Qwen/Qwen3-Embedding-0.6B
    runner: pooling
    api_key: null                      # no key, whatever the defaults say
```

A deployment's own field wins over the default. `args`, `env`, `gpus`, `engine`, `readiness`, `liveness`,
`restart`, `stop` and `lora_modules` are merged key by key, one level deep: there, a key that is `null` takes
its default back (`args: {max-num-seqs: null}` leaves vLLM its own number), and so does a field that is `null`
as a whole. Any other value replaces the default whole; its `null` means what the table below says. `name` and
`port` can't be defaults.

No two deployments may have one name, nor one port on the same address; that goes for all the files that are
given together.

## Environment variables

| form | what it stands for |
|---|---|
| `${NAME}` | the variable's value; an error if it isn't set |
| `${NAME:-default}` | the value, or the default (up to the next `}`) if the variable isn't set or is empty |
| `$${` | the text `${` itself, in a chat template written in place, say |
| `{env: NAME}` | like `${NAME}` as the whole value; the form to use inside `{ }` and `[ ]` |
| `{env: NAME, default: value}` | like `${NAME:-value}` |

They stand in place of values, or of parts of text, not of keys, and mean the environment of whoever runs `up`
or `serve`, at that moment. A value without quotes is read as it would be if it stood there, so that
`port: ${PORT}` is a number, and `{env: NAME}` likewise; in quotes (`"${NAME}"`) it stays text. What looks
like a variable in a variable's value is left alone. Errors never quote a value that came from a variable.

Below `api_key`, `{env: NAME}` is the name of the variable that holds the key. `args`, `env` and
`lora_modules` can't be variables as a whole, since `env` may be a name in them.

## Fields

"""

TRAILER = """
This page is generated: `python -m vllm_manager.manifest.reference > manifests/README.md`.
"""


def markdown() -> str:
    """The whole page."""
    schema = json_schema(taking_back=False)
    schema["$defs"]["Deployment"]["required"] = schema["else"]["required"]
    lines = ["| field | value | default | what it means |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in _rows(schema["$defs"]["Deployment"], schema["$defs"], "")]
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
    parts = (field, *field.get("anyOf", ()))
    references = [part["$ref"] for part in parts if "$ref" in part and part != VARIABLE]
    found = [definitions[reference.rpartition("/")[2]] for reference in references]
    return [part for part in found if "properties" in part]


def _kinds(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[str]:
    for part in field.get("anyOf", (field,)):
        if part == VARIABLE:
            continue
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
