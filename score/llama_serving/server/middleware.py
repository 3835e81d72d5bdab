"""Middleware of every route: request id, key, log line and metrics."""

import json
import logging
import re
import time
import uuid
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llama_serving.faults import as_serving_error
from llama_serving.server.accounts.accounts import Accounts
from llama_serving.server.fronts.forwarded import client_of
from llama_serving.server.metrics import Metrics
from llama_serving.server.page import is_asked_for
from llama_serving.server.protocols import KNOWN, ROOT, spoken_at
from llama_serving.server.responses import refusal
from llama_serving.server.scoring import GONE
from llama_serving.server.start_pacing import StartPacer

_log = logging.getLogger(__name__)

PROBES: Final = frozenset(("/health", "/health/live", "/health/ready", "/ping"))
"""Probes need no key."""
NAMED: Final = KNOWN | PROBES
"""Routes that metrics distinguish."""
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id_of(scope: Scope) -> str:
    """Return a request's id: the client's if it is valid, else a new one, which is kept."""
    state = scope.setdefault("state", {})
    if "request_id" not in state:
        given = Headers(scope=scope).get("x-request-id", "")
        state["request_id"] = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    return str(state["request_id"])


class RequestMiddleware:
    """ASGI middleware around the whole application.

    Args:
        app: the routes.
        metrics: count the answers.
        accounts: have the keys.
        page: what browsers get at `/`, which needs no key; None gives them what others get.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, accounts: Accounts, *, page: ASGIApp | None) -> None:
        self._app, self._metrics, self._accounts, self._page = app, metrics, accounts, page
        self._pacer = StartPacer()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # (uvicorn is configured to pass nothing else)
            raise RuntimeError(f"{scope['type']} is not served")
        headers, started = Headers(scope=scope), time.monotonic()
        request_id, status = request_id_of(scope), GONE

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            answer = self._page if self._page is not None and is_asked_for(scope) else self._app
            if not _is_probe(scope):
                await self._pacer.wait()
                if answer is self._app:
                    scope["state"]["key"] = self._accounts.authenticate(headers)
            await answer(scope, receive, sending)
        except ClientDisconnect:
            pass
        except Exception as error:
            ours = as_serving_error(error)
            if status == GONE:  # nothing was sent yet
                await refusal(ours, request_id, spoken_at(scope["path"]))(scope, receive, sending)
        finally:
            self._tell(scope, request_id, status, time.monotonic() - started)

    def _tell(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        path = scope["path"]
        route = path if path in NAMED else "other"
        self._metrics.answered(route, status, seconds)
        if not _is_probe(scope) or status >= 400:
            line = {
                "request_id": request_id,
                "client": client_of(scope),
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(seconds * 1e3, 1),
            }
            _log.info("request %s", json.dumps(line), extra={"fields": line})


def _is_probe(scope: Scope) -> bool:
    """Return whether a request only asks for a sign of life: Ollama's clients send `HEAD /`."""
    return scope["path"] in PROBES or (scope["path"] == ROOT and scope["method"] == "HEAD")
