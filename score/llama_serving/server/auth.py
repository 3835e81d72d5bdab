"""Who may ask: one of the operator's keys, in the header of either field."""

import hmac
from collections.abc import Mapping, Sequence
from ipaddress import ip_address

from llama_serving.errors import SetupError, Unauthorized


def check(given: Mapping[str, str], keys: Sequence[str]) -> None:
    """Let a request pass that has a key, in `Authorization: Bearer` or `api-key`.

    Every key is compared in full, in constant time, so that the time says nothing of them.

    Raises:
        Unauthorized: it has none, or another.
    """
    if not keys:
        return
    scheme, _, token = given.get("authorization", "").partition(" ")
    offered = token.strip() if scheme.lower() == "bearer" else given.get("api-key", "")
    # (Starlette reads headers as latin-1, whatever their bytes are.)
    matches = [hmac.compare_digest(offered.encode("latin-1"), key.encode()) for key in keys]
    if not any(matches):
        raise Unauthorized(
            "This server needs a key. Send one of its keys in the header Authorization: Bearer KEY, or in api-key."
        )


def check_address(host: str, keys: Sequence[str], *, open_to_all: bool) -> None:
    """Keep a server without keys on this machine.

    Raises:
        SetupError: others could reach it, and nobody said that they may.
    """
    if keys or open_to_all or _is_loopback(host):
        return
    raise SetupError(
        f"Without a key, anybody who reaches {host} could use this server. Set LLAMA_API_KEYS (or LLAMA_API_KEYS_FILE), "
        "give --host 127.0.0.1, or say --open-to-all."
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
