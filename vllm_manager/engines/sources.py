"""Where an engine's packages come from: pip's own configuration, or what was given instead of it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

INDEX_VARIABLE = "VLLM_MANAGER_INDEX_URL"
LINKS_VARIABLE = "VLLM_MANAGER_FIND_LINKS"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallOptions:
    """Where an engine is built from.

    There is no second index: of two, pip takes the higher version of a package, so that whoever may write to
    one of them decides what is installed (dependency confusion).

    Attributes:
        python: The interpreter to build with; None chooses one.
        index_url: A package index instead of pip's configuration; PyTorch's own is still tried after it.
        find_links: Directories with wheels; without ``index_url`` nothing else is asked.
    """

    python: str | None = None
    index_url: str | None = None
    find_links: tuple[Path, ...] = ()

    @property
    def offline(self) -> bool:
        """Whether only directories are looked at."""
        return bool(self.find_links) and self.index_url is None

    def arguments(self) -> list[str]:
        """For pip's command line."""
        links = [word for d in self.find_links for word in ("--find-links", str(d.absolute()))]
        return [*links, "--no-index"] if self.offline else links

    def environment(self, empty: Path, index_url: str | None = None) -> dict[str, str]:
        """For pip's environment; replaces its configuration where something was given.

        Args:
            empty: A directory that holds nothing that the engine wouldn't get anyway.
            index_url: An index to ask instead of all others.
        """
        url = index_url or self.index_url
        if url is None and not self.find_links:
            return {}
        # Set, not unset: variables win over pip's files, where empty ones don't count. And not on the command
        # line, since an index's address may hold a password.
        here = {"PIP_FIND_LINKS": empty.as_uri()}
        return here | ({"PIP_INDEX_URL": url, "PIP_EXTRA_INDEX_URL": url, "PIP_NO_INDEX": "0"} if url else {})


def given(
    environment: Mapping[str, str],
    *,
    python: str | None = None,
    index_url: str | None = None,
    find_links: tuple[Path, ...] = (),
) -> InstallOptions:
    """The options of a command; without an index and directories among them, those of the variables."""
    if index_url is None and not find_links:
        index_url = environment.get(INDEX_VARIABLE) or None
        find_links = tuple(
            Path(entry) for entry in environment.get(LINKS_VARIABLE, "").split(os.pathsep) if entry
        )
    return InstallOptions(python=python, index_url=index_url, find_links=find_links)
