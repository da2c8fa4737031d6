"""The JSON Schema of manifests, for editors. ``python -m vllm_manager.manifest.schema`` prints it."""

import json
from collections.abc import Iterator
from typing import Any

from vllm_manager.manifest.model import Deployment
from vllm_manager.manifest.several import MERGED, OWN

REFRESH = "python -m vllm_manager.manifest.schema > manifests/schema.json"

_VALUE_OF_A_VARIABLE = {
    "description": "The value of an environment variable of whoever runs `up`.",
    "anyOf": [
        {"type": "string", "pattern": r"^\$\{.+\}$"},
        {
            "type": "object",
            "properties": {
                "env": {"type": "string", "description": "Name of the environment variable."},
                "default": {"description": "The value if it isn't set, or is empty."},
            },
            "required": ["env"],
            "additionalProperties": False,
        },
    ],
}
VARIABLE = {"$ref": "#/$defs/Variable"}  # one of the forms of every field that holds a single value
_DEPLOYMENT = {"$ref": "#/$defs/Deployment"}


def json_schema(*, taking_back: bool = True) -> dict[str, Any]:
    """The JSON Schema of a manifest as people write it: of one deployment, or of several with defaults.

    Args:
        taking_back: Allow the nulls that take back a default; also where there are no defaults, which the
            schema can't tell apart and the reader refuses.
    """
    deployment = _without_titles(Deployment.model_json_schema(mode="validation"))
    definitions = deployment.pop("$defs")
    required = deployment.pop("required")
    for owner in (deployment, *definitions.values()):
        for name, field in owner.get("properties", {}).items():
            if not (owner is deployment and name == "api_key"):  # there, {env: NAME} is the key's own form
                _allow_variables(field)
    if taking_back:
        for name in MERGED:
            _allow_taking_back(deployment["properties"][name], definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A vllm-manager manifest",
        "if": {"type": "object", "anyOf": [{"required": ["deployments"]}, {"required": ["defaults"]}]},
        "then": {"$ref": "#/$defs/Deployments"},
        "else": {"allOf": [_DEPLOYMENT], "required": required},
        "$defs": definitions
        | {
            "Deployment": deployment,
            "Deployments": _several(required),
            "Variable": _VALUE_OF_A_VARIABLE,
        },
    }


def text() -> str:
    """The schema as it is committed."""
    return json.dumps(json_schema(), indent=2, sort_keys=True) + "\n"


def _several(required: list[str]) -> dict[str, Any]:
    return {
        "description": "Several deployments, and what they have in common.",
        "type": "object",
        "properties": {
            "defaults": {
                "description": "Fields of every deployment below that doesn't have them itself.",
                "allOf": [_DEPLOYMENT],
                "not": {"anyOf": [{"required": [name]} for name in OWN]},
            },
            "deployments": {
                "description": "The deployments; each may leave out what `defaults` says.",
                "type": "array",
                "minItems": 1,
                "items": {"allOf": [_DEPLOYMENT], "required": [name for name in required if name in OWN]},
            },
        },
        "required": ["deployments"],
        "additionalProperties": False,
    }


def _allow_variables(field: dict[str, Any]) -> None:
    # Wherever a single value may stand, in place.
    for inner in _inner(field):
        _allow_variables(inner)
    forms = field.get("anyOf", [field])
    if not any(form.get("type") in ("string", "integer", "number", "boolean") for form in forms):
        return
    if "anyOf" not in field:
        kind = {key: field.pop(key) for key in list(field) if key not in ("default", "description")}
        field["anyOf"] = [kind]
    field["anyOf"].append(VARIABLE)


def _allow_taking_back(field: dict[str, Any], definitions: dict[str, Any]) -> None:
    # The field as a whole, or any key of its mapping.
    for form in field.get("anyOf", [field]):
        if "$ref" in form and form != VARIABLE:
            for key in definitions[form["$ref"].rpartition("/")[2]]["properties"].values():
                _allow_null(key)
        elif isinstance(form.get("additionalProperties"), dict):
            _allow_null(form["additionalProperties"])
    _allow_null(field)


def _allow_null(field: dict[str, Any]) -> None:
    if "anyOf" not in field:
        kind = {key: field.pop(key) for key in list(field) if key not in ("default", "description")}
        field["anyOf"] = [kind]
    if {"type": "null"} not in field["anyOf"]:
        field["anyOf"].append({"type": "null"})


def _inner(field: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for form in (field, *field.get("anyOf", ())):
        for key in ("items", "additionalProperties"):
            if isinstance(form.get(key), dict) and "$ref" not in form[key]:
                yield form[key]


def _without_titles(value: Any) -> Any:
    # pydantic repeats every field's name as its title.
    if isinstance(value, dict):
        return {
            key: _without_titles(item)
            for key, item in value.items()
            if not (key == "title" and isinstance(item, str))
        }
    return [_without_titles(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    print(text(), end="")
