"""Browsers: pages of the origins that the operator names may ask. Off by default."""

from collections.abc import Sequence
from typing import Final

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

READABLE: Final = ("x-request-id", "retry-after")
"""Headers of an answer that a page may read beside the usual ones."""
KEPT_S: Final = 600
"""How long a browser may remember what it may do."""


def around(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The application, for the pages of these origins too; `*` is every page.

    It stands in front of the keys: a browser asks first whether it may send one, and sends none with that. No cookie is
    ever taken for a key, so credentials are not allowed.
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
