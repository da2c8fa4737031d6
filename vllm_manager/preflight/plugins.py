"""The files of parsers that a deployment brings along."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from vllm_manager.manifest.explain import Problem


def problems(args: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with them. vLLM only logs that it can't import one, and then misses the parser."""
    for name in ("tool-parser-plugin", "reasoning-parser-plugin"):
        path = args.get(name)
        if isinstance(path, str) and not os.path.isfile(path):
            yield Problem(
                path=("args", name),
                cause=f"there is no such file: {path}",
                hint="name a Python file; the path is relative to the manifest",
            )
