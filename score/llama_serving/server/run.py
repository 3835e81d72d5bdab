"""The process: uvicorn around the application, signals, the exit code."""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from llama_serving.contract.json_lines import json_line
from llama_serving.contract.request import Request
from llama_serving.errors import SetupError
from llama_serving.server import auth, cors
from llama_serving.server.app import Options, routes
from llama_serving.server.lifecycle import Lifecycle
from llama_serving.server.metrics import Metrics
from llama_serving.server.middleware import Gate
from llama_serving.server.target import OriginForm
from llama_serving.service.output import RunningSequence
from llama_serving.service.service import Service
from llama_serving.settings import Settings

if TYPE_CHECKING:
    from llama_serving.server.tracing import Traces

_log = logging.getLogger(__name__)

HEAD_S: Final = 10.0
"""Seconds that a request's head may take to come."""
KEEP_ALIVE_S: Final = 75
LAST_BYTES_S: Final = 10
"""What a client may take to read its answer once the server ends."""
MOST_BEHIND: Final = 1 << 16
"""Bytes that a client may send behind a request before it has the answer."""


@dataclass(frozen=True, slots=True)
class Binding:
    """Where the server listens.

    Attributes:
        open_to_all: another address than loopback may be used without a key.
    """

    host: str = "127.0.0.1"
    port: int = 8453
    open_to_all: bool = False


def serve(
    load: Callable[[], Service], settings: Settings, binding: Binding, options: Options | None = None
) -> int:
    """Serve until told to end.

    Args:
        load: makes the service.
        settings: the operator's.
        binding: where.
        options: what the command adds.

    Returns:
        The process's exit code: 0 after a drain, 1 if the engine died.

    Raises:
        SetupError: the address needs a key, can't be had, the traces can't be sent, or the model can't be loaded.
    """
    auth.check_address(binding.host, settings.api_keys, open_to_all=binding.open_to_all)
    return asyncio.run(_serve(load, settings, binding, options or Options(), _traces(settings)))


def _traces(settings: Settings) -> "Traces | None":
    """Where spans go. Their libraries are an extra, imported for nobody who has not asked for them."""
    if settings.traces == "off":
        return None
    try:
        from llama_serving.server.tracing import Traces

        return Traces.to(settings.traces)
    except ImportError as error:
        raise SetupError(
            f"LLAMA_TRACES={settings.traces} needs packages that are not installed ({error.name}). "
            "Install them with: pip install 'llama-endpoints[traces]'"
        ) from error


async def _serve(
    load: Callable[[], Service],
    settings: Settings,
    binding: Binding,
    options: Options,
    traces: "Traces | None",
) -> int:
    ending = _Ending()

    def loaded() -> Service:
        service = load()

        def ended(request: Request, sequence: RunningSequence) -> None:
            metrics.generated(sequence.handle)
            if traces is not None:
                traces.generated(request, sequence, service.variant.name)

        service.on_end = ended
        return service

    lifecycle = Lifecycle(loaded, ending.end)
    metrics = Metrics(lifecycle)
    app = routes(lifecycle, metrics, settings, options)
    app.router.lifespan_context = _lifespan(lifecycle)
    gate = Gate(app, metrics, settings.api_keys)
    config = uvicorn.Config(
        OriginForm(cors.around(gate if traces is None else traces.around(gate), settings.cors_origins)),
        host=binding.host,
        port=binding.port,
        http=_Punctual,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=LAST_BYTES_S,
        lifespan="on",
        ws="none",
        reset_contextvars=True,  # or the next request of a connection could inherit the last one's span
    )
    listening = _listening(config)  # before anything is loaded
    server = _Server(config, lifecycle)
    ending.server = server
    try:
        await server.serve(sockets=[listening])
    finally:
        if traces is not None:
            traces.close()
    if lifecycle.failure is not None:
        raise lifecycle.failure
    if lifecycle.loaded is None:  # the load's thread is inside torch, and the interpreter's end would abort it
        logging.shutdown()
        os._exit(ending.code)
    return ending.code


def _listening(config: uvicorn.Config) -> socket.socket:
    try:
        listening = config.bind_socket()
    except SystemExit:  # uvicorn's way to say it; its log has the cause
        raise SetupError(f"{config.host}:{config.port} can't be listened on. Give another --port.") from None
    # asyncio sets it where a socket says that it is TCP's, and uvicorn's does not: without it the end of an answer, and
    # each event of a stream, wait for the client's acknowledgement, up to 40 ms. Connections inherit it.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


@dataclass(slots=True)
class _Ending:
    """Lets the lifecycle end the server, whatever was made first."""

    server: uvicorn.Server | None = field(default=None)
    code: int = 0

    def end(self, code: int) -> None:
        self.code = code
        if self.server is not None:
            self.server.should_exit = True


class _Server(uvicorn.Server):
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


class _Punctual(H11Protocol):
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


def _lifespan(lifecycle: Lifecycle) -> Any:
    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        life = asyncio.ensure_future(lifecycle.run())
        try:
            yield
        finally:
            life.cancel()
            try:
                with suppress(asyncio.CancelledError):
                    await life
            finally:
                await lifecycle.close()

    return running


class JsonLines(logging.Formatter):
    """A log line as a JSON object: time, level, logger, message, and what a record says of itself."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            **getattr(record, "fields", {"message": record.getMessage()}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json_line(line)


def log_as_json() -> None:
    """Everything that is logged in this process, as JSON lines on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("llama_serving", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.INFO)
