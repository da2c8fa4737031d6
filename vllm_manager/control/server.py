"""The control API's server: translates requests into calls of the manager."""

import asyncio
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import web

from vllm_manager import __version__
from vllm_manager.codec import encode
from vllm_manager.errors import BadControlRequest, ControlError, ManagerError, ManifestError, NotFound
from vllm_manager.manager import Manager
from vllm_manager.manifest.model import Deployment
from vllm_manager.paths import private_dir

log = logging.getLogger(__name__)

WATCH_HEARTBEAT = 10.0
"""Seconds after which an unchanged watch says so, which is how a vanished watcher is noticed."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except NotFound as error:
        return _failure(404, error)
    except (ManifestError, BadControlRequest) as error:
        return _failure(400, error)
    except ManagerError as error:
        return _failure(409, error)
    except web.HTTPException as error:
        return _failure(
            error.status, BadControlRequest(cause=f"{request.method} {request.path}: {error.reason}")
        )
    except Exception as error:
        log.exception("%s %s", request.method, request.path)
        return _failure(500, ManagerError(cause=f"internal error in the supervisor: {error!r}"))


def _failure(status: int, error: ManagerError) -> web.Response:
    return web.json_response(encode(error.payload()), status=status)


class ControlServer:
    """Serves the control API on a unix socket.

    Args:
        manager: What it controls.
        shutdown: Called to end the supervisor; the argument says whether to stop the instances.
    """

    def __init__(self, manager: Manager, shutdown: Callable[[bool], None]) -> None:
        self._manager = manager
        self._shutdown = shutdown
        self._runner: web.AppRunner | None = None
        # Moves at the beginning and at the end of each request: a still figure means that nobody asks.
        self.requests = 0

    async def start(self, path: Path) -> None:
        """Listen; call with the supervisor's lock held, since it replaces a socket that is there."""
        app = web.Application(middlewares=[self._count, _errors_as_json], client_max_size=4 << 20)
        app.add_routes(
            [
                web.get("/v1/supervisor", self._supervisor),
                web.get("/v1/deployments", self._list),
                web.post("/v1/deployments", self._up),
                web.get("/v1/deployments/{name}", self._status),
                web.get("/v1/deployments/{name}/watch", self._watch),
                web.delete("/v1/deployments/{name}", self._down),
                web.post("/v1/deployments/{name}/start", self._start),
                web.post("/v1/deployments/{name}/stop", self._stop),
                web.post("/v1/deployments/{name}/restart", self._restart),
                web.get("/v1/watch", self._watch_all),
                web.get("/v1/gpus", self._gpus),
                web.post("/v1/shutdown", self._end),
            ]
        )
        # A client that leaves ends its watch at once.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await self.listen(path)

    async def listen(self, path: Path) -> None:
        """Make the socket (anew, when it has vanished)."""
        assert self._runner is not None  # noqa: S101 - after start()
        await web.SockSite(self._runner, _listen(path)).start()

    async def close(self) -> None:
        """Stop listening and end the requests under way."""
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _count(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.requests += 1
        try:
            return await handler(request)
        finally:
            self.requests += 1

    async def _supervisor(self, request: web.Request) -> web.Response:
        return web.json_response({"version": __version__, "pid": os.getpid()})

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response(encode(self._manager.statuses()))

    async def _up(self, request: web.Request) -> web.Response:
        try:
            body: dict[str, Any] = await request.json()
            manifest, source = body["manifest"], str(body["source"])
            api_key, environment = body.get("api_key"), dict(body.get("environment") or {})
            recreate = bool(body.get("recreate"))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise BadControlRequest(cause=f"not a request to bring a deployment up: {error!r}") from error
        decision = await self._manager.up(
            Deployment.from_json(manifest),
            source=source,
            api_key=api_key,
            environment=environment,
            recreate=recreate,
        )
        return web.json_response(encode(decision))

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(encode(self._manager.status(request.match_info["name"])))

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        return await self._stream(request, lambda: self._manager.status(name))

    async def _watch_all(self, request: web.Request) -> web.StreamResponse:
        return await self._stream(request, self._manager.statuses)

    async def _stream(self, request: web.Request, look: Callable[[], Any]) -> web.StreamResponse:
        look()  # an unknown name is answered with 404
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        while True:
            seen = self._manager.changed.version
            try:
                news = look()
            except NotFound as error:
                await response.write(_line(error.payload()))
                return response
            await response.write(_line(encode(news)))
            with suppress(TimeoutError):
                async with asyncio.timeout(WATCH_HEARTBEAT):
                    await self._manager.changed.wait(seen)

    async def _start(self, request: web.Request) -> web.Response:
        decision = await asyncio.shield(self._manager.start(request.match_info["name"]))
        return web.json_response(encode(decision))

    async def _restart(self, request: web.Request) -> web.Response:
        decision = await asyncio.shield(self._manager.restart(request.match_info["name"]))
        return web.json_response(encode(decision))

    async def _stop(self, request: web.Request) -> web.Response:
        now = request.query.get("now") == "1"
        await asyncio.shield(self._manager.stop(request.match_info["name"], now=now))
        return web.json_response({})

    async def _down(self, request: web.Request) -> web.Response:
        # Shielded: a caller that leaves doesn't undo its request.
        now = request.query.get("now") == "1"
        await asyncio.shield(self._manager.down(request.match_info["name"], now=now))
        return web.json_response({})

    async def _gpus(self, request: web.Request) -> web.Response:
        inventory = await self._manager.ledger.inventory()
        leases = self._manager.ledger.leases(inventory)
        return web.json_response({"inventory": encode(inventory), "leases": encode(leases)})

    async def _end(self, request: web.Request) -> web.Response:
        body = await request.json()
        self._shutdown(bool(body.get("stop", True)))
        return web.json_response({})


def _line(data: Any) -> bytes:
    return json.dumps(data).encode() + b"\n"


def _listen(path: Path) -> socket.socket:
    private_dir(path.parent)
    if path.is_socket():
        path.unlink()
    elif path.exists():
        raise ControlError(
            cause=f"{path} is there, and is no socket",
            hint="set VLLM_MANAGER_SOCKET to a path of its own",
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The mode must be right from the first instant, so it comes from the umask and not from a later chmod.
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    listener.listen(128)
    listener.setblocking(False)
    return listener
