"""The server's process: uvicorn, signals and the exit code."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from fastapi import FastAPI

from llama_serving.contract.request import Request
from llama_serving.errors import SetupError
from llama_serving.server import auth, cors
from llama_serving.server.accounts import meter
from llama_serving.server.accounts.accounts import Accounts
from llama_serving.server.accounts.metering import Metering
from llama_serving.server.app import routes
from llama_serving.server.fronts.binding import Binding
from llama_serving.server.fronts.front import Front, behind_proxies
from llama_serving.server.lifecycle import Lifecycle
from llama_serving.server.metrics import Metrics
from llama_serving.server.middleware import RequestMiddleware
from llama_serving.server.page import page
from llama_serving.server.scoring import Options
from llama_serving.server.uvicorn_server import DrainingServer, HeadTimeoutProtocol, ServerEnd
from llama_serving.service.collection import configuration as collection
from llama_serving.service.output import SequenceOutput
from llama_serving.service.service import Service
from llama_serving.settings import Settings

if TYPE_CHECKING:
    from llama_serving.server.tracing import Traces

_log = logging.getLogger(__name__)

KEEP_ALIVE_S: Final = 75
LAST_BYTES_S: Final = 10
"""Seconds that a client may take to read its response when the server stops."""


def serve(
    load: Callable[[], Service], settings: Settings, binding: Binding, options: Options | None = None
) -> int:
    """Serve until told to stop.

    Args:
        load: creates the service.
        settings: of the operator.
        binding: where to listen.
        options: of the command.

    Returns:
        The process's exit code: 0 after draining, 1 if the engine died.

    Raises:
        SetupError: the address needs a key or is taken, traces cannot be sent, or the model, the file of keys or the
            audit cannot be used.
    """
    keys = settings.api_keys or (settings.named_keys or ())
    if binding.uds is None:  # (the mode of a Unix socket's file says who may use it)
        auth.check_address(binding.host, keys, open_to_all=binding.open_to_all)
    return asyncio.run(_serve(load, settings, binding, options or Options(), traces_of(settings)))


async def _serve(
    load: Callable[[], Service],
    settings: Settings,
    binding: Binding,
    options: Options,
    traces: "Traces | None",
) -> int:
    assembly = Assembly.of(load, settings, binding, options, traces)
    if settings.named_keys is not None or settings.tls_cert is not None:
        signal.signal(signal.SIGHUP, assembly.server.handle_exit)
    try:
        code = await assembly.run()
    finally:
        if traces is not None:
            traces.close()
    if (
        assembly.lifecycle.loaded is None
    ):  # the loading thread is inside torch: interpreter shutdown would abort it
        logging.shutdown()
        os._exit(code)
    return code


def traces_of(settings: Settings) -> "Traces | None":
    """Return the destination of spans. Its libraries are an extra, imported only if traces are on."""
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


@dataclass(frozen=True, slots=True)
class Assembly:
    """A server's parts, put together on the running loop and bound to its address; nothing is loaded yet."""

    lifecycle: Lifecycle
    server: DrainingServer
    end: ServerEnd
    front: Front
    accounts: Accounts

    @classmethod
    def of(
        cls,
        load: Callable[[], Service],
        settings: Settings,
        binding: Binding,
        options: Options,
        traces: "Traces | None" = None,
    ) -> "Assembly":
        """Put a server together.

        Raises:
            SetupError: the address is taken, or the certificate, the path prefix, the file of keys or the audit cannot be used.
        """
        front = Front.open(binding, settings)
        try:
            return cls._behind(front, load, settings, options, traces)
        except BaseException:
            front.close()
            raise

    @classmethod
    def _behind(
        cls,
        front: Front,
        load: Callable[[], Service],
        settings: Settings,
        options: Options,
        traces: "Traces | None",
    ) -> "Assembly":
        end = ServerEnd()

        def loaded() -> Service:
            service = collection.started(settings, load)

            def ended(request: Request, sequence: SequenceOutput) -> None:
                metrics.generated(sequence.handle)
                if traces is not None:
                    traces.generated(request, sequence, service.variant.name)

            service.on_end = ended
            meter.follow(service)
            return service

        def told() -> str:
            service = lifecycle.loaded
            return collection.notice(settings, None if service is None else service.collector)

        accounts = Accounts.of(settings)
        lifecycle = Lifecycle(loaded, end.end)
        metrics = Metrics(lifecycle, accounts.usage)
        app = routes(lifecycle, metrics, settings, options)
        app.router.lifespan_context = _lifespan(lifecycle)
        html = page(told) if settings.page else None
        inner = RequestMiddleware(Metering(app, accounts), metrics, accounts, page=html)
        outer = cors.around(inner if traces is None else traces.around(inner), settings.cors_origins)
        config = uvicorn.Config(
            behind_proxies(outer, settings),
            **front.uvicorn_options(),
            http=HeadTimeoutProtocol,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=LAST_BYTES_S,
            lifespan="on",
            ws="none",
            reset_contextvars=True,  # or the connection's next request could inherit the previous one's span
        )

        def reload() -> None:
            accounts.reload()
            front.reload()

        end.server = DrainingServer(config, lifecycle, reload)
        return cls(lifecycle, end.server, end, front, accounts)

    async def run(self) -> int:
        """Load, serve until told to stop, and return the exit code.

        Raises:
            SetupError: the model cannot be loaded; so does whatever else loading raises.
        """
        watching = self.front.watch()
        try:
            await self.server.serve(sockets=[self.front.listening])
        finally:
            watching.cancel()
            self.front.close()
            await asyncio.to_thread(self.accounts.close)
        if self.lifecycle.failure is not None:
            raise self.lifecycle.failure
        return self.end.code


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
