"""The routes: read the body, take a slot, parse, generate, respond."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final, TypeVar

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from llama_serving.contract import http, openai, strict_json
from llama_serving.contract.adapter import ProtocolAdapter
from llama_serving.contract.azure import Azure
from llama_serving.contract.mlflow import MLflow
from llama_serving.contract.openai import OpenAI
from llama_serving.contract.openapi import server_document
from llama_serving.errors import MethodNotAllowed, NotFound, ServingError
from llama_serving.faults import as_serving_error
from llama_serving.server import body_reader
from llama_serving.server.lifecycle import Lifecycle, Phase
from llama_serving.server.metrics import Metrics
from llama_serving.server.sse import EventStream
from llama_serving.service.service import Service
from llama_serving.settings import Settings

PROTOCOLS: Final[dict[str, ProtocolAdapter]] = {
    "/score": Azure(),
    "/invocations": MLflow(),
    **{f"{prefix}/completions": OpenAI(openai.parse_completion) for prefix in openai.PREFIXES},
    **{f"{prefix}/chat/completions": OpenAI(openai.parse_chat) for prefix in openai.PREFIXES},
}
"""Protocol of every route that generates."""
INFO: Final = tuple(f"{prefix}/info" for prefix in openai.PREFIXES)
"""Where Azure's inference clients ask for the model's description."""

GONE: Final = 499
"""nginx's status for a client that disconnected before the response."""
DEFAULT_DEADLINE_S: Final = 178.0
"""Seconds; managed endpoints allow 180, less the time for the response."""
READ_S: Final = 10.0
"""Seconds after its deadline in which a stream may still be read."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the command, in addition to the settings.

    Attributes:
        strict_model: refuse other models' names with 404.
        body_s: seconds in which a body must arrive.
    """

    strict_model: bool = False
    body_s: float = body_reader.BODY_S


def routes(lifecycle: Lifecycle, metrics: Metrics, settings: Settings, options: Options) -> FastAPI:
    """Return the application without its middleware (`middleware.py`)."""
    app = FastAPI(
        title="llama-endpoints",
        version=version("llama-endpoints"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    scoring = _Scoring(lifecycle, settings, options)
    for path, adapter in PROTOCOLS.items():
        app.add_api_route(path, scoring.route(adapter), methods=["POST"])
    _add_probes(app, lifecycle, metrics)
    _add_models(app, lifecycle)
    app.openapi = server_document  # type: ignore[method-assign]  # FastAPI's own way to say it
    app.add_exception_handler(HTTPException, _not_found)
    app.add_exception_handler(ServingError, _refused)
    app.add_exception_handler(Exception, _refused)
    return app


class _Scoring:
    """The common part of all routes that generate."""

    def __init__(self, lifecycle: Lifecycle, settings: Settings, options: Options) -> None:
        self._lifecycle, self._settings, self._options = lifecycle, settings, options
        self._body_reader = body_reader.BodyReader(settings.max_body, seconds=options.body_s)

    def route(self, adapter: ProtocolAdapter) -> Callable[[Request], Awaitable[Response]]:
        """Return the function of one path."""

        async def score(request: Request) -> Response:
            try:
                return await self._score(adapter, request)
            except ClientDisconnect:
                return Response(status_code=GONE)  # only the log sees it
            except Exception as error:
                spoken = getattr(request.state, "adapter", adapter)
                return refusal(as_serving_error(error), request.state.request_id, spoken)

        return score

    async def _score(self, adapter: ProtocolAdapter, request: Request) -> Response:
        headers = request.headers
        http.check_media_type(headers.get("content-type"), headers.get("content-encoding"))
        self._lifecycle.ready()  # before a body of up to 4 MiB is read
        raw = await self._body_reader.read(request.receive, declared=headers.get("content-length"))
        seconds = self._settings.deadline_s or DEFAULT_DEADLINE_S
        deadline = time.monotonic() + seconds
        with ExitStack() as held:
            service = held.enter_context(self._lifecycle.serving())
            held.enter_context(service.admitted())
            # In a thread: decoding a long body would block the loop.
            given = await asyncio.to_thread(strict_json.decode, raw)
            del raw
            adapter = request.state.adapter = adapter.of(given)
            parsed = await asyncio.to_thread(adapter.parse, given)
            del given
            self._check_model(service, parsed.model)
            model = service.variant.name
            if parsed.parameters.stream:
                deltas = service.astream(parsed, deadline=deadline)
                stream = EventStream.begun(
                    adapter.events(parsed, deltas, model),
                    refusal=lambda error: adapter.error(error, request.state.request_id),
                )
                begun = await _unless_gone(request, stream)
                begun.hold(held.pop_all(), until=asyncio.get_running_loop().time() + seconds + READ_S)
                return begun
            generations = await _unless_gone(request, service.agenerate(parsed, deadline=deadline))
            return await asyncio.to_thread(lambda: _json(adapter.answer(parsed, generations, model)))

    def _check_model(self, service: Service, name: str | None) -> None:
        if self._options.strict_model and name not in (None, service.variant.name):
            raise NotFound(
                f"This server only has {service.variant.name}. Use that name, or leave `model` out.",
                code="model_not_found",
                param="model",
            )


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Return the result of `work`, which is cancelled if the client disconnects.

    Raises:
        ClientDisconnect: the client has disconnected.
    """
    working = asyncio.ensure_future(work)
    listening = asyncio.ensure_future(body_reader.gone(request.receive))
    try:
        await asyncio.wait((working, listening), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, listening):
            task.cancel()
        await asyncio.gather(working, listening, return_exceptions=True)


def spoken_at(path: str) -> ProtocolAdapter | None:
    """Return the protocol of a path's error responses."""
    openais = path.startswith(("/v1/", "/models")) or path in INFO
    return PROTOCOLS["/v1/completions"] if openais else PROTOCOLS.get(path)


def refusal(error: ServingError, request_id: str, adapter: ProtocolAdapter | None = None) -> Response:
    """Return an error response."""
    content = adapter.error(error, request_id) if adapter else error.body(request_id)
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _json(content, error.status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    return refusal(as_serving_error(error), request.state.request_id, spoken_at(request.url.path))


async def _not_found(request: Request, error: Exception) -> Response:
    """Return Starlette's 404 or 405 as an error response of ours."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    ours: ServingError
    if status == 405:
        ours = MethodNotAllowed(f"{request.method} is not allowed for this path.")
        response = refusal(ours, request.state.request_id, spoken_at(request.url.path))
        response.headers["Allow"] = (
            (error.headers or {}).get("Allow", "") if isinstance(error, HTTPException) else ""
        )
        return response
    ours = NotFound(f"There is no such path. Paths that generate: {', '.join(PROTOCOLS)}.")
    return refusal(ours, request.state.request_id, spoken_at(request.url.path))


def _add_probes(app: FastAPI, lifecycle: Lifecycle, metrics: Metrics) -> None:
    def live() -> Response:
        dead = lifecycle.phase is Phase.DEAD
        return _json({"status": "dead" if dead else "live"}, 503 if dead else 200)

    def ready() -> Response:
        phase = lifecycle.phase
        return _json({"status": phase.value}, 200 if phase is Phase.READY else 503)

    def ping() -> Response:
        return PlainTextResponse("\n", 200 if lifecycle.phase is Phase.READY else 503)

    async def answer_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, function in {
        "/health": ready,
        "/health/live": live,
        "/health/ready": ready,
        "/ping": ping,
        "/version": lambda: PlainTextResponse(app.version),
    }.items():
        app.add_api_route(path, _on_loop(function), methods=["GET", "HEAD"])
    app.add_api_route("/metrics", answer_metrics, methods=["GET", "HEAD"])


def _on_loop(function: Callable[[], Response]) -> Callable[[], Awaitable[Response]]:
    """Make a probe run on the loop, so that an exhausted thread pool does not make the server look dead."""

    async def call() -> Response:
        return function()

    return call


def _add_models(app: FastAPI, lifecycle: Lifecycle) -> None:
    started = int(time.time())

    def described(service: Service) -> dict[str, Any]:
        name, context = service.variant.name, service.builder.context
        return {"id": name, "object": "model", "created": started, "owned_by": "llama-endpoints",
                "max_model_len": context}  # fmt: skip

    async def models() -> Response:
        with lifecycle.serving() as service:
            return _json({"object": "list", "data": [described(service)]})

    async def model(name: str) -> Response:
        with lifecycle.serving() as service:
            if name != service.variant.name:
                raise NotFound(f"This server only has {service.variant.name}.", code="model_not_found")
            return _json(described(service))

    async def info() -> Response:
        """Return the description that Azure's inference clients ask for."""
        with lifecycle.serving() as service:
            kind = "completion" if service.variant.dialog is None else "chat-completion"
            return _json({"model_name": service.variant.name, "model_type": kind,
                          "model_provider_name": "llama-endpoints"})  # fmt: skip

    for path in ("/v1/models", "/models"):
        app.add_api_route(path, models, methods=["GET", "HEAD"])
    app.add_api_route("/v1/models/{name:path}", model, methods=["GET", "HEAD"])
    for path in INFO:
        app.add_api_route(path, info, methods=["GET", "HEAD"])


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return _Json(content, status, headers)


class _Json(JSONResponse):
    """JSON with non-ASCII text unescaped."""

    def render(self, content: Any) -> bytes:
        """Return the content as UTF-8."""
        return json.dumps(content, ensure_ascii=False).encode()
