import json

import pytest

from vllm_manager.client import pooling_wire, wire
from vllm_manager.client.values import Classification, RerankResult
from vllm_manager.errors import InvalidRequest, InvalidResponse
from vllm_manager.types import Endpoint, Phase

READY = Endpoint(deployment="e", model="e", names=("e",), root_url="http://h:1", phase=Phase.READY)
USAGE = {"prompt_tokens": 4, "total_tokens": 4}


def sent(build: wire.RequestBuilder) -> tuple[str, dict]:
    request = build(READY)
    return request.url.removeprefix("http://h:1"), json.loads(request.content)


def reply(**payload) -> wire.Reply:
    return wire.Reply(endpoint=READY, status=200, headers={}, body=json.dumps(payload).encode())


def rows(*rows: dict) -> wire.Reply:
    return reply(data=list(rows), model="e", usage=USAGE)


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (pooling_wire.embedding_request, "/v1/embeddings"),
        (pooling_wire.classification_request, "/classify"),
        (pooling_wire.pooling_request, "/pooling"),
    ],
)
def test_texts_are_sent_as_a_list_and_options_are_passed_on(make, path):
    assert sent(make(("a", "b"), {"priority": 1})) == (
        path, {"model": "e", "input": ["a", "b"], "priority": 1}
    )  # fmt: skip
    assert sent(make("a", {}))[1]["input"] == ["a"]
    with pytest.raises(InvalidRequest):
        make("a", {"stream": True})


def test_rerank_has_two_routes_and_sends_top_n_where_it_is_asked_for():
    first, second = map(sent, pooling_wire.rerank_requests("q", ("a", "b"), 1, {}))

    assert (first[0], second[0]) == ("/v1/rerank", "/rerank")
    assert first[1] == second[1] == {"model": "e", "query": "q", "documents": ["a", "b"], "top_n": 1}
    assert "top_n" not in sent(pooling_wire.rerank_requests("q", ["a"], None, {})[0])[1]


def test_score_compares_the_query_with_each_text():
    for build in pooling_wire.score_requests("q", "a", {}):
        assert sent(build)[1] == {"model": "e", "text_1": "q", "text_2": ["a"]}


def test_vectors_come_in_the_order_of_the_texts():
    response = pooling_wire.embedding_response(
        rows({"index": 1, "embedding": [3.0]}, {"index": 0, "embedding": [1.0, 2]})
    )

    assert response.vectors == ([1.0, 2], [3.0])
    assert (response.usage.prompt_tokens, response.model, response.raw["model"]) == (4, "e", "e")


def test_classes_are_read():
    response = pooling_wire.classification_response(
        rows({"index": 0, "label": "no", "probs": [0.9, 0.1]}, {"index": 1, "label": None, "probs": [0.5]})
    )

    assert response.results == (
        Classification(label="no", probabilities=[0.9, 0.1]),
        Classification(label=None, probabilities=[0.5]),
    )


@pytest.mark.parametrize("data", [[0.1, 0.2], [[0.1], [0.2]]])
def test_what_was_pooled_keeps_its_nesting(data):
    assert pooling_wire.pooling_response(rows({"index": 0, "data": data})).data == (data,)


def test_scores_are_read():
    response = pooling_wire.score_response(rows({"index": 1, "score": 0.5}, {"index": 0, "score": 1}))

    assert response.scores == (1.0, 0.5)


@pytest.mark.parametrize("key", ["relevance_score", "score"])
def test_documents_come_by_relevance_with_their_own_text(key):
    found = [{"index": 0, key: 0.1}, {"index": 2, key: 0.7}, {"index": 1, key: 0.7}]
    response = pooling_wire.rerank_response(reply(results=found, usage=USAGE), ["a", "b", "c"])

    assert response.results == (
        RerankResult(index=1, score=0.7, document="b"),
        RerankResult(index=2, score=0.7, document="c"),
        RerankResult(index=0, score=0.1, document="a"),
    )


@pytest.mark.parametrize("row", [{"index": 2, "score": 1}, {"index": -1, "score": 1}, {"index": 0}, {}, None])
def test_a_result_that_is_about_no_document_is_an_invalid_response(row):
    with pytest.raises(InvalidResponse):
        pooling_wire.rerank_response(reply(results=[row]), ["a", "b"])


def test_two_results_about_one_document_are_an_invalid_response():
    with pytest.raises(InvalidResponse):
        pooling_wire.rerank_response(reply(results=[{"index": 0, "score": 1}] * 2), ["a", "b"])


@pytest.mark.parametrize(
    ("read", "row"),
    [
        (pooling_wire.embedding_response, {"embedding": "AACAPw=="}),
        (pooling_wire.embedding_response, {"embedding": []}),
        (pooling_wire.embedding_response, {"embedding": [None, 1.0]}),
        (pooling_wire.embedding_response, {"other": [1.0]}),
        (pooling_wire.classification_response, {"probs": None}),
        (pooling_wire.pooling_response, {"data": [[]]}),
        (pooling_wire.pooling_response, {"data": "AACAPw=="}),
        (pooling_wire.score_response, {"score": None}),
    ],
)
def test_a_row_without_its_numbers_is_an_invalid_response(read, row):
    with pytest.raises(InvalidResponse):
        read(rows({"index": 0, **row}))


@pytest.mark.parametrize("indices", [[1], [0, 2], [0, 0]])
def test_missing_rows_are_an_invalid_response(indices):
    with pytest.raises(InvalidResponse):
        pooling_wire.score_response(rows(*({"index": index, "score": 1} for index in indices)))


def test_a_200_with_an_error_inside_is_an_invalid_response():
    with pytest.raises(InvalidResponse, match="boom"):
        pooling_wire.embedding_response(reply(error={"message": "boom"}))
