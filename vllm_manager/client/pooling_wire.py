"""Embedding, reranking, scoring, classifying, pooling: their requests and answers. No I/O.

The shapes are those of vLLM 0.32 (``vllm/entrypoints/pooling/*/protocol.py``).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from vllm_manager.client.values import (
    Classification,
    ClassificationResponse,
    EmbeddingResponse,
    PoolingResponse,
    RerankResponse,
    RerankResult,
    ScoreResponse,
    Texts,
)
from vllm_manager.client.wire import Reply, RequestBuilder, operation_request, payload_of, usage_of

T = TypeVar("T")

# Both are vLLM's; the first is the one that its key guards, and that gateways know.
_RERANK = ("/v1/rerank", "/rerank")
# At /v1/score vLLM logs a warning for each request.
_SCORE = ("/score", "/v1/score")


def embedding_request(texts: Texts, options: Mapping[str, Any]) -> RequestBuilder:
    """A vector for each text."""
    return operation_request("embed", "/v1/embeddings", {"input": _listed(texts)}, options)


def classification_request(texts: Texts, options: Mapping[str, Any]) -> RequestBuilder:
    """The classes of each text."""
    return operation_request("classify", "/classify", {"input": _listed(texts)}, options)


def pooling_request(texts: Texts, options: Mapping[str, Any]) -> RequestBuilder:
    """What the model's pooler makes of each text."""
    return operation_request("pooling", "/pooling", {"input": _listed(texts)}, options)


def rerank_requests(
    query: str, documents: Sequence[str], top_n: int | None, options: Mapping[str, Any]
) -> list[RequestBuilder]:
    """The documents by relevance: the same request for each route that may have it."""
    fields: dict[str, Any] = {"query": query, "documents": list(documents)}
    if top_n is not None:
        fields["top_n"] = top_n
    return [operation_request("rerank", path, fields, options) for path in _RERANK]


def score_requests(query: str, texts: Texts, options: Mapping[str, Any]) -> list[RequestBuilder]:
    """A figure for the query with each text; routes as for ``rerank_requests``."""
    fields = {"text_1": query, "text_2": _listed(texts)}
    return [operation_request("score", path, fields, options) for path in _SCORE]


def _listed(texts: Texts) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


# --- answers; all raise as ``wire.payload_of`` does, and InvalidResponse for any other shape ---------------


def embedding_response(reply: Reply) -> EmbeddingResponse:
    """The vectors, in the order of the texts."""
    payload, vectors, known = _rows(reply, lambda row: _row(row["embedding"]))
    return EmbeddingResponse(vectors=vectors, raw=payload, **known)


def classification_response(reply: Reply) -> ClassificationResponse:
    """The classes, in the order of the texts."""

    def read(row: Mapping[str, Any]) -> Classification:
        label = row.get("label")
        return Classification(label=None if label is None else str(label), probabilities=_row(row["probs"]))

    payload, results, known = _rows(reply, read)
    return ClassificationResponse(results=results, raw=payload, **known)


def pooling_response(reply: Reply) -> PoolingResponse:
    """What was pooled, in the order of the texts."""
    payload, data, known = _rows(reply, lambda row: _nested(row["data"]))
    return PoolingResponse(data=data, raw=payload, **known)


def score_response(reply: Reply) -> ScoreResponse:
    """The figures, in the order of the texts."""
    payload, scores, known = _rows(reply, lambda row: float(row["score"]))
    return ScoreResponse(scores=scores, raw=payload, **known)


def rerank_response(reply: Reply, documents: Sequence[str]) -> RerankResponse:
    """The documents that were asked about, the most relevant first."""
    payload = payload_of(reply)
    try:
        rows = [(int(row["index"]), _score_of(row)) for row in payload["results"]]
        indices = [index for index, _ in rows]
        if len(set(indices)) < len(rows) or not set(indices) <= set(range(len(documents))):
            raise ValueError("indices of no document, or twice of one")
        known = _known(payload)
    except (AttributeError, KeyError, TypeError, ValueError):
        reply.error()
    results = tuple(
        RerankResult(index=index, score=score, document=documents[index])
        for index, score in sorted(rows, key=lambda row: (-row[1], row[0]))
    )
    return RerankResponse(results=results, raw=payload, **known)


def _rows(
    reply: Reply, read: Callable[[Mapping[str, Any]], T]
) -> tuple[Mapping[str, Any], tuple[T, ...], dict[str, Any]]:
    """The payload, its rows as ``read`` has them, by index, and what all answers tell."""
    payload = payload_of(reply)
    try:
        rows = sorted(payload["data"], key=lambda row: int(row["index"]))
        if [row["index"] for row in rows] != list(range(len(rows))):
            raise ValueError("rows are missing")
        return payload, tuple(read(row) for row in rows), _known(payload)
    except (AttributeError, KeyError, TypeError, ValueError):
        reply.error()


def _known(payload: Mapping[str, Any]) -> dict[str, Any]:
    return {"usage": usage_of(payload), "model": str(payload.get("model", ""))}


def _score_of(row: Mapping[str, Any]) -> float:
    return float(row["relevance_score"] if "relevance_score" in row else row["score"])


def _row(value: Any) -> list[float]:
    """A list of numbers; what isn't finite comes as null from some encoders."""
    if not isinstance(value, list) or not value or None in value:
        raise TypeError("no list of numbers")
    return value


def _nested(value: Any) -> list[Any]:
    """A list of numbers, or of such lists: one per token."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return [_row(row) for row in value]
    return _row(value)
