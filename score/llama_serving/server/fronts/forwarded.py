"""ASGI middleware: puts what trusted proxies report of a request in the place of what the connection shows."""

from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llama_serving.server.fronts.proxies import UNIX, TrustedProxies, address

FOR: Final = "x-forwarded-for"
PROTO: Final = "x-forwarded-proto"
HOST: Final = "x-forwarded-host"
_BASE: Final = "llama_serving.base"


class ForwardedHeaders:
    """Sets `client` and `scheme` of a request; an untrusted peer's headers change nothing."""

    def __init__(self, app: ASGIApp, proxies: TrustedProxies) -> None:
        self._app, self._proxies = app, proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http" and self._proxies:
            scope = self._read(scope)
        await self._app(scope, receive, send)

    def _read(self, scope: Scope) -> Scope:
        client, headers = scope.get("client"), Headers(scope=scope)
        told = self._proxies.read(
            client[0] if client else None, *(headers.getlist(name) for name in (FOR, PROTO, HOST))
        )
        found = dict(scope)
        if told.client is not None:
            found["client"] = (told.client, 0)  # (which port it was is not reported)
        if told.scheme is not None:
            found["scheme"] = told.scheme
        if told.host is not None:
            found[_BASE] = f"{found['scheme']}://{told.host}"
        return found


def client_of(scope: Scope) -> str:
    """Return the address that a request came from, in its usual form; `unix` for a peer on a Unix socket."""
    client = scope.get("client")
    if not client:
        return UNIX
    return str(address(client[0]) or client[0])


def public_base(scope: Scope) -> str:
    """Return scheme and host that the client used, if a trusted proxy reports them; else nothing.

    A client's own `Host` header is not believed: what it says would reach others by way of a cache.
    """
    return str(scope.get(_BASE, ""))
