"""The Python client of one model; ``vllm_manager.registry`` hands it out by name.

Importing this package imports httpx, which only it does.
"""

from vllm_manager.client.async_client import AsyncChatStream, AsyncClient
from vllm_manager.client.sync_client import ChatStream, Client
from vllm_manager.client.values import ChatChunk, ChatResponse, Prompt, Usage

__all__ = [
    "AsyncChatStream",
    "AsyncClient",
    "ChatChunk",
    "ChatResponse",
    "ChatStream",
    "Client",
    "Prompt",
    "Usage",
]
