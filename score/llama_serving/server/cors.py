"""CORS: allows browser pages of the configured origins. Off by default."""

from collections.abc import Sequence
from typing import Final

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from llama_serving.server.accounts import accounts

READABLE: Final = ("x-request-id", "retry-after", *accounts.HEADERS)
"""Response headers that a page may read besides the usual ones."""
KEPT_S: Final = 600
"""Seconds that a browser may cache the permission."""


def around(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Return the application with CORS for these origins; `*` is every origin.

    It precedes authentication, since a browser's preflight request has no key. Credentials are not allowed: a cookie is never
    a key.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),
        expose_headers=READABLE,
        max_age=KEPT_S,
    )
