"""uvicorn as this server needs it: sockets, an end in order, and heads that must come in time."""

import asyncio
import logging
import signal
import socket
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from llama_serving.errors import SetupError
from llama_serving.server.lifecycle import Lifecycle

_log = logging.getLogger(__name__)

HEAD_S: Final = 10.0
"""Seconds that a request's head may take to come."""
MOST_BEHIND: Final = 1 << 16
"""Bytes that a client may send behind a request before it has the answer."""


def bound_socket(config: uvicorn.Config) -> socket.socket:
    """The socket to listen on, without Nagle's delay.

    Raises:
        SetupError: the address is taken, or not this machine's.
    """
    try:
        listening = config.bind_socket()
    except SystemExit:  # uvicorn's way to say it; its log has the cause
        raise SetupError(f"{config.host}:{config.port} can't be listened on. Give another --port.") from None
    # asyncio sets it where a socket says that it is TCP's, and uvicorn's does not: without it the end of an answer, and
    # each event of a stream, wait for the client's acknowledgement, up to 40 ms. Connections inherit it.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


@dataclass(slots=True)
class ServerEnd:
    """Lets the lifecycle end the server, whatever was made first."""

    server: uvicorn.Server | None = field(default=None)
    code: int = 0

    def end(self, code: int) -> None:
        """End the server, if it was made, with this exit code."""
        self.code = code
        if self.server is not None:
            self.server.should_exit = True


class DrainingServer(uvicorn.Server):
    """uvicorn, but a first signal drains: it goes on answering until everybody inside has an answer.

    A second one ends the engine, so that everybody inside is refused; a third one waits for nobody.
    """

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._loop = asyncio.get_running_loop()
        self._ending: list[asyncio.Task[None]] = []

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """One more SIGTERM or SIGINT; what it means is for the loop, not for whatever it interrupts."""
        del frame
        self._loop.call_soon_threadsafe(self._told, sig)

    def _told(self, number: int) -> None:
        _log.info("%s", signal.Signals(number).name)
        steps = (self._lifecycle.drain, self._lifecycle.close)
        if len(self._ending) < len(steps):
            self._ending.append(self._loop.create_task(steps[len(self._ending)]()))
            return
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        self.should_exit = True


class HeadTimeoutProtocol(H11Protocol):
    """A connection that sends no request's head for too long is closed: it holds nothing but a socket."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Expect a first request."""
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Expect the rest of a head that has begun."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._came()
            self._read_on()
        elif self._head_timer is None and not self.transport.is_closing():
            self._expect()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; where an answer is out already, there is nothing to refuse, and nothing to log."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def _read_on(self) -> None:
        """uvicorn stops reading when something follows a request, and then doesn't see that the client goes."""
        if self.cycle.more_body or not self.flow.read_paused:
            return
        if len(self.conn.trailing_data[0]) > MOST_BEHIND:
            self.transport.close()
        else:
            self.flow.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
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
            self.transport.close()
