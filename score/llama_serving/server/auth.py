"""Which keys a request offers, and which addresses need one."""

from collections.abc import Mapping, Sequence
from ipaddress import ip_address

from llama_serving.errors import SetupError


def offered(headers: Mapping[str, str]) -> tuple[str, ...]:
    """Return the keys in `Authorization: Bearer` and `api-key`; only the first counts."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return tuple(filter(None, (bearer, headers.get("api-key", ""))))


def check_address(host: str, keys: Sequence[object], *, open_to_all: bool) -> None:
    """Require a key unless the server is only reachable from this machine.

    Raises:
        SetupError: other machines could reach it without a key, and `open_to_all` is not set.
    """
    if keys or open_to_all or _is_loopback(host):
        return
    raise SetupError(
        f"Without a key, anybody who reaches {host} could use this server. Set LLAMA_API_KEYS, LLAMA_API_KEYS_FILE or LLAMA_NAMED_KEYS, "
        "give --host 127.0.0.1, or give --open-to-all."
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
