"""The application: all routes, probes and models; `scoring` has what those that generate have in common."""

import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from llama_serving.contract.server_openapi import server_document
from llama_serving.errors import MethodNotAllowed, NotFound, ServingError
from llama_serving.faults import as_serving_error
from llama_serving.server import llamacpp_routes, ollama_routes, token_routes
from llama_serving.server.fronts.forwarded import public_base
from llama_serving.server.lifecycle import Lifecycle, Phase
from llama_serving.server.metrics import Metrics
from llama_serving.server.protocols import INFO, PROTOCOLS, ROOT, spoken_at
from llama_serving.server.responses import as_json, refusal
from llama_serving.server.scoring import Options, Scoring
from llama_serving.service.collection.configuration import notice
from llama_serving.service.service import Service
from llama_serving.settings import Settings


def routes(lifecycle: Lifecycle, metrics: Metrics, settings: Settings, options: Options) -> FastAPI:
    """Return the application without its middleware (`middleware.py`)."""
    app = FastAPI(
        title="llama-endpoints",
        version=version("llama-endpoints"),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    scoring = Scoring(lifecycle, settings, options)
    for path, adapter in PROTOCOLS.items():
        app.add_api_route(path, scoring.route(adapter), methods=["POST"])
    _add_probes(app, lifecycle, metrics)
    _add_models(app, lifecycle)
    ollama_routes.add(app, lifecycle, scoring)
    llamacpp_routes.add(app, lifecycle)
    token_routes.add(app, scoring)
    _add_document(app, settings.path_prefix)
    app.add_exception_handler(HTTPException, _not_found)
    app.add_exception_handler(ServingError, _refused)
    app.add_exception_handler(Exception, _refused)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    return refusal(as_serving_error(error), request.state.request_id, spoken_at(request.url.path))


async def _not_found(request: Request, error: Exception) -> Response:
    """Return Starlette's 404 or 405 as an error response of ours."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    ours: ServingError
    if status == 405 and request.url.path != ROOT:
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
        return as_json({"status": "dead" if dead else "live"}, 503 if dead else 200)

    def ready() -> Response:
        phase = lifecycle.phase
        return as_json({"status": phase.value}, 200 if phase is Phase.READY else 503)

    def ping() -> Response:
        return PlainTextResponse("\n", 200 if lifecycle.phase is Phase.READY else 503)

    async def answer_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, function in {
        "/health": ready,
        "/health/live": live,
        "/health/ready": ready,
        "/ping": ping,
        "/version": lambda: as_json({"version": app.version}),
    }.items():
        app.add_api_route(path, _on_loop(function), methods=["GET", "HEAD"])
    app.add_api_route("/metrics", answer_metrics, methods=["GET", "HEAD"])


def _add_document(app: FastAPI, prefix: str) -> None:
    """Add the OpenAPI document. Behind a proxy it tells the server's address there."""

    async def document(request: Request) -> Response:
        address = public_base(request.scope) + prefix
        return as_json({**server_document(), **({"servers": [{"url": address}]} if address else {})})

    app.add_api_route("/openapi.json", document, methods=["GET", "HEAD"])


def _on_loop(function: Callable[[], Response]) -> Callable[[], Awaitable[Response]]:
    """Make a probe run on the loop, so that an exhausted thread pool does not make the server look dead."""

    async def call() -> Response:
        return function()

    return call


def _add_models(app: FastAPI, lifecycle: Lifecycle) -> None:
    started = int(time.time())

    def described(service: Service) -> dict[str, Any]:
        name, context = service.variant.name, service.builder.context
        told = notice(service.settings, service.collector)
        return {"id": name, "object": "model", "created": started, "owned_by": "llama-endpoints",
                "max_model_len": context, "capabilities": service.variant.capabilities,
                **({"notice": told} if told else {})}  # fmt: skip

    async def models() -> Response:
        with lifecycle.serving() as service:
            return as_json({"object": "list", "data": [described(service)]})

    async def model(name: str) -> Response:
        with lifecycle.serving() as service:
            if name != service.variant.name:
                raise NotFound(f"This server only has {service.variant.name}.", code="model_not_found")
            return as_json(described(service))

    async def info() -> Response:
        """Return the description that Azure's inference clients ask for."""
        with lifecycle.serving() as service:
            kind = "completion" if service.variant.dialog is None else "chat-completion"
            return as_json({"model_name": service.variant.name, "model_type": kind,
                          "model_provider_name": "llama-endpoints"})  # fmt: skip

    for path in ("/v1/models", "/models"):
        app.add_api_route(path, models, methods=["GET", "HEAD"])
    app.add_api_route("/v1/models/{name:path}", model, methods=["GET", "HEAD"])
    for path in INFO:
        app.add_api_route(path, info, methods=["GET", "HEAD"])
