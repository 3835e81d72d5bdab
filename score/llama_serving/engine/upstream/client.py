"""HTTP client of the upstream server. The only file of the engine that imports the HTTP library.

No connection is reused. If the server closed an idle one during a write, it would be unknown whether it has read the request.
Requests are retried only if no connection was made, since only then they surely were not read.
"""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx2

from llama_serving.engine.upstream import error_mapping
from llama_serving.engine.upstream.remote import RemoteServer
from llama_serving.errors import SetupError
from llama_serving.trust import distrust, trusted_certificates

CONNECT_S: Final = 5.0
PROBE_S: Final = 10.0
METRICS_S: Final = 2.0
PAUSES_S: Final = (0.1, 0.2, 0.4, 0.8)
"""Between tries to connect, each randomly scaled by 0.5 to 1.5, so that clients do not retry together."""
STALL_S: Final = 300.0
"""Seconds without a byte in the middle of a response, if no deadline comes first."""
LARGEST_EVENT: Final = 16 << 20
"""Bytes. The first event has the prompt's ids."""
LARGEST_REFUSAL: Final = 64 << 10
LARGEST_LIST: Final = 1 << 20


class AwayError(Exception):
    """The server does not respond now, but may later."""


class UpstreamClient:
    """HTTP client of one server.

    Args:
        url: address of the server, without `/v1`.
        key: sent as a bearer token.
        socket: the server's Unix socket; None uses the address in `url`.
        stall_s: seconds without a byte after which a response is given up; None never gives up an open connection.
    """

    def __init__(
        self, url: str, *, key: str | None = None, socket: Path | None = None, stall_s: float | None = STALL_S
    ) -> None:
        self._http = httpx2.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(stall_s, connect=CONNECT_S),
            transport=httpx2.AsyncHTTPTransport(
                uds=None if socket is None else str(socket),
                verify=trusted_certificates(url),
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
                trust_env=False,
            ),
            trust_env=False,  # no proxy of the environment
        )

    async def healthy(self) -> bool:
        """Return whether the server reports that it is healthy."""
        try:
            return (await self._http.get("/health", timeout=PROBE_S)).status_code == 200
        except httpx2.TransportError:
            return False

    async def metrics(self) -> str:
        """Return the server's metrics in Prometheus' text format; empty if it does not give them."""
        try:
            async with self._http.stream("GET", "/metrics", timeout=METRICS_S) as response:
                return (
                    (await _read(response, LARGEST_LIST)).decode("utf-8", "replace")
                    if response.status_code == 200
                    else ""
                )
        except httpx2.TransportError:
            return ""

    async def describe(self, model: str) -> RemoteServer:
        """Return the server's description.

        Raises:
            AwayError: it does not respond or is not ready.
            SetupError: it lacks the model, or is of an unsupported kind.
        """
        try:
            await self._get("/health")
            listed = json.loads(await self._get("/v1/models"))
            return RemoteServer.of(listed, _version(await self._get("/version")), model=model)
        except httpx2.TransportError as error:
            if (why := distrust(error)) is not None:
                raise SetupError(why) from error
            raise AwayError(_first_line(error)) from error
        except ValueError as error:
            raise SetupError("it answers /v1/models with no JSON") from error

    @asynccontextmanager
    async def events(self, body: Mapping[str, Any], *, model: str) -> AsyncIterator[AsyncIterator[str]]:
        """Send a request and yield its events' data. Leaving the block early closes the connection, which cancels the
        server's work.

        Raises:
            ServingError: the server is not reachable, refuses the request, or breaks off.
        """
        response = await self._connected(json.dumps(body).encode())
        try:
            if response.status_code != 200:
                said = await _read(response, LARGEST_REFUSAL)
                retry_after = response.headers.get("Retry-After")
                raise error_mapping.refused(response.status_code, retry_after, _json(said), model=model)
            async with aclosing(_data(response)) as data:
                yield data
        except httpx2.SSEError as error:
            raise error_mapping.malformed("no events, or one that is too long") from error
        except httpx2.TransportError as error:
            raise error_mapping.broken(_first_line(error)) from error
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _connected(self, content: bytes) -> httpx2.Response:
        """Return the response's head. Only connecting is retried."""
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        request = self._http.build_request("POST", "/v1/completions", content=content, headers=headers)
        for pause in (*PAUSES_S, None):
            try:
                return await self._http.send(request, stream=True)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                if pause is None:
                    raise error_mapping.away(_first_line(error)) from error
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
            except httpx2.TransportError as error:
                raise error_mapping.broken(_first_line(error)) from error
        raise AssertionError  # (the last pause is None)

    async def _get(self, path: str) -> bytes:
        async with self._http.stream("GET", path, timeout=PROBE_S) as response:
            if response.status_code in (401, 403):
                raise SetupError(f"it refuses {path} ({response.status_code}): it rejects the key")
            if response.status_code == 404 and path == "/version":
                return b""
            if response.status_code in (429, 502, 503, 504) or (path, response.status_code) == ("/health", 500):
                raise AwayError(f"it answers {path} with {response.status_code}")
            if response.status_code != 200:
                raise SetupError(f"it answers {path} with {response.status_code}")
            return await _read(response, LARGEST_LIST)


async def _data(response: httpx2.Response) -> AsyncGenerator[str, None]:
    async for event in httpx2.EventSource(response, max_event_size=LARGEST_EVENT):
        yield event.data


async def _read(response: httpx2.Response, most: int) -> bytes:
    """Return the response's content, up to `most` bytes."""
    said = bytearray()
    async for chunk in response.aiter_bytes():
        said += chunk
        if len(said) > most:
            break
    return bytes(said[:most])


def _json(said: bytes) -> Any:
    try:
        return json.loads(said)
    except (ValueError, RecursionError):
        return None


def _version(said: bytes) -> str:
    """Return the version: vLLM sends an object, our server plain text."""
    known = _json(said)
    text = known.get("version") if isinstance(known, dict) else said.decode("utf-8", "replace")
    return str(text).strip()


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
