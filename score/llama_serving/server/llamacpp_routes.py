"""llama.cpp's routes that describe the server: the model and the slots."""

from importlib.metadata import version

from fastapi import FastAPI
from starlette.responses import Response

from llama_serving.contract import llamacpp
from llama_serving.server.lifecycle import Lifecycle
from llama_serving.server.responses import as_json


def add(app: FastAPI, lifecycle: Lifecycle) -> None:
    """Add the routes."""
    ours = f"llama-endpoints {version('llama-endpoints')}"

    async def props() -> Response:
        with lifecycle.serving() as service:
            number = service.settings.max_num_seqs
            return as_json(llamacpp.props(service.variant.name, service.builder.context, number, ours))

    async def slots() -> Response:
        with lifecycle.serving() as service:
            number, running = service.settings.max_num_seqs, service.engine.stats().running
            return as_json(llamacpp.slots(service.builder.context, number, running))

    for path, function in {"/props": props, "/slots": slots}.items():
        app.add_api_route(path, function, methods=["GET", "HEAD"])
