"""What carries the bytes to our own server: TCP, IPv6, a Unix socket, TLS; the tests of sockets run over each."""

import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from llama_serving.server.fronts.binding import Binding
from tests.support.certificates import Authority
from tests.support.in_process import LocalServer, serving

CARRIERS = ("tcp", "ipv6", "unix", "tls")


def has_ipv6() -> bool:
    """Whether this machine has an IPv6 loopback."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Carried:
    """A running server, and the ways to it."""

    server: LocalServer
    uds: str | None = None
    trusted: ssl.SSLContext | None = field(default=None, repr=False)

    def connect(self, *, handshake: bool = True, receives: int | None = None) -> socket.socket:
        """A connection.

        Args:
            handshake: over TLS, shake hands.
            receives: bytes that the client's kernel receives before the client reads.
        """
        if self.uds is not None:
            plain = socket.socket(socket.AF_UNIX)
            plain.settimeout(60)
            plain.connect(self.uds)
            return plain
        place = urlsplit(self.server.url)
        plain = socket.socket(socket.AF_INET6 if ":" in (place.hostname or "") else socket.AF_INET)
        plain.settimeout(60)
        if receives is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
        plain.connect((place.hostname or "", place.port or 0))
        if self.trusted is None or not handshake:
            return plain
        return self.trusted.wrap_socket(plain, server_hostname=place.hostname)

    def opened(self, body: dict[str, Any], path: str = "/v1/completions") -> socket.socket:
        """A connection that has sent a request and reads nothing yet."""
        raw, connection = json.dumps(body).encode(), self.connect()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        connection.sendall(head.encode() + raw)
        return connection

    @contextmanager
    def client(self, **options: Any) -> Iterator[httpx2.Client]:
        """An HTTP client of the server."""
        transport = httpx2.HTTPTransport(uds=self.uds, verify=True if self.trusted is None else self.trusted)
        with httpx2.Client(base_url=self.server.url, transport=transport, timeout=60, **options) as client:
            yield client

    def inside(self) -> float:
        """How many requests run and wait."""
        with self.client() as client:
            lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("llama_num_requests_"))


@contextmanager
def carried(carrier: str, folder: Path, **env: str) -> Iterator[Carried]:
    """Run the server over one of `CARRIERS`, its files in `folder`."""
    uds = trusted = None
    binding = Binding(port=0)
    if carrier == "ipv6":
        if not has_ipv6():
            pytest.skip("this machine has no IPv6")
        binding = Binding("::1", 0)
    elif carrier == "unix":
        uds = str(folder / "llama.sock")
        binding = Binding(uds=uds)
    elif carrier == "tls":
        authority = Authority.at(folder / "ca.crt")
        cert, key = authority.pair(folder)
        env = {"LLAMA_TLS_CERT": str(cert), "LLAMA_TLS_KEY": str(key), **env}
        trusted = ssl.create_default_context(cafile=authority.path)
    with serving(env, binding=binding) as server:
        yield Carried(server, uds, trusted)
