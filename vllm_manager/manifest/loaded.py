"""A deployment that was read from a manifest and holds."""

from dataclasses import dataclass, field
from pathlib import Path

from vllm_manager.errors import ManifestFieldError
from vllm_manager.manifest.document import Document
from vllm_manager.manifest.flags import normal
from vllm_manager.manifest.model import Deployment
from vllm_manager.manifest.source import FieldPath


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A deployment of a manifest.

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

    def error(
        self, path: FieldPath, cause: str, hint: str | None = None, *, at_key: bool = False
    ) -> ManifestFieldError:
        """An error located at that field's value (or key), such as ``("gpus", "count")``.

        Flags below ``args`` are found however the file spells them.
        """
        if path[:1] == ("args",) and len(path) > 1:
            path = ("args", self._spelt(str(path[1])), *path[2:])
        return self.document.error(path, cause, hint, at_key=at_key)

    def _spelt(self, flag: str) -> str:
        args = self.document.data().get("args", {})
        return next((name for name in args if normal(name) == flag), flag)
