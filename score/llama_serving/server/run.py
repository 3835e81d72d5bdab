"""The process: uvicorn around the application, signals, the exit code."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from fastapi import FastAPI

from llama_serving.contract.request import Request
from llama_serving.errors import SetupError
from llama_serving.server import auth, cors
from llama_serving.server.app import Options, routes
from llama_serving.server.lifecycle import Lifecycle
from llama_serving.server.metrics import Metrics
from llama_serving.server.middleware import Gate
from llama_serving.server.target import OriginForm
from llama_serving.server.uvicorn_server import DrainingServer, HeadTimeoutProtocol, ServerEnd, bound_socket
from llama_serving.service.output import SequenceOutput
from llama_serving.service.service import Service
from llama_serving.settings import Settings

if TYPE_CHECKING:
    from llama_serving.server.tracing import Traces

_log = logging.getLogger(__name__)

KEEP_ALIVE_S: Final = 75
LAST_BYTES_S: Final = 10
"""What a client may take to read its answer once the server ends."""


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
    ending = ServerEnd()

    def loaded() -> Service:
        service = load()

        def ended(request: Request, sequence: SequenceOutput) -> None:
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
        http=HeadTimeoutProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=LAST_BYTES_S,
        lifespan="on",
        ws="none",
        reset_contextvars=True,  # or the next request of a connection could inherit the last one's span
    )
    listening = bound_socket(config)  # before anything is loaded
    server = DrainingServer(config, lifecycle)
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
