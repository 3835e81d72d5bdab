"""HTTP to the server behind us. The only file of the engine that knows the library.

No connection is used twice: one that the server closes while we write to it would leave open whether it has read the
request, and a request may be sent again only where it surely has not, which is when nobody could be connected to.
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

CONNECT_S: Final = 5.0
PROBE_S: Final = 10.0
PAUSES_S: Final = (0.1, 0.2, 0.4, 0.8)
"""Between tries to connect, each made half as long to half as long again, so that a crowd does not come at once."""
STALL_S: Final = 300.0
"""Without a byte in the middle of an answer, where no deadline comes first."""
LARGEST_EVENT: Final = 16 << 20
"""Bytes. The first one has the prompt's ids."""
LARGEST_REFUSAL: Final = 64 << 10
LARGEST_LIST: Final = 1 << 20


class AwayError(Exception):
    """It does not answer now; later it may."""


class UpstreamClient:
    """Asks one server.

    Args:
        url: where it is, without `/v1`.
        key: sent as a bearer token.
        socket: the Unix socket that it listens on; None is the address of `url`.
        stall_s: seconds without a byte after which an answer is given up; None waits for as long as there is a connection.
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
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
                trust_env=False,
            ),
            trust_env=False,  # a proxy of the shell's is not between us
        )

    async def healthy(self) -> bool:
        """Whether it says so."""
        try:
            return (await self._http.get("/health", timeout=PROBE_S)).status_code == 200
        except httpx2.TransportError:
            return False

    async def describe(self, model: str) -> RemoteServer:
        """Who it is.

        Raises:
            AwayError: it is not there, or not ready.
            SetupError: it has no such model, or is none that can be used.
        """
        try:
            await self._get("/health")
            listed = json.loads(await self._get("/v1/models"))
            return RemoteServer.of(listed, _version(await self._get("/version")), model=model)
        except httpx2.TransportError as error:
            raise AwayError(_said(error)) from error
        except ValueError as error:
            raise SetupError("it answers /v1/models with no JSON") from error

    @asynccontextmanager
    async def events(self, body: Mapping[str, Any], *, model: str) -> AsyncIterator[AsyncIterator[str]]:
        """The data of its answer's events. Leaving the block before their end closes the connection, and with it the
        server's work on it.

        Raises:
            ServingError: it can't be reached, refuses, or breaks off.
        """
        response = await self._connected(json.dumps(body).encode())
        try:
            if response.status_code != 200:
                said = await _read(response, LARGEST_REFUSAL)
                again = response.headers.get("Retry-After")
                raise error_mapping.refused(response.status_code, again, _json(said), model=model)
            async with aclosing(_data(response)) as data:
                yield data
        except httpx2.SSEError as error:
            raise error_mapping.malformed("no events, or one that is too long") from error
        except httpx2.TransportError as error:
            raise error_mapping.broken(_said(error)) from error
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Closes what is open."""
        await self._http.aclose()

    async def _connected(self, content: bytes) -> httpx2.Response:
        """Its answer's head. Only connecting is tried again."""
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        request = self._http.build_request("POST", "/v1/completions", content=content, headers=headers)
        for pause in (*PAUSES_S, None):
            try:
                return await self._http.send(request, stream=True)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                if pause is None:
                    raise error_mapping.away(_said(error)) from error
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
            except httpx2.TransportError as error:
                raise error_mapping.broken(_said(error)) from error
        raise AssertionError  # (the last pause is None)

    async def _get(self, path: str) -> bytes:
        async with self._http.stream("GET", path, timeout=PROBE_S) as response:
            if response.status_code in (401, 403):
                raise SetupError(f"it refuses {path} ({response.status_code}): it wants another key")
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
    """What it says, and no more than that of it."""
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
    """vLLM's is an object, ours is the text itself."""
    known = _json(said)
    text = known.get("version") if isinstance(known, dict) else said.decode("utf-8", "replace")
    return str(text).strip()


def _said(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
