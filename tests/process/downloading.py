"""What the tests of downloads share: a model on the fake hub, and looks at the download while it runs."""

import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from box import eventually

from tests.fakes.hub import etag_of
from vllm_manager.errors import DownloadError
from vllm_manager.weights import cache
from vllm_manager.weights.fetch import pull
from vllm_manager.weights.repositories import need_of

MODEL = "org/llama"
SHARD = "model-00001-of-00002.safetensors"
OTHER = "model-00002-of-00002.safetensors"
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"


def get(environment, name=MODEL, on_progress=lambda download: None):
    (fetched,) = pull([need_of(name, environment)], environment, on_progress)
    return fetched


def failure(environment, name=MODEL) -> DownloadError:
    with pytest.raises(DownloadError) as caught:
        get(environment, name)
    assert TOKEN not in repr(caught.value.payload())
    return caught.value


def part(environment, hub, path=SHARD) -> Path:
    need = need_of(MODEL, environment)
    return cache.partial(need, etag_of(hub.repositories[MODEL].files[path]))


def workers(parent: int | None = None) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(parent).children():
        with suppress(psutil.Error):
            if "vllm_manager.weights.worker" in child.cmdline():
                found.append(child)
    return found


def held(environment, hub, size=600_000, path=SHARD):
    """Wait until the hub stops in the middle of a file."""
    eventually(lambda: cache.size_of(part(environment, hub, path)) >= size, "a part has arrived")
    return cache.size_of(part(environment, hub, path))


@contextmanager
def beside(function, *arguments):
    """Run something in a thread; the result or error is in the list once the block is left."""
    results = []

    def run():
        try:
            results.append(function(*arguments))
        except DownloadError as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield results
    finally:
        thread.join(60)
        assert not thread.is_alive()
