"""The front of one server: the socket that it listens on, its certificate, and what is undone of proxies in front of it."""

import asyncio
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp

from llama_serving.server.fronts.binding import Binding, listening
from llama_serving.server.fronts.certificates import ServerCertificate, TlsFiles
from llama_serving.server.fronts.forwarded import ForwardedHeaders
from llama_serving.server.fronts.path_prefix import PathPrefix, check_prefix
from llama_serving.server.fronts.proxies import TrustedProxies
from llama_serving.server.target import OriginForm
from llama_serving.settings import Settings


@dataclass(frozen=True, slots=True)
class Front:
    """Where requests come in.

    Attributes:
        listening: the socket.
        certificate: None serves without TLS.
    """

    listening: socket.socket
    certificate: ServerCertificate | None
    _held: ExitStack

    @classmethod
    def open(cls, binding: Binding, settings: Settings) -> "Front":
        """Take the address.

        Raises:
            SetupError: it is taken or cannot be used, or the certificate or the path prefix cannot be used.
        """
        check_prefix(settings.path_prefix)
        files = TlsFiles.of(settings)
        certificate = None if files is None else ServerCertificate.of(files)
        with ExitStack() as held:
            bound = held.enter_context(listening(binding))
            return cls(bound, certificate, held.pop_all())

    def close(self) -> None:
        """Give the address back; the file of a Unix socket goes with it."""
        self._held.close()

    def watch(self) -> "asyncio.Future[None]":
        """Return the task that reads a changed certificate again."""
        if self.certificate is None:
            return asyncio.get_running_loop().create_future()
        return asyncio.ensure_future(self.certificate.watch())

    def reload(self) -> None:
        """Read the certificate again."""
        if self.certificate is not None:
            self.certificate.reload()

    def uvicorn_options(self) -> dict[str, Any]:
        """Return uvicorn's options: TLS by our context, and nothing of its own for proxies."""
        certificate = self.certificate
        made = None if certificate is None else lambda *_: certificate
        return {"proxy_headers": False, "ssl_context_factory": made}


def behind_proxies(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Return the application behind what proxies do to a request: headers, the form of its target, the path prefix."""
    if settings.path_prefix:
        app = PathPrefix(app, settings.path_prefix)
    return ForwardedHeaders(OriginForm(app), TrustedProxies(settings.trusted_proxies))
