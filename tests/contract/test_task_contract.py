"""What vllm-manager relies on in vLLM 0.32 for each task, checked against the real one and the fake alike."""

import ast
import json
import math
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from vllm_instances import MODEL, MODELS, Engine, Instance, sound_libraries, tone

pytestmark = pytest.mark.timeout(400)

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
EMBEDDINGS, CLASSIFY, POOLING = "/v1/embeddings", "/classify", "/pooling"
SCORE, RERANK = ("/score", "/v1/score"), ("/rerank", "/v1/rerank", "/v2/rerank")
TRANSCRIPTIONS = "/v1/audio/transcriptions"
# The routes that tell tasks apart.
TELLING = {CHAT, COMPLETION, EMBEDDINGS, CLASSIFY, POOLING, *SCORE, *RERANK, TRANSCRIPTIONS}
POOLS = ("--runner", "pooling", "--convert")
PAIR = {"text_1": "a", "text_2": ["b", "a"]}

Serve = Callable[..., Any]


@pytest.fixture
def serve(engine: Engine, tmp_path: Path) -> Serve:
    """Starts an instance that listens."""

    @contextmanager
    def begin(*flags: str, **options: Any) -> Iterator[Instance]:
        with engine.start(tmp_path, *flags, knobs={"startup": 0.05}, **options) as instance:
            instance.wait_until_open()
            yield instance

    return begin


def supported(instance: Instance) -> set[str]:
    """What its log says that it supports, in any order."""
    found = re.search(r"\] Supported tasks: (\[.*\])$", instance.stdout, re.MULTILINE)
    assert found
    return set(ast.literal_eval(found[1]))


def routes(instance: Instance) -> set[str]:
    """Those that tell its task, in the log and in its own description alike."""
    logged = set(re.findall(r"\] Route: (\S+), Methods: .*POST", instance.stdout)) & TELLING
    assert set(instance.ask("GET", "/openapi.json").json["paths"]) & TELLING == logged
    return logged


def ask(instance: Instance, path: str, **body: Any) -> Any:
    answer = instance.ask("POST", path, {"model": "tiny", **body})
    assert answer.status == 200, answer.text
    return answer.json


def error(instance: Instance, path: str, **body: Any) -> tuple[int, Any]:
    answer = instance.ask("POST", path, {"model": "tiny", **body})
    return answer.status, answer.json


def finite(values: Any) -> bool:
    return bool(values) and all(isinstance(value, float) and math.isfinite(value) for value in values)


def test_an_embedding_model_embeds_scores_and_pools(serve: Serve) -> None:
    with serve(*POOLS, "embed") as instance:
        assert supported(instance) == {"embed", "token_embed"}
        assert routes(instance) == {EMBEDDINGS, POOLING, *SCORE, *RERANK}
        assert error(instance, CHAT, messages=[{"role": "user", "content": "hi"}]) == (
            404, {"detail": "Not Found"}
        )  # fmt: skip
        answer = ask(instance, EMBEDDINGS, input=["a", "b"])
        assert (answer["object"], answer["model"]) == ("list", "tiny")
        assert [row["index"] for row in answer["data"]] == [0, 1]
        for row in answer["data"]:
            assert finite(row["embedding"])
            assert math.isclose(math.hypot(*row["embedding"]), 1, abs_tol=0.01)
        assert answer["usage"]["prompt_tokens"] > 0
        assert finite(ask(instance, POOLING, input="a")["data"][0]["data"])
        assert finite([row["score"] for row in ask(instance, "/score", **PAIR)["data"]])
        status, body = error(instance, EMBEDDINGS, input=[])
        assert (status, body["error"]["message"]) == (400, "You must pass at least one prompt")
        status, body = error(instance, EMBEDDINGS, model="nope", input="a")
        assert (status, body["error"]["message"]) == (404, "The model `nope` does not exist.")
        status, body = error(instance, EMBEDDINGS, input="a b " * 500)
        assert (status, body["error"]["param"]) == (400, "input_tokens")


def test_a_classifier_with_one_label_scores_and_reranks(serve: Serve) -> None:
    with serve(*POOLS, "classify", "--hf-overrides", '{"num_labels": 1}') as instance:
        assert supported(instance) == {"classify", "token_classify"}
        assert routes(instance) == {CLASSIFY, POOLING, *SCORE, *RERANK}
        for path in SCORE:
            rows = ask(instance, path, **PAIR)["data"]
            assert [row["index"] for row in rows] == [0, 1]
            assert finite([row["score"] for row in rows])
        documents = ["a", "b", "c"]
        for path in RERANK:
            answer = ask(instance, path, query="a", documents=documents)
            assert sorted(row["index"] for row in answer["results"]) == [0, 1, 2]
            scores = [row["relevance_score"] for row in answer["results"]]
            assert finite(scores)
            assert scores == sorted(scores, reverse=True)
            for row in answer["results"]:
                assert row["document"]["text"] == documents[row["index"]]
        assert len(ask(instance, "/v1/rerank", query="a", documents=documents, top_n=2)["results"]) == 2
        status, body = error(instance, "/v1/rerank", query="a", documents=[])
        assert (status, body["error"]["type"]) == (400, "BadRequestError")
        verdict = ask(instance, CLASSIFY, input="a")["data"][0]
        assert (verdict["num_classes"], len(verdict["probs"])) == (1, 1)


def test_a_classifier_with_several_labels_has_no_score(serve: Serve) -> None:
    with serve(*POOLS, "classify", "--hf-overrides", '{"num_labels": 3}') as instance:
        assert supported(instance) == {"classify", "token_classify"}
        assert routes(instance) == {CLASSIFY, POOLING}
        assert error(instance, "/score", **PAIR) == (404, {"detail": "Not Found"})
        rows = ask(instance, CLASSIFY, input=["a", "b"])["data"]
        assert [(row["index"], row["num_classes"]) for row in rows] == [(0, 3), (1, 3)]
        for row in rows:
            assert row["label"].startswith("LABEL_")
            assert math.isclose(sum(row["probs"]), 1, abs_tol=0.01)


def test_a_pooler_for_tokens_pools_and_scores_but_has_no_embeddings(serve: Serve) -> None:
    with serve(*POOLS, "embed", "--pooler-config", '{"task": "token_embed"}') as instance:
        # Neither the log nor the routes tell it from an embedding model; only its answer does.
        assert supported(instance) == {"embed", "token_embed"}
        assert routes(instance) == {EMBEDDINGS, POOLING, *SCORE, *RERANK}
        status, body = error(instance, EMBEDDINGS, input="a")
        assert (status, body["error"]["message"]) == (501, "The model does not support Embeddings API")
        assert body["error"]["type"] == "NotImplementedError"
        tokens = ask(instance, POOLING, input="several words")["data"][0]["data"]
        assert len(tokens) > 1
        assert all(map(finite, tokens))
        assert finite([row["score"] for row in ask(instance, "/score", **PAIR)["data"]])


def adapter(directory: Path) -> Path:
    """A LoRA adapter of rank 8 for one matrix of the tiny model, all zeros."""
    width, rank = json.loads((MODEL / "config.json").read_text())["hidden_size"], 8
    name = "base_model.model.model.layers.0.self_attn.o_proj.lora_"
    tensors, at = {}, 0
    for part, shape in (("A", [rank, width]), ("B", [width, rank])):
        size = 4 * width * rank
        tensors[f"{name}{part}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(tensors).encode()
    directory.mkdir()
    (directory / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(at))
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["o_proj"], "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def test_a_model_without_a_template_completes_and_serves_its_adapters(serve: Serve, tmp_path: Path) -> None:
    path = adapter(tmp_path / "adapter")
    flags = ("--enable-lora", "--lora-modules", f"polite={path}", "--max-lora-rank", "8")
    with serve(*flags, model=MODELS / "tiny-base") as instance:
        assert supported(instance) == {"generate"}
        assert routes(instance) == {CHAT, COMPLETION}
        status, body = error(instance, CHAT, messages=[{"role": "user", "content": "hi"}])
        assert status == 400
        assert "you must provide a chat template" in body["error"]["message"]
        assert ask(instance, COMPLETION, prompt="hi", max_tokens=1)["usage"]["completion_tokens"] == 1
        models = instance.ask("GET", "/v1/models").json["data"]
        assert [model["id"] for model in models] == ["tiny", "tiny-alias", "polite"]
        assert (models[2]["root"], models[2]["parent"]) == (str(path), "tiny")
        answer = instance.ask("POST", COMPLETION, {"model": "polite", "prompt": "hi", "max_tokens": 1}).json
        assert (answer["model"], answer["usage"]["completion_tokens"]) == ("polite", 1)


def test_a_speech_model_transcribes(
    serve: Serve, engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    env = sound_libraries(engine.python, tmp_path_factory.mktemp("sound")) if engine.kind == "vllm" else {}
    with serve("--max-model-len", "64", model=MODELS / "tiny-whisper", env=env) as instance:
        assert supported(instance) == {"transcription"}
        assert routes(instance) == {TRANSCRIPTIONS}
        short = {"model": "tiny", "max_completion_tokens": "1"}
        answer = instance.upload(TRANSCRIPTIONS, short, tone(0.5))
        assert answer.status == 200, answer.text
        assert isinstance(answer.json["text"], str)
        assert answer.json["usage"] == {"type": "duration", "seconds": 1}
        fields = short | {"language": "en", "response_format": "verbose_json"}
        verbose = instance.upload(TRANSCRIPTIONS, fields, tone(0.5)).json
        assert (verbose["duration"], verbose["language"]) == (0.5, "en")
        assert isinstance(verbose["text"], str)
        for fields, sound, message in (
            (
                {"model": "nope"},
                tone(0.1),
                "The model `nope` does not exist. Valid aliases: tiny, tiny-alias.",
            ),
            ({"language": "xx"}, tone(0.1), "Unsupported language: 'xx'.  Must be one of ["),
            ({}, b"no sound", "Invalid or corrupted audio data."),
        ):
            refusal = instance.upload(TRANSCRIPTIONS, fields, sound)
            assert refusal.status == (404 if "model" in fields else 400)
            assert refusal.json["error"]["message"].startswith(message)
        status, body = error(instance, TRANSCRIPTIONS)
        assert (status, body["error"]["param"]) == (400, "body.file")
