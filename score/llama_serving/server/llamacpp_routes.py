"""llama.cpp's routes that generate nothing: the model, the slots, and tokens."""

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response

from llama_serving.contract import llamacpp
from llama_serving.contract.request import Body, TokenIds
from llama_serving.prompts import completion
from llama_serving.prompts.tokenizer import TextDecoder
from llama_serving.server.lifecycle import Lifecycle
from llama_serving.server.responses import as_json
from llama_serving.server.scoring import Scoring
from llama_serving.service.service import Service


def add(app: FastAPI, lifecycle: Lifecycle, scoring: Scoring) -> None:
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
    app.add_api_route("/tokenize", scoring.asking(_tokenize, costly=True), methods=["POST"])
    app.add_api_route("/detokenize", scoring.asking(_detokenize, costly=True), methods=["POST"])


def _tokenize(service: Service, body: Body) -> dict[str, Any]:
    text, special, with_pieces = llamacpp.parse_tokenize(body)
    ids = ([service.variant.bos_id] if special else []) + service.tokenizer.encode(text)
    return llamacpp.tokens(ids, [service.tokenizer.piece(i) for i in ids] if with_pieces else None)


def _detokenize(service: Service, body: Body) -> dict[str, Any]:
    ids = llamacpp.parse_detokenize(body)
    completion.from_ids(TokenIds(tuple(ids)), service.variant)  # refuses ids outside the vocabulary
    decoder = TextDecoder(service.tokenizer)
    text = "".join(map(decoder.push, ids)) + decoder.finish()
    return {llamacpp.CONTENT: text.removeprefix(" ")}  # the dummy space that encoding put in front
