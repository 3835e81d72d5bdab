"""Ollama's routes that generate nothing: what model there is, and what this server does not do."""

from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from llama_serving.contract import ollama_models
from llama_serving.contract.ollama_models import UNSUPPORTED, Served
from llama_serving.contract.request import Body
from llama_serving.errors import BadRequest
from llama_serving.server.lifecycle import Lifecycle
from llama_serving.server.protocols import ROOT
from llama_serving.server.responses import as_json
from llama_serving.server.scoring import Scoring
from llama_serving.service.service import Service


def add(app: FastAPI, lifecycle: Lifecycle, scoring: Scoring) -> None:
    """Add the routes."""
    since = datetime.now(UTC)
    ours = f"llama-endpoints {version('llama-endpoints')}"

    def served(service: Service) -> Served:
        return Served(service.variant, service.builder.context, since)

    def listing(describe: Callable[[Served], dict[str, Any]]) -> Callable[[], Any]:
        async def answer() -> Response:
            with lifecycle.serving() as service:
                return as_json(describe(served(service)))

        return answer

    def show(service: Service, body: Body) -> dict[str, Any]:
        scoring.check_model(service, ollama_models.parse_show(body))
        return ollama_models.show(served(service))

    async def number() -> Response:
        return as_json(ollama_models.version(ours))

    async def is_here() -> Response:
        """Tell that there is a server. (The page at the root is for browsers, which GET it.)"""
        return PlainTextResponse("Ollama is running")

    for path, describe in {"/api/tags": ollama_models.tags, "/api/ps": ollama_models.running}.items():
        app.add_api_route(path, listing(describe), methods=["GET", "HEAD"])
    app.add_api_route("/api/version", number, methods=["GET", "HEAD"])
    app.add_api_route("/api/show", scoring.asking(show), methods=["POST"])
    app.add_api_route(ROOT, is_here, methods=["HEAD"])
    for path in UNSUPPORTED:
        app.add_api_route(path, _unsupported, methods=["DELETE" if path == "/api/delete" else "POST"])


async def _unsupported(request: Request) -> Response:
    """Refuse what would need a store of models, with the sentence that says what to do."""
    raise BadRequest(UNSUPPORTED[request.url.path], code="unsupported_operation")
