"""Which proxies are trusted, and what they say of a request. Pure.

`X-Forwarded-For` grows to the right: each proxy appends the address that it was reached from. So the list is read from its end, and only as
long as the one who reports is trusted. RFC 7239's `Forwarded` is not read: a proxy that does not know it passes on whatever a client wrote.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

UNIX: Final = "unix"
"""Stands for all peers on a Unix socket, which have no address."""
MOST_HOPS: Final = 32
"""Proxies behind each other that are looked at."""
_SCHEMES: Final = ("http", "https")
_HOST: Final = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9.-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
_WITH_PORT: Final = re.compile(r"\[([^\[\]]*)\](?::[0-9]{1,5})?|([0-9.]+):[0-9]{1,5}")

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Reported:
    """What trusted proxies report; None is what they do not.

    Attributes:
        client: the address that the request came from.
        scheme: `http` or `https`, as the client used it.
        host: the client's `Host`.
    """

    client: str | None = None
    scheme: str | None = None
    host: str | None = None


class TrustedProxies:
    """Addresses whose headers are believed.

    Args:
        names: addresses, networks in CIDR notation, and `unix`.

    Raises:
        ValueError: one of them is neither.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._unix = UNIX in names
        self._networks = tuple(network(name) for name in names if name != UNIX)

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def trust(self, peer: str | None) -> bool:
        """Return whether a peer's headers are believed; None is a peer on a Unix socket."""
        if peer is None:
            return self._unix
        found = address(peer)
        return found is not None and self._has(found)

    def read(
        self, peer: str | None, forwarded_for: Sequence[str], proto: Sequence[str], host: Sequence[str]
    ) -> Reported:
        """Return what the proxies in front report; nothing if the peer is not trusted.

        Args:
            peer: the address of the connection; None on a Unix socket.
            forwarded_for: all values of `X-Forwarded-For`, in their order; `proto` and `host` are those of their headers.
        """
        if not self.trust(peer):
            return Reported()
        hops = _items(forwarded_for)
        depth, client = self._client(hops)
        scheme = _beside(_items(proto), depth, len(hops)).lower()
        name = _beside(_items(host), depth, len(hops))
        return Reported(
            client=None if client is None else str(client),
            scheme=scheme if scheme in _SCHEMES else None,
            host=name if _HOST.fullmatch(name) else None,
        )

    def _client(self, hops: Sequence[str]) -> tuple[int, Address | None]:
        """Return the last address that a trusted proxy reports, and its place from the end, from 1; 0 is none.

        What is no address (`unknown`, a name, a mistake) ends the search: nobody knows who is behind it.
        """
        depth, client = 0, None
        for hop in hops[: -MOST_HOPS - 1 : -1]:
            found = _without_port(hop)
            if found is None:
                break
            depth, client = depth + 1, found
            if not self._has(found):
                break
        return depth, client

    def _has(self, found: Address) -> bool:
        return any(found in one for one in self._networks)


def network(name: str) -> IPv4Network | IPv6Network:
    """Return an address or a network in CIDR notation as a network.

    Raises:
        ValueError: it is neither, or it has bits behind the prefix.
    """
    if "%" in name:
        raise ValueError(f"{name!r} has a zone; leave it out")
    found = ip_network(name)
    mapped = found.network_address.ipv4_mapped if isinstance(found, IPv6Network) else None
    return ip_network((mapped, found.prefixlen - 96)) if mapped and found.prefixlen >= 96 else found


def address(text: str) -> Address | None:
    """Return a peer's address: without a zone, and as IPv4 where IPv6 only carries it, as on a dual-stack socket."""
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found


def _without_port(hop: str) -> Address | None:
    match = _WITH_PORT.fullmatch(hop)
    text = (match[1] or match[2] or "") if match else hop
    return None if "%" in text else address(text)


def _items(values: Sequence[str]) -> list[str]:
    return [item.strip() for value in values for item in value.split(",")] if values else []


def _beside(items: Sequence[str], depth: int, number: int) -> str:
    """Return the item of the proxy that reported the client, if there is one for each hop; else the nearest proxy's."""
    if not items:
        return ""
    return items[-depth] if depth and len(items) == number else items[-1]
