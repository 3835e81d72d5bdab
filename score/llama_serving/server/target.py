"""Accepts request targets in absolute form, which servers must (RFC 9112, 3.2.2) and some proxies send."""

from typing import Final
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

_SCHEMES: Final = (b"http://", b"https://")


class OriginForm:
    """ASGI middleware: `GET http://host/path` becomes `GET /path`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request under its path."""
        raw = scope.get("raw_path") or b""
        if raw.lower().startswith(_SCHEMES):
            path = b"/" + raw.partition(b"://")[2].partition(b"/")[2]
            scope = {**scope, "raw_path": path, "path": unquote(path.decode("ascii"))}
        await self._app(scope, receive, send)
