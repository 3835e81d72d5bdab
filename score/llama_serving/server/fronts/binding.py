"""Where the server listens, and how that is told."""

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any, Final
from urllib.parse import quote

from llama_serving.errors import SetupError
from llama_serving.server.fronts import unix_socket

_EVERY: Final = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104
"""Addresses that stand for all of a machine, and those that clients on it can use."""

MOST_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class Binding:
    """Where the server listens.

    Attributes:
        host: an address or name; `::` is all addresses of the machine, IPv4 too. An IPv6 address may have brackets.
        open_to_all: allow addresses other than loopback without a key.
        uds: path of a Unix socket, instead of host and port.
        uds_mode: permissions of its file.
    """

    host: str = "127.0.0.1"
    port: int = 8453
    open_to_all: bool = False
    uds: str | None = None
    uds_mode: int = 0o660

    def __post_init__(self) -> None:
        if self.host.startswith("[") and self.host.endswith("]"):
            object.__setattr__(self, "host", self.host[1:-1])

    def told(self, *, tls: bool = False, prefix: str = "") -> str:
        """Return the address in the words of a person, with a URL to copy."""
        scheme = "https" if tls else "http"
        if self.uds is not None:
            return f"{scheme}://localhost{prefix} on the Unix socket {self.uds}"
        url = f"{scheme}://{_EVERY.get(self.host, _in_url(self.host))}:{self.port}{prefix}"
        every = {"0.0.0.0": "IPv4", "::": "IPv4 and IPv6"}.get(self.host)  # noqa: S104
        return url if every is None else f"{url} and at all {every} addresses of this machine"


def permissions(text: str) -> int:
    """Return a file's permissions from octal digits, such as `660`.

    Raises:
        ValueError: they are none, or the owner could not connect.
    """
    mode = int(text, 8) if re.fullmatch(r"0?[0-7]{3}", text) else 0
    if mode & 0o600 != 0o600:
        raise ValueError(
            f"{text} is no mode of a socket: its owner must read and write it, as in 600, 660 or 666"
        )
    return mode


def port_number(text: str) -> int:
    """Return a port.

    Raises:
        ValueError: it is none.
    """
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= MOST_PORT:
        raise ValueError(f"{text} is no port: it must be from 1 to {MOST_PORT}")
    return int(text)


@contextmanager
def listening(binding: Binding) -> Iterator[socket.socket]:
    """Yield the socket to listen on. The file of a Unix socket is removed at the end.

    Raises:
        SetupError: the address is taken, or cannot be used.
    """
    with ExitStack() as held:
        if binding.uds is None:
            yield held.enter_context(bound_socket(binding.host, binding.port))
        else:
            yield held.enter_context(unix_socket.listening(binding.uds, binding.uds_mode))


def bound_socket(host: str, port: int) -> socket.socket:
    """Return the socket to listen on, without Nagle's delay.

    Raises:
        SetupError: the address is taken, or not this machine's, or the port is none.
    """
    if not 0 <= port <= MOST_PORT:
        raise SetupError(f"--port {port} can't be used: it must be from 1 to {MOST_PORT}.")
    created: socket.socket | None = None
    try:
        family, address = _address(host, port)
        created = socket.socket(family)
        created.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # asyncio sets TCP_NODELAY only if a socket's protocol is TCP, and this one's is the default, 0. Without it the end of a
        # response and each event of a stream wait up to 40 ms for the client's acknowledgement. Connections inherit it.
        created.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if created.family == socket.AF_INET6:
            # (The system's default, net.ipv6.bindv6only, may be either. It only matters for `::`.)
            created.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        created.bind(address)
    except (OSError, UnicodeError) as error:
        if created is not None:
            created.close()
        reason = getattr(error, "strerror", None) or error
        raise SetupError(
            f"{_in_url(host)}:{port} can't be listened on: {reason}. Give another --port or --host."
        ) from None
    return created


def _address(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """Return the family of an address, of a name IPv4 if it has one, and what `bind` takes. That has an IPv6 address's zone.

    Raises:
        OSError: the name is unknown, or the zone no interface of this machine.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, _, _, _, address = next((one for one in found if one[0] == socket.AF_INET), found[0])
    return family, address


def _in_url(host: str) -> str:
    """Return a host as URLs have it: IPv6 in brackets, a zone's `%` escaped (RFC 6874)."""
    try:
        return f"[{quote(host, safe=':')}]" if isinstance(ip_address(host), IPv6Address) else host
    except ValueError:
        return host
