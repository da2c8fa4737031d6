"""Every task on the real vLLM with the bundled tiny models: from the manifest through `up` to the client.

Two start at a time: one start takes half a minute on two cores, two together take little longer.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.contract.vllm_instances import sound_libraries
from tests.process.box import MODEL, Box
from vllm_manager import registry
from vllm_manager.client import Client
from vllm_manager.errors import UnsupportedOperation
from vllm_manager.warm_ups import sound

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

START = 300.0
POOLS = {"runner": "pooling", "convert": "embed"}
CLASSIFIES = {"runner": "pooling", "convert": "classify"}


class Tasks:
    """Deployments of the box, by name, and their clients."""

    def __init__(self, box: Box) -> None:
        self.box = box

    def manifest(self, name: str, **fields: Any) -> Path:
        args = {"load-format": "dummy", "enforce-eager": True} | fields.pop("args", {})
        env = {"VLLM_CPU_KVCACHE_SPACE": "1"} | fields.pop("env", {})
        known = {"api_key": "generate", "max_model_len": 512, "args": args, "env": env}
        return self.box.manifest(name, **(known | fields))

    def up(self, *manifests: Path) -> None:
        """Bring these up, and nothing else."""
        if self.box.supervisor_pid() is not None:
            self.box.run("down", "--all", "--now")
        self.box.run("up", *manifests, timeout=START)

    def task(self, name: str) -> str:
        return self.box.ps()[name]["endpoint"]["task"]


@pytest.fixture
def tasks(box: Box, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tasks]:
    monkeypatch.setenv("VLLM_MANAGER_STATE_DIR", str(box.state))
    yield Tasks(box)
    box.run("down", "--all", "--now")


def refused(client: Client, method: str, *arguments: Any) -> str:
    """The hint of a method that the model hasn't."""
    with pytest.raises(UnsupportedOperation) as caught:
        getattr(client, method)(*arguments)
    return caught.value.hint or ""


def finite(values: Any) -> bool:
    return bool(values) and all(math.isfinite(value) for value in values)


def test_embedding_over_tls_and_reranking(tasks: Tasks, tmp_path: Path):
    issued = trustme.CA().issue_cert("box.example")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    files = {"ssl-keyfile": str(tmp_path / "key.pem"), "ssl-certfile": str(tmp_path / "certificate.pem")}
    tasks.up(
        tasks.manifest("embedder", **POOLS, args=files),
        tasks.manifest("reranker", **CLASSIFIES, args={"hf-overrides": {"num_labels": 1}}),
    )
    assert (tasks.task("embedder"), tasks.task("reranker")) == ("embed", "score")
    assert registry.endpoint("embedder").root_url.startswith("https://")
    with registry.client("embedder") as embedder:
        response = embedder.embed(["one", "two", "one"])
        assert [len(vector) for vector in response.vectors] == [64] * 3
        assert all(map(finite, response.vectors))
        assert math.dist(response.vectors[0], response.vectors[2]) < math.dist(*response.vectors[:2])
        assert response.usage.prompt_tokens > 0
        assert embedder.rerank("one", ["two", "one"], top_n=1).results[0].document == "one"
        assert "embed()" in refused(embedder, "chat", "hi")
    with registry.client("reranker") as reranker:
        documents = ["a", "b", "c"]
        results = reranker.rerank("q", documents).results
        assert sorted(result.index for result in results) == [0, 1, 2]
        assert all(documents[result.index] == result.document for result in results)
        assert finite([result.score for result in results])
        assert finite(reranker.score("q", documents).scores)
        assert "rerank()" in refused(reranker, "embed", "hi")


def test_classifying_and_pooling_tokens(tasks: Tasks):
    tasks.up(
        tasks.manifest("classifier", **CLASSIFIES, args={"hf-overrides": {"num_labels": 3}}),
        tasks.manifest("tokens", **POOLS, args={"pooler-config": {"task": "token_embed"}}),
    )
    assert (tasks.task("classifier"), tasks.task("tokens")) == ("classify", "pooling")
    with registry.client("classifier") as classifier:
        for result in classifier.classify(["one", "two"]).results:
            assert (result.label or "").startswith("LABEL_")
            assert math.isclose(sum(result.probabilities), 1, abs_tol=0.01)
            assert len(result.probabilities) == 3
        assert "classify()" in refused(classifier, "rerank", "q", ["a"])
    with registry.client("tokens") as tokens:
        rows = tokens.pooling("several words of text").data[0]
        assert len(rows) > 1
        assert all(map(finite, rows))
        assert finite(tokens.score("q", ["a", "b"]).scores)
        assert "pooling()" in refused(tokens, "embed", "hi")


def test_completing_and_transcribing(
    tasks: Tasks, engine: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
):
    env = sound_libraries(engine, tmp_path_factory.mktemp("sound"))
    whisper = {"model": str(MODEL.parent / "tiny-whisper"), "max_model_len": 64}
    tasks.up(
        tasks.manifest("base", model=str(MODEL.parent / "tiny-base")),
        tasks.manifest("whisper", **whisper, env=env),
    )
    assert (tasks.task("base"), tasks.task("whisper")) == ("completion", "transcription")
    with registry.client("base") as base:
        response = base.complete("once", max_tokens=4, ignore_eos=True)
        assert (response.usage.completion_tokens, response.finish_reason) == (4, "length")
        stream = base.stream_completion("once", max_tokens=4, ignore_eos=True)
        assert "".join(str(chunk) for chunk in stream) == stream.text
        assert (stream.finish_reason, stream.usage.completion_tokens) == ("length", 4)
        assert "complete()" in refused(base, "chat", "hi")
    with registry.client("whisper") as client:
        path = tmp_path / "tone.wav"
        path.write_bytes(sound())
        response = client.transcribe(path, language="en", max_completion_tokens=3)
        assert isinstance(response.text, str)
        assert response.seconds == 1
        assert "transcribe()" in refused(client, "chat", "hi")


def test_a_vllm_that_cannot_read_sound_says_what_it_lacks(tasks: Tasks, engine: Path, tmp_path: Path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text("import sys\nsys.modules |= {'soundfile': None, 'av': None}\n")
    manifest = tasks.manifest(
        "whisper",
        model=str(MODEL.parent / "tiny-whisper"),
        max_model_len=64,
        env={"PYTHONPATH": str(hidden)},
    )
    up = tasks.box.run("up", manifest, exits=6, timeout=START)
    assert "the transcription of a second of sound failed with HTTP 400" in up.stderr
    assert "soundfile and av" in up.stderr
