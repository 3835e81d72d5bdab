"""Adapts uvicorn: orderly shutdown, and timeouts for handshakes of TLS and for request heads."""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final

import h11
import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.h11_impl import H11Protocol

from llama_serving.server.lifecycle import Lifecycle

_log = logging.getLogger(__name__)

HEAD_S: Final = 10.0
"""Seconds in which a request's head must arrive."""
FAREWELL_S: Final = 0.1
"""Seconds between a connection's close and looking whether everything is sent."""
MOST_BEHIND: Final = 1 << 16
"""Bytes that a client may send after a request before its response."""


@dataclass(slots=True)
class ServerEnd:
    """Lets the lifecycle stop the server, whichever is created first."""

    server: uvicorn.Server | None = field(default=None)
    code: int = 0

    def end(self, code: int) -> None:
        """Stop the server, if it exists, with this exit code."""
        self.code = code
        if self.server is not None:
            self.server.should_exit = True


class DrainingServer(uvicorn.Server):
    """uvicorn, except that a first signal drains: running requests are answered.

    A second signal stops the engine, so that they are refused; a third one stops immediately. SIGHUP only reloads.

    Args:
        config: of uvicorn.
        lifecycle: of the server.
        reload: called at SIGHUP, in a thread.
    """

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, reload: Callable[[], None]) -> None:
        super().__init__(config)
        self._lifecycle, self._reload = lifecycle, reload
        self._loop = asyncio.get_running_loop()
        self._reloading: asyncio.Future[None] | None = None
        self._ending: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. uvicorn's own method has no time limit for handshakes."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        config = self.config

        def protocol() -> asyncio.Protocol:
            return HeadTimeoutProtocol(config, self.server_state, self.lifespan.state)

        limits: dict[str, Any] = (
            {} if config.ssl is None else {"ssl": config.ssl, "ssl_handshake_timeout": HEAD_S}
        )
        self.servers = [
            await self._loop.create_server(protocol, sock=one, backlog=config.backlog, **limits)
            for one in sockets or ()
        ]
        self.started = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle another SIGTERM or SIGINT, or a SIGHUP, on the loop, not in the interrupted code."""
        del frame
        self._loop.call_soon_threadsafe(self._handle_signal, sig)

    def _handle_signal(self, number: int) -> None:
        _log.info("%s", signal.Signals(number).name)
        if number == signal.SIGHUP:
            self._reloading = self._loop.run_in_executor(None, self._reload)
            return
        steps = (self._lifecycle.drain, self._lifecycle.close)
        if len(self._ending) < len(steps):
            self._ending.append(self._loop.create_task(steps[len(self._ending)]()))
            return
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        self.should_exit = True


class HeadTimeoutProtocol(H11Protocol):
    """Closes connections whose request head takes too long. Over TLS its time begins after the handshake."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start waiting for the first request."""
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a head that has begun."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._came()
            self._read_on()
        elif self._head_timer is None and not self.transport.is_closing():
            self._expect()

    def send_400_response(self, msg: str) -> None:
        """Refuse invalid HTTP; if a response was already sent, neither respond nor log."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self._close()
        self._came()
        self._part()

    def shutdown(self) -> None:
        """Close the connection if it is idle."""
        if not self.transport.is_closing():
            super().shutdown()
        self._part()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has been idle for too long."""
        super().timeout_keep_alive_handler()
        self._part()

    def on_response_complete(self) -> None:
        """Close the connection behind its last response."""
        super().on_response_complete()
        self._part()

    def _part(self) -> None:
        """End a connection that closes once its last bytes are sent.

        TLS would wait for the client's farewell, 30 s long. A client that keeps idle connections for later does not read them.
        """
        if self.scheme == "https" and self.transport.is_closing():
            self.loop.call_later(FAREWELL_S, self._end_if_sent)

    def _end_if_sent(self) -> None:
        if self not in self.connections:
            return
        if _has_unsent(self.transport):
            self._part()
        else:
            self.transport.abort()

    def _read_on(self) -> None:
        """Resume reading: uvicorn pauses when data follows a request, and would miss the client's disconnect."""
        if self.cycle.more_body or not self.flow.read_paused:
            return
        if len(self.conn.trailing_data[0]) > MOST_BEHIND:
            self._close()
            self._part()
        else:
            self.flow.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._came()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self._too_late)

    def _came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_late(self) -> None:
        self._head_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self._close()
            self._part()

    def _close(self) -> None:
        """Close the connection once: a TLS transport that is closed a second time forgets its connection, and can't be aborted."""
        if not self.transport.is_closing():
            self.transport.close()


def _has_unsent(transport: Any) -> bool:
    """Return whether bytes of a TLS connection wait for the kernel.

    asyncio only tells of those that are not encrypted yet. The others are in a transport that it does not show. Where its names
    are different, this is always true, and the connection ends by asyncio's own limit.
    """
    lower = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    return lower is None or bool(transport.get_write_buffer_size() or lower.get_write_buffer_size())
