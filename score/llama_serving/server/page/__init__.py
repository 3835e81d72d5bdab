"""The page at `/`: one HTML document with its style and script inside, for browsers alone.

Its files lie beside this one. They are joined for the first browser: nothing is compiled, and a browser needs one request.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Receive, Scope, Send

FOLDER: Final = Path(__file__).parent
SCRIPTS: Final = (
    "encode", "parameters", "request", "snippets", "http", "tokens", "answer", "generation", "main",
)  # fmt: skip
"""Joined in this order to one module."""
HTML: Final = "text/html"
JSON: Final = "application/json"


def page(notice: Callable[[], str] = str) -> ASGIApp:
    """Return what sends the page. It holds no secret, so it needs no key; what it asks of the server does.

    Args:
        notice: returns a sentence that every user is told.
    """

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        await _response(notice())(scope, receive, send)

    return respond


def is_asked_for(scope: Scope) -> bool:
    """Return whether a request is a browser's for the page: a client that takes all types, or prefers JSON, gets what `/` is to it."""
    if scope["path"] != "/" or scope["method"] not in ("GET", "HEAD"):
        return False
    accepted = _qualities(Headers(scope=scope).getlist("accept"))
    html = accepted.get(HTML, 0.0)
    return html > 0 and html >= accepted.get(JSON, 0.0)


def _qualities(accept: Sequence[str]) -> dict[str, float]:
    """Return each media type of an `Accept` header with its quality (RFC 9110, 12.5.1); 0 where that is no number."""
    found = {}
    for item in ",".join(accept).split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        given = [text.removeprefix("q=") for text in parameters if text.startswith("q=")]
        found[name] = _number(given[0]) if given else 1.0
    return found


def _number(text: str) -> float:
    return float(text) if text.replace(".", "", 1).isdecimal() else 0.0


@cache
def _response(notice: str) -> HTMLResponse:
    style, script = _read("page.css"), "".join(_read(f"{name}.js") for name in SCRIPTS)
    document = _read("page.html").replace("/* page.css */", style).replace("/* scripts */", script)
    told = f'<p class="notice" role="note">{escape(notice)}</p>' if notice else ""
    document = document.replace("<!-- notice -->\n", told)
    return HTMLResponse(
        document,
        headers={
            "Content-Security-Policy": _policy(style, script),
            "Cache-Control": "no-cache",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "Vary": "Accept",
            "X-Content-Type-Options": "nosniff",
        },
    )


def _policy(style: str, script: str) -> str:
    """Return the Content-Security-Policy: this style, this script, requests to this server, and no HTML from strings."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_digest(script)}'",
            f"style-src '{_digest(style)}'",
            "img-src data:",  # the icon
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
