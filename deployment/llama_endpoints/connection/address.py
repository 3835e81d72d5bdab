"""The address of a server."""

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from llama_serving.errors import SetupError


def checked(url: str, *, name: str) -> str:
    """Return the address without `/v1` and slashes at its end.

    Args:
        url: as it was given.
        name: the option or argument that gave it, for the message.

    Raises:
        SetupError: it is no address of HTTP, or holds a user or a password.
    """
    import httpx2  # (not in every command that names an address)

    try:
        parts = urlsplit(url)
        usable = (
            not re.search(r"\s", url)
            and parts.scheme in ("http", "https")
            and parts.hostname
            and not parts.query
            and not parts.fragment
        )
        parts.port  # noqa: B018  (raises for what is no port)
        secret = parts.username is not None or parts.password is not None
        # What no connection could be made to: httpx2 and the look-up of names raise these in the middle of a request.
        httpx2.URL(url).raw_host.decode("ascii").encode("idna")
    except (
        ValueError,
        httpx2.InvalidURL,
    ):  # (a host without a name in DNS is a UnicodeError, which is a ValueError)
        usable = secret = False
    if not usable or secret:
        raise SetupError(
            f"{name} must be an address such as http://127.0.0.1:8453, without a user or a password."
        )
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def is_loopback(url: str) -> bool:
    """Return whether an address is this machine's, to which no proxy leads."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def reason(error: Exception) -> str:
    """Return why a connection failed, as half a sentence."""
    text = str(error).partition("\n")[0].rstrip(".")
    return re.sub(r"^\[Errno -?\d+\] ", "", text) or type(error).__name__
