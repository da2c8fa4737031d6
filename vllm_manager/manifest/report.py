"""Manifest errors as plain text for people."""

from vllm_manager.errors import ManifestError, ManifestErrors


def render(error: ManifestError) -> str:
    """``file:line:column: field: cause``, the line with a caret, the hint; a blank line between several."""
    if isinstance(error, ManifestErrors):
        return "\n\n".join(render(inner) for inner in error.errors)
    place = ":".join(str(part) for part in (error.path, error.line, error.column) if part)
    lines = [": ".join(part for part in (place, error.field, error.cause) if part)]
    if error.source is not None and error.line is not None:
        margin = f"{error.line:>5} | "
        lines.append(margin + error.source)
        if error.column is not None and error.column <= len(error.source) + 1:
            # Tabs are kept, so that the caret stands below its character whatever their width.
            indent = "".join("\t" if c == "\t" else " " for c in error.source[: error.column - 1])
            lines.append(" " * (len(margin) - 2) + "| " + indent + "^")
    if error.hint is not None:
        lines.append(f"hint: {error.hint}")
    return "\n".join(lines)
