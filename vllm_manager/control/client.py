"""The control API's client: what the command line calls. http.client only, since every command imports it."""

import http.client
import json
import socket
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm_manager.codec import decode
from vllm_manager.errors import ControlError, NoSupervisor, SocketDenied, from_payload
from vllm_manager.types import Decision, GpuInventory, Lease, Status

CONNECT_TIMEOUT = 5.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(CONNECT_TIMEOUT)
            self.sock.connect(str(self._path))
            self.sock.settimeout(None)
        except OSError:
            self.sock.close()
            raise


class ControlClient:
    """Talks to the supervisor behind one socket.

    Every method raises NoSupervisor when nothing answers there, SocketDenied when this user may not ask, and
    otherwise the error that the supervisor reports.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def supervisor(self) -> Mapping[str, Any]:
        """Its version and pid."""
        data: Mapping[str, Any] = self._request("GET", "/v1/supervisor")
        return data

    def running(self) -> bool:
        """Whether a supervisor answers."""
        try:
            self.supervisor()
        except NoSupervisor:
            return False
        return True

    def statuses(self) -> list[Status]:
        """All deployments."""
        return [decode(Status, item) for item in self._request("GET", "/v1/deployments")]

    def status(self, name: str) -> Status:
        """One deployment."""
        return decode(Status, self._request("GET", _path(name)))

    def up(
        self,
        manifest: Mapping[str, Any],
        *,
        source: str,
        api_key: str | None,
        environment: Mapping[str, str],
        recreate: bool = False,
    ) -> Decision:
        """Bring a deployment up; returns what that meant at once, not when it is ready."""
        body = {
            "manifest": manifest,
            "source": source,
            "api_key": api_key,
            "environment": dict(environment),
            "recreate": recreate,
        }
        return decode(Decision, self._request("POST", "/v1/deployments", body))

    def start(self, name: str) -> Decision:
        """Want a deployment running that is known; returns at once."""
        return decode(Decision, self._request("POST", f"{_path(name)}/start", {}))

    def restart(self, name: str) -> Decision:
        """Replace a deployment's instance; returns when the old one is gone, and the new one begins."""
        return decode(Decision, self._request("POST", f"{_path(name)}/restart", {}))

    def stop(self, name: str, *, now: bool = False) -> None:
        """Stop a deployment without forgetting it, and wait until it is stopped."""
        self._request("POST", f"{_path(name)}/stop{'?now=1' if now else ''}", {})

    def watch(self, name: str, timeout: Callable[[], float | None] = lambda: None) -> Iterator[Status]:
        """The deployment's status now and at every change, until the caller has seen enough.

        Args:
            name: The deployment.
            timeout: Seconds to wait for the next line; asked before each. When they are over, the watch ends.

        Raises:
            NotFound: It was taken down meanwhile.
        """
        return (decode(Status, data) for data in self._stream(f"{_path(name)}/watch", timeout))

    def watch_all(self) -> Iterator[list[Status]]:
        """All deployments now and at every change, until the caller has seen enough."""
        return ([decode(Status, item) for item in data] for data in self._stream("/v1/watch"))

    def _stream(self, path: str, timeout: Callable[[], float | None] = lambda: None) -> Iterator[Any]:
        with self._open("GET", path) as (response, connection):
            while True:
                # A timeout of 0 would mean "don't block".
                left = timeout()
                connection.sock.settimeout(None if left is None else max(left, 0.001))
                try:
                    line = response.readline()
                except TimeoutError:
                    return
                if not line:
                    raise NoSupervisor(cause="the supervisor ended", hint="`vllm-manager ps` shows what runs")
                data = json.loads(line)
                if "code" in data:
                    raise from_payload(data)
                yield data

    def down(self, name: str, *, now: bool = False) -> None:
        """Take a deployment down, and wait until it is gone."""
        self._request("DELETE", f"{_path(name)}{'?now=1' if now else ''}")

    def gpus(self) -> tuple[GpuInventory, list[Lease]]:
        """The inventory, and who was promised what of it."""
        data = self._request("GET", "/v1/gpus")
        return decode(GpuInventory, data["inventory"]), [decode(Lease, item) for item in data["leases"]]

    def shutdown(self, *, stop: bool) -> None:
        """End the supervisor, with or without its instances."""
        self._request("POST", "/v1/shutdown", {"stop": stop})

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        with self._open(method, path, body) as (response, _):
            return json.loads(response.read())

    @contextmanager
    def _open(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> Iterator[tuple[http.client.HTTPResponse, _UnixConnection]]:
        connection = _UnixConnection(self.path)
        try:
            headers = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            if response.status != 200:
                raise _failure(response)
            yield response, connection
        except PermissionError as error:
            raise SocketDenied(
                cause=f"no rights to the control socket {self.path}",
                hint="ask as the user who runs the supervisor, or as root",
                path=str(self.path),
            ) from error
        except (FileNotFoundError, ConnectionError, TimeoutError, http.client.HTTPException) as error:
            raise NoSupervisor(
                cause=f"no supervisor answers on {self.path}",
                hint="`vllm-manager up FILE` starts one, `vllm-manager serve` runs one in the foreground",
            ) from error
        except OSError as error:
            raise ControlError(cause=f"{self.path}: {error.strerror or error}") from error
        finally:
            connection.close()


def _path(name: str) -> str:
    return f"/v1/deployments/{urllib.parse.quote(name, safe='')}"


def _failure(response: http.client.HTTPResponse) -> Exception:
    text = response.read()
    try:
        return from_payload(json.loads(text))
    except ValueError:
        return ControlError(cause=f"the supervisor answered HTTP {response.status}: {text[:200]!r}")
