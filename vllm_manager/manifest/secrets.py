"""The value of a deployment's key, which never enters the deployment itself."""

import os
import stat
from collections.abc import Mapping

from vllm_manager.manifest.loaded import Loaded
from vllm_manager.manifest.model import EnvRef, FileRef

_LENGTH_LIMIT = 4096


def resolve_key(loaded: Loaded, environ: Mapping[str, str]) -> str | None:
    """The key that a manifest gives, or None where it is to be generated or there is none.

    Args:
        loaded: The manifest.
        environ: The environment that ``{env: NAME}`` means, which is that of whoever runs `up`.

    Raises:
        ManifestFieldError: The variable or the file isn't there or is empty, or the key can't be sent.
    """
    reference = loaded.deployment.api_key
    if isinstance(reference, EnvRef):
        where = ("api_key", "env")
        key = environ.get(reference.env, "")
        if not key:
            state = "empty" if reference.env in environ else "not set"
            raise loaded.error(
                where,
                f"the environment variable {reference.env} is {state}",
                f"export {reference.env}=… before `up`, or write `api_key: generate`",
            )
    elif isinstance(reference, FileRef):
        where = ("api_key", "file")
        try:
            key = _read(reference.file)
        except OSError as error:
            raise loaded.error(
                where,
                f"the key file {reference.file} can't be read: {error.strerror or error}",
                "the path is relative to the manifest",
            ) from None
        if not key:
            raise loaded.error(where, f"the key file {reference.file} is empty", "put the key into it")
    else:
        return loaded.literal_key if reference == "given" else None
    if flaw := key_flaw(key):
        raise loaded.error(where, f"the key {flaw}", "a key is one word of printable ASCII characters")
    return key


def key_flaw(key: str) -> str | None:
    """Why the text can't be sent in an Authorization header, or None. Doesn't quote it."""
    if not key:
        return "is empty"
    if any(character.isspace() for character in key):
        return "holds spaces or line breaks"
    if not all("!" <= character <= "~" for character in key):
        return "holds characters that can't be sent in a header"
    return f"is longer than {_LENGTH_LIMIT} characters" if len(key) > _LENGTH_LIMIT else None


def _read(path: str) -> str:
    # Opened without blocking, since a FIFO without a writer would never answer.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError("isn't a regular file")
        content = file.read(_LENGTH_LIMIT + 3)
    # Undecodable bytes stay in the text as surrogates, which key_flaw refuses.
    return content.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
