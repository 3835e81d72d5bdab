"""Authentication by one of the operator's keys, in either of two headers."""

import hmac
from collections.abc import Mapping, Sequence
from ipaddress import ip_address

from llama_serving.errors import SetupError, Unauthorized


def check(given: Mapping[str, str], keys: Sequence[str]) -> None:
    """Accept a request with a key in `Authorization: Bearer` or `api-key`.

    All keys are compared completely, in constant time, so that timing reveals nothing about them.

    Raises:
        Unauthorized: the key is missing or wrong.
    """
    if not keys:
        return
    scheme, _, token = given.get("authorization", "").partition(" ")
    offered = token.strip() if scheme.lower() == "bearer" else given.get("api-key", "")
    # Starlette decodes headers as latin-1.
    matches = [hmac.compare_digest(offered.encode("latin-1"), key.encode()) for key in keys]
    if not any(matches):
        raise Unauthorized(
            "This server needs a key. Send one of its keys in the header Authorization: Bearer KEY, or in api-key."
        )


def check_address(host: str, keys: Sequence[str], *, open_to_all: bool) -> None:
    """Require a key unless the server is only reachable from this machine.

    Raises:
        SetupError: other machines could reach it without a key, and `open_to_all` is not set.
    """
    if keys or open_to_all or _is_loopback(host):
        return
    raise SetupError(
        f"Without a key, anybody who reaches {host} could use this server. Set LLAMA_API_KEYS (or LLAMA_API_KEYS_FILE), "
        "give --host 127.0.0.1, or give --open-to-all."
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
