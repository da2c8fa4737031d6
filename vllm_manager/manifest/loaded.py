"""A manifest that was read and holds."""

from dataclasses import dataclass, field
from pathlib import Path

from vllm_manager.errors import ManifestFieldError
from vllm_manager.manifest.model import Deployment
from vllm_manager.manifest.yaml_nodes import Document, FieldPath


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A manifest that holds.

    Attributes:
        deployment: What it declares.
        source: The file, absolute.
        document: Its text and tree, for errors found later.
        literal_key: A key written into the manifest, where ``deployment.api_key`` is ``given``.
    """

    deployment: Deployment
    source: Path
    document: Document = field(repr=False)
    literal_key: str | None = field(default=None, repr=False)

    def error(self, path: FieldPath, cause: str, hint: str | None = None) -> ManifestFieldError:
        """An error located at that field, such as ``("gpus", "count")``."""
        return self.document.error(path, cause, hint)
