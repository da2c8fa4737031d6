"""Questions to a running instance over HTTP: which models, does it produce a token, is it busy."""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

from vllm_manager import warm_ups
from vllm_manager.errors import WarmUpFailed
from vllm_manager.tasks import candidates
from vllm_manager.types import Task

MODELS_TIMEOUT = 10.0

# vLLM's own (v1/metrics/loggers.py, 0.32). The iterations are counted for every kind of model.
_GAUGES = frozenset({"vllm:num_requests_running", "vllm:num_requests_waiting"})
_COUNTERS = frozenset(
    {"vllm:iteration_tokens_total_count", "vllm:prompt_tokens_total", "vllm:generation_tokens_total"}
)
_METRIC = re.compile(r"^(vllm:\w+)\{([^}]*)\} (\S+)$", re.M)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What an instance's own metrics say at one moment.

    Attributes:
        requests: Running and queued.
        progress: A figure that moves whenever the engine has computed something.
        asleep: Whether it was put to sleep, and so computes nothing by intent.
    """

    requests: float
    progress: float
    asleep: bool = False


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
        # A certificate needn't be made out to the address in use; whose socket it is gets checked instead.
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(ssl=False),
        )
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
        for task in candidates(supported_tasks):
            status, body = await self._ask(task, model)
            if warm_ups.offered(task, status, body):
                warm_ups.check(task, status, body)
                return task
        raise WarmUpFailed(
            cause=f"no warm-up is known for a model of the task {', '.join(supported_tasks) or 'unknown'}",
            hint="set `readiness: {warm_up: false}` to accept its HTTP answer alone",
            permanent=True,
        )

    async def canary(self, model: str, task: Task, timeout: float) -> bool:
        """Whether a smallest real request gets a sign of life within so many seconds.

        A refusal (4xx, or 503 from a busy instance) is one: nothing was computed, and nothing hung.
        """
        try:
            async with asyncio.timeout(timeout):
                warm_ups.check(task, *await self._ask(task, model))
        except WarmUpFailed as error:
            return error.status is not None and (400 <= error.status < 500 or error.status == 503)
        except TimeoutError:
            return False
        return True

    async def load(self, timeout: float = MODELS_TIMEOUT) -> Load | None:
        """What its metrics say; None where they can't be read within so many seconds."""
        try:
            status, body = await self._request("GET", "/metrics", timeout=timeout)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None
        figures = _figures(str(body))
        if status != 200 or not figures:
            return None
        return Load(
            requests=sum(value for name, _, value in figures if name in _GAUGES),
            progress=sum(value for name, _, value in figures if name in _COUNTERS),
            asleep=any(
                name == "vllm:engine_sleep_state" and value and 'sleep_state="awake"' not in labels
                for name, labels, value in figures
            ),
        )

    async def _ask(self, task: Task, model: str) -> tuple[int, Any]:
        warm_up = warm_ups.WARM_UPS[task]
        fields = {"model": model, **warm_up.body}
        content: dict[str, Any] = {"data": _form(fields)} if warm_up.with_sound else {"json": fields}
        try:
            return await self._request("POST", warm_up.path, timeout=WARM_UP_TIMEOUT, **content)
        except TimeoutError as error:
            raise WarmUpFailed(
                cause=f"{warm_up.name} got no answer within {WARM_UP_TIMEOUT:g} s",
                hint="kernels may still be compiling, or the engine hangs; the log may say which",
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise WarmUpFailed(
                cause=f"the connection broke during {warm_up.name}: {error}", hint="the log says what it met"
            ) from error

    async def _request(self, method: str, path: str, *, timeout: float, **content: Any) -> tuple[int, Any]:
        assert self._session is not None  # noqa: S101 - used inside its own context only
        limit = aiohttp.ClientTimeout(total=timeout)
        async with self._session.request(method, self._root + path, timeout=limit, **content) as response:
            if response.content_type == "application/json":
                return response.status, await response.json()
            return response.status, await response.text()


def _figures(metrics: str) -> list[tuple[str, str, float]]:
    """Name, labels and value of vLLM's metrics."""
    return [(name, labels, float(value)) for name, labels, value in _METRIC.findall(metrics)]


def _form(fields: Mapping[str, Any]) -> aiohttp.FormData:
    form = aiohttp.FormData({name: str(value) for name, value in fields.items()})
    form.add_field("file", warm_ups.sound(), filename="sound.wav", content_type="audio/wav")
    return form
