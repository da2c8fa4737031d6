"""Questions to a running instance over HTTP: which models, does it produce a token, is it busy."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

from vllm_manager.errors import WarmUpFailed
from vllm_manager.types import Task

MODELS_TIMEOUT = 10.0
WARM_UP_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """What ``/v1/models`` lists.

    Attributes:
        names: The served names.
        max_model_len: Tokens, of the first.
    """

    names: tuple[str, ...]
    max_model_len: int | None


class HttpProbe:
    """Probes of one instance; a context manager that owns its connections.

    Args:
        root_url: Such as ``http://127.0.0.1:8000``.
        api_key: Sent where the instance asks for one.
    """

    def __init__(self, root_url: str, api_key: str | None) -> None:
        self._root = root_url
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # trust_env stays off: a proxy of the environment has no business on the way to our own instance.
        self._session = aiohttp.ClientSession(headers=self._headers, cookie_jar=aiohttp.DummyCookieJar())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def models(self) -> Models | None:
        """What it serves; None while nobody listens, or whoever listens isn't up to it yet."""
        try:
            status, body = await self._request("GET", "/v1/models", timeout=MODELS_TIMEOUT)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None
        if status != 200 or not isinstance(body, dict):
            return None
        data = [item for item in body.get("data") or () if isinstance(item, dict)]
        return Models(
            names=tuple(str(item.get("id")) for item in data),
            max_model_len=next((item.get("max_model_len") for item in data), None),
        )

    async def warm_up(self, model: str, supported_tasks: tuple[str, ...]) -> Task:
        """One smallest real request, which proves that the model computes.

        Args:
            model: The served name to send.
            supported_tasks: As vLLM logged them; empty where it didn't.

        Returns:
            What the model turned out to be for.

        Raises:
            WarmUpFailed: It answered with an error, with nothing, or not in time.
        """
        if "embed" in supported_tasks:
            return await self._embed(model)
        if "classify" in supported_tasks:
            return await self._classify(model)
        if supported_tasks and "generate" not in supported_tasks:
            raise WarmUpFailed(
                cause=f"no warm-up is known for a model of the task {', '.join(supported_tasks)}",
                hint="set readiness: {warm_up: false} to accept its HTTP answer alone",
                permanent=True,
            )
        return await self._generate(model)

    async def _generate(self, model: str) -> Task:
        chat = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        status, body = await self._ask("/v1/chat/completions", chat)
        task = Task.CHAT
        if status == 400 and "chat template" in _message(body):
            status, body = await self._ask(
                "/v1/completions", {"model": model, "prompt": "hi", "max_tokens": 1}
            )
            task = Task.COMPLETION
        self._check(status, body)
        usage = body.get("usage") if isinstance(body, dict) else None
        tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
        # The text may well be empty (a token that decodes to nothing); the count is the proof.
        if not isinstance(tokens, int) or tokens < 1:
            raise WarmUpFailed(cause=f"the 1-token request yielded no token (usage: {usage})", status=status)
        return task

    async def _embed(self, model: str) -> Task:
        status, body = await self._ask("/v1/embeddings", {"model": model, "input": "hi"})
        self._check(status, body)
        if not _all_finite(_first(body).get("embedding")):
            raise WarmUpFailed(cause="the embedding of the warm-up isn't a list of finite numbers")
        return Task.EMBED

    async def _classify(self, model: str) -> Task:
        status, body = await self._ask("/classify", {"model": model, "input": "hi"})
        self._check(status, body)
        if not _all_finite(_first(body).get("probs")):
            raise WarmUpFailed(cause="the classification of the warm-up isn't a list of finite numbers")
        return Task.CLASSIFY

    async def requests_running(self) -> float | None:
        """Requests that it runs or has queued, by its own gauges; None where they can't be read."""
        try:
            status, body = await self._request("GET", "/metrics", timeout=MODELS_TIMEOUT)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
        found = re.findall(r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} (\S+)$", str(body), re.M)
        return sum(float(value) for value in found) if status == 200 and found else None

    async def _ask(self, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        try:
            return await self._request("POST", path, json=body, timeout=WARM_UP_TIMEOUT)
        except TimeoutError as error:
            raise WarmUpFailed(cause=f"no token within {WARM_UP_TIMEOUT:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise WarmUpFailed(cause=f"the connection broke during the 1-token request: {error}") from error

    @staticmethod
    def _check(status: int, body: Any) -> None:
        if status != 200:
            raise WarmUpFailed(
                cause=f"the 1-token request failed with HTTP {status}: {_message(body)[:300]}", status=status
            )

    async def _request(
        self, method: str, path: str, *, timeout: float, json: Mapping[str, Any] | None = None
    ) -> tuple[int, Any]:
        assert self._session is not None  # noqa: S101 - used inside its own context only
        limit = aiohttp.ClientTimeout(total=timeout)
        async with self._session.request(method, self._root + path, json=json, timeout=limit) as response:
            if response.content_type == "application/json":
                return response.status, await response.json()
            return response.status, await response.text()


def _message(body: Any) -> str:
    if isinstance(body, dict):
        error = body.get("error", body)
        return str(error.get("message", error) if isinstance(error, dict) else error)
    return str(body)


def _first(body: Any) -> Mapping[str, Any]:
    data = body.get("data") if isinstance(body, dict) else None
    return data[0] if isinstance(data, list) and data and isinstance(data[0], dict) else {}


def _all_finite(values: Any) -> bool:
    return (
        isinstance(values, list)
        and bool(values)
        and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    )
