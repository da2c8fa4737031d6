"""The certificate and the key that a deployment serves TLS with.

vLLM opens them when everything else is done, a minute after the start (uvicorn's config.py, with the same
``load_cert_chain``).
"""

import os
import ssl
import stat
from collections.abc import Iterator, Mapping
from typing import Any

from vllm_manager.manifest.explain import Problem


class _PasswordWanted(Exception):
    pass


def problems(args: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with the files and the ciphers."""
    files = {name: args.get(name) for name in ("ssl-keyfile", "ssl-certfile")}
    unreadable = [problem for name, path in files.items() if (problem := _unreadable(name, path))]
    yield from unreadable
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key, certificate = files.values()
    if isinstance(key, str) and isinstance(certificate, str) and not unreadable:
        yield from _mismatch(context, key, certificate)
    ciphers = args.get("ssl-ciphers")
    if isinstance(ciphers, str):
        try:
            context.set_ciphers(ciphers)
        except ssl.SSLError:
            hint = "a list as `openssl ciphers` takes it, such as ECDHE+AESGCM"
            yield Problem(path=("args", "ssl-ciphers"), cause="selects no cipher", hint=hint)


def _unreadable(name: str, path: Any) -> Problem | None:
    if not isinstance(path, str):
        return None
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            cause = f"{path} is no regular file"
    except FileNotFoundError:
        cause = f"there is no such file: {path}"
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        cause = f"{path} can't be read: {getattr(error, 'strerror', None) or error}"
    return Problem(path=("args", name), cause=cause, hint="the path is relative to the manifest")


def _mismatch(context: ssl.SSLContext, key: str, certificate: str) -> Iterator[Problem]:
    def refuse() -> str:
        raise _PasswordWanted

    try:
        context.load_cert_chain(certificate, key, password=refuse)
    except _PasswordWanted:
        cause, hint = (
            "the key is encrypted, and vLLM can't be told its password",
            "decrypt it: openssl pkey -in …",
        )
        yield Problem(path=("args", "ssl-keyfile"), cause=cause, hint=hint)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            cause, hint = (
                "isn't the key of the certificate in ssl-certfile",
                "name the two that belong together",
            )
            yield Problem(path=("args", "ssl-keyfile"), cause=cause, hint=hint)
            return
        wrong = next((name for name, path in _pem(certificate, key) if not path), "ssl-certfile")
        cause = f"OpenSSL can't use it: {error.reason or error}"
        yield Problem(
            path=("args", wrong), cause=cause, hint="both files are PEM, the certificate's chain in order"
        )
    except OSError as error:
        cause = f"can't be used: {error.strerror or error}"
        yield Problem(path=("args", "ssl-certfile"), cause=cause)


def _pem(certificate: str, key: str) -> Iterator[tuple[str, bool]]:
    """Which of the files look like what they should be."""
    for name, path, mark in (
        ("ssl-certfile", certificate, b"-BEGIN CERTIFICATE-"),
        ("ssl-keyfile", key, b"PRIVATE KEY-"),
    ):
        with open(path, "rb") as file:
            yield name, mark in file.read(1 << 20)
