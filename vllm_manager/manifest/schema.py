"""The JSON Schema of manifests, for editors. ``python -m vllm_manager.manifest.schema`` prints it."""

import json
from typing import Any

from vllm_manager.manifest.model import Deployment

REFRESH = "python -m vllm_manager.manifest.schema > manifests/schema.json"


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a manifest as people write it."""
    schema = _without_titles(Deployment.model_json_schema(mode="validation"))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A vllm-manager manifest",
        **schema,
    }


def text() -> str:
    """The schema as it is committed."""
    return json.dumps(json_schema(), indent=2, sort_keys=True) + "\n"


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
