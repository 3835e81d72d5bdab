"""Middleware of the routes that generate: a meter for each request, its key's limits, and the headers that tell them."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llama_serving.errors import RateLimited
from llama_serving.server.accounts.accounts import Accounts, headers
from llama_serving.server.accounts.meter import CURRENT
from llama_serving.server.accounts.record import Arrival
from llama_serving.server.fronts.forwarded import client_of
from llama_serving.server.protocols import PROTOCOLS, spoken_at
from llama_serving.server.responses import refusal
from llama_serving.server.scoring import GONE


class Metering:
    """ASGI middleware around the routes, behind the one that authenticates."""

    def __init__(self, app: ASGIApp, accounts: Accounts) -> None:
        self._app, self._accounts = app, accounts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in PROTOCOLS:
            await self._app(scope, receive, send)
            return
        self._accounts.check()  # a request that is refused here has no meter: its record could not be kept either
        state, status = scope["state"], GONE
        arrival = Arrival(state["request_id"], scope["path"], client_of(scope))
        meter = self._accounts.meter(state["key"], arrival)
        CURRENT.set(meter)

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(headers(meter.quota))
            await send(message)

        try:
            try:
                meter.admit()
            except RateLimited as error:
                ours = meter.failed(error)
                await refusal(ours, state["request_id"], spoken_at(scope["path"]))(scope, receive, sending)
            else:
                await self._app(scope, receive, sending)
        finally:
            meter.answered(status)
