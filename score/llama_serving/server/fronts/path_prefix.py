"""ASGI middleware: serves all routes below a path prefix too, whether a proxy strips it or not."""

from urllib.parse import quote, unquote

from starlette.types import ASGIApp, Receive, Scope, Send

from llama_serving.errors import SetupError
from llama_serving.server.middleware import NAMED


def check_prefix(prefix: str) -> None:
    """Refuse a prefix below which the server has paths of its own: they would stand for two things.

    Raises:
        SetupError: it has.
    """
    own = next((path for path in sorted(NAMED) if f"{path}/".startswith(f"{prefix}/")), None)
    if prefix and own is not None:
        raise SetupError(
            f"LLAMA_PATH_PREFIX={prefix} can't be used: this server has paths of its own there, such as {own}. "
            "Use another prefix, such as /llama."
        )


class PathPrefix:
    """`GET /prefix/path` becomes `GET /path`. Other paths stay as they are: probes do not pass the proxy.

    Args:
        app: the server.
        prefix: such as `/llama`.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app, self._prefix = app, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request under its path without the prefix."""
        if scope["type"] == "http":
            path = scope["path"]
            if path == self._prefix or path.startswith(f"{self._prefix}/"):
                scope = {**scope, **_paths(scope, path[len(self._prefix) :] or "/", self._prefix)}
        await self._app(scope, receive, send)


def _paths(scope: Scope, path: str, prefix: str) -> dict[str, object]:
    raw = (scope.get("raw_path") or b"").decode("latin-1")
    rest = raw[len(prefix) :] or "/" if raw.startswith(prefix) else ""
    return {"path": path, "raw_path": (rest if unquote(rest) == path else quote(path)).encode("latin-1")}
