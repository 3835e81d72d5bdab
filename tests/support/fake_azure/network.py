"""A proxy on loopback that is every host of Azure's: who asks for `https://management.azure.com` through it gets the fake's answer.

So Azure's real clients run as they are, with the addresses that they know, over TLS: they are told HTTPS_PROXY and the
certificate. Nothing leaves this machine.
"""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.support.hubs import Fault

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Request:
    """What came in; `query` has what stands behind the `?`, by name."""

    method: str
    host: str
    path: str
    query: Mapping[str, str]
    headers: HTTPMessage
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What goes out.

    Attributes:
        cut: so many bytes of the body go out, and then the connection ends.
        hold: with `cut`: it ends no earlier than this is set.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    hold: threading.Event | None = None


Faults = dict[str, list[Fault | None]]
"""How it fails next: by the end of a path, one a request, in order; None is an answer as it should be."""


def next_fault(faults: Faults, path: str) -> Fault | None:
    """How the answer to a request fails, if it does."""
    given = next((those for end, those in faults.items() if those and path.endswith(end)), None)
    return given.pop(0) if given else None


Answering = Callable[[Request], Answer]
Sent = Callable[[Request, Answer, int], None]


@contextmanager
def proxy(answering: Answering, sent: Sent, certificate: Path) -> Iterator[str]:
    """The proxy's address, up until the block is left.

    Args:
        answering: gives the answer to a request of whatever host.
        sent: told the bytes of a body that went out.
        certificate: of all hosts, with its key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    given: dict[str, Any] = {"answering": staticmethod(answering), "sent": staticmethod(sent), "tls": context}
    server = ThreadingHTTPServer((LOOPBACK, 0), type("Handler", (_Handler,), given))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # (or every answer waits 40 ms for its head to be acknowledged)
    answering: Answering
    sent: Sent
    tls: ssl.SSLContext
    host = LOOPBACK

    def do_CONNECT(self) -> None:
        """From here on the connection is one to the host that was named."""
        self.host = self.path.rpartition(":")[0]
        self.send_response(200)
        self.end_headers()
        try:
            self.connection = self.tls.wrap_socket(self.connection, server_side=True)
        except (OSError, ssl.SSLError):  # a client that does not trust the certificate
            self.close_connection = True
            return
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", buffering=0)  # type: ignore[assignment]
        self.close_connection = False

    def finish(self) -> None:
        super().finish()
        self.connection.close()

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        # (through a proxy clients send head and body apart, and wait 40 ms for the first to be acknowledged)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = dict(parse_qsl(address.query, keep_blank_values=True))
        request = Request(self.command, self.host, unquote(address.path), query, self.headers, body)
        try:
            self._send(request, self.answering(request))
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):  # a client that was killed
            self.close_connection = True

    def do_POST(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        self.do_GET()

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send(self, request: Request, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        going = answer.body[: answer.cut] if self.command != "HEAD" else b""
        self.wfile.write(going)
        self.wfile.flush()
        self.sent(request, answer, len(going))
        if answer.hold is not None:
            answer.hold.wait()
        if answer.cut is not None:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass
