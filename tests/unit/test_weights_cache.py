import json
import os

import pytest

from vllm_manager.weights import cache
from vllm_manager.weights.cache import HubFile, Listing
from vllm_manager.weights.wanted import Need, Part

COMMIT = "c" * 40
FILES = {
    "config.json": b"{}",
    "model.safetensors.index.json": json.dumps({"weight_map": {"a": "m1.safetensors"}}).encode(),
    "m1.safetensors": b"weights",
}


@pytest.fixture
def need(tmp_path):
    return Need(repository="org/name", cache_dir=str(tmp_path))


@pytest.fixture
def filled(need):
    """A snapshot as the hub's library leaves it, on the branch main."""
    for number, (path, data) in enumerate(FILES.items()):
        blob = cache.blob(need, f"{number:040}")
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link = cache.snapshot(need, COMMIT) / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    cache.point(need, COMMIT)
    return need


def remember(need, **sizes):
    files = tuple(HubFile(path=p, size=sizes.get(p, len(d))) for p, d in FILES.items())
    cache.remember(need, Listing(commit=COMMIT, files=files))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HOME": "/h"}, "/h/.cache/huggingface/hub"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"HOME": "/h", "HF_HOME": "~/hf"}, "/h/hf/hub"),
        ({"HF_HOME": "/hf", "HUGGINGFACE_HUB_CACHE": "/old"}, "/old"),
        ({"HF_HOME": "/hf", "HF_HUB_CACHE": "$BIG/hub", "BIG": "/big"}, "/big/hub"),
    ],
)
def test_the_cache_is_where_the_hub_s_library_has_it(environment, expected):
    assert cache.default_cache_dir(environment) == expected


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_offline_is_a_variable(value, expected):
    assert cache.offline({"HF_HUB_OFFLINE": value}) is expected
    assert cache.offline({"TRANSFORMERS_OFFLINE": value}) is expected


def test_a_whole_snapshot_is_complete_with_and_without_a_listing(filled):
    before = cache.complete(filled)
    remember(filled)
    assert before == cache.complete(filled)
    assert before.commit == COMMIT
    assert before.bytes == sum(map(len, FILES.values()))


@pytest.mark.parametrize("path", ["config.json", "m1.safetensors"])
def test_a_file_that_was_deleted_is_noticed(filled, path):
    remember(filled)
    (cache.snapshot(filled, COMMIT) / path).unlink()
    assert cache.complete(filled) is None


@pytest.mark.parametrize("path", ["config.json", "m1.safetensors"])
@pytest.mark.parametrize("listed", [True, False])
def test_a_blob_that_was_deleted_is_noticed(filled, path, listed):
    if listed:
        remember(filled)
    (cache.snapshot(filled, COMMIT) / path).resolve().unlink()
    assert cache.complete(filled) is None


def test_a_file_of_another_size_is_noticed(filled):
    remember(filled, **{"m1.safetensors": 8})
    assert cache.complete(filled) is None


def test_without_a_listing_the_index_tells_what_is_missing(filled):
    (cache.snapshot(filled, COMMIT) / "m1.safetensors").unlink()
    assert cache.complete(filled) is None


def test_an_unreadable_listing_counts_as_none(filled):
    remember(filled)
    (cache.folder(filled) / "vllm-manager" / f"{COMMIT}.json").write_text("{")
    assert cache.complete(filled) is not None


def test_another_revision_or_repository_is_not_there(filled):
    for other in ({"revision": "v2"}, {"revision": "d" * 40}, {"repository": "org/other"}):
        wanted = Need(**({"repository": "org/name", "cache_dir": filled.cache_dir} | other))
        assert cache.complete(wanted) is None


def test_a_commit_is_found_without_a_branch(filled):
    assert cache.complete(Need(repository="org/name", cache_dir=filled.cache_dir, revision=COMMIT))


def test_a_need_without_weights_is_complete_without_them(filled):
    (cache.snapshot(filled, COMMIT) / "m1.safetensors").unlink()
    assert cache.complete(Need(repository="org/name", cache_dir=filled.cache_dir, part=Part.PLAIN))


def test_names_of_blobs_must_be_hashes(need):
    with pytest.raises(ValueError, match="no hash"):
        cache.blob(need, "../../x")
