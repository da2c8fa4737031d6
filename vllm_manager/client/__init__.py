"""The Python client of one model; ``vllm_manager.registry`` hands it out by name.

Importing this package imports httpx, which only it does.
"""

from vllm_manager.client.async_client import AsyncClient, AsyncTextStream
from vllm_manager.client.sync_client import Client, TextStream
from vllm_manager.client.values import (
    ChatResponse,
    Classification,
    ClassificationResponse,
    CompletionResponse,
    EmbeddingResponse,
    PoolingResponse,
    Prompt,
    RerankResponse,
    RerankResult,
    ScoreResponse,
    Sound,
    TextChunk,
    Texts,
    TranscriptionResponse,
    Usage,
)

__all__ = [
    "AsyncClient",
    "AsyncTextStream",
    "ChatResponse",
    "Classification",
    "ClassificationResponse",
    "Client",
    "CompletionResponse",
    "EmbeddingResponse",
    "PoolingResponse",
    "Prompt",
    "RerankResponse",
    "RerankResult",
    "ScoreResponse",
    "Sound",
    "TextChunk",
    "TextStream",
    "Texts",
    "TranscriptionResponse",
    "Usage",
]
