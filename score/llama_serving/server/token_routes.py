"""`/tokenize` and `/detokenize`, in vLLM's form and in llama.cpp's."""

from typing import Any

from fastapi import FastAPI

from llama_serving.contract import llamacpp, vllm
from llama_serving.contract.request import Body, Completion, TokenIds
from llama_serving.prompts import completion
from llama_serving.prompts.tokenizer import TextDecoder
from llama_serving.server.scoring import Scoring
from llama_serving.service.service import Service


def add(app: FastAPI, scoring: Scoring) -> None:
    """Add the routes."""

    def tokenize(service: Service, body: Body) -> dict[str, Any]:
        if "prompt" not in body and "messages" not in body:
            return _of_llamacpp(service, body)
        given, with_specials = vllm.parse_tokenize(body)
        scoring.check_model(service, body.get("model"))
        if isinstance(given, str) and not with_specials:
            ids = service.tokenizer.encode(given)
        else:
            ids = list(service.builder.encode(Completion(given) if isinstance(given, str) else given))
        names = list(map(service.tokenizer.name, ids)) if body.get("return_token_strs") else None
        return vllm.tokens(ids, service.builder.context, names)

    def detokenize(service: Service, body: Body) -> dict[str, Any]:
        ids = vllm.parse_detokenize(body)
        scoring.check_model(service, body.get("model"))
        completion.from_ids(TokenIds(tuple(ids)), service.variant)  # refuses ids outside the vocabulary
        decoder = TextDecoder(service.tokenizer)
        text = "".join(map(decoder.push, ids)) + decoder.finish()
        return vllm.text(text.removeprefix(" "))  # the dummy space that encoding put in front

    app.add_api_route("/tokenize", scoring.asking(tokenize, costly=True), methods=["POST"])
    app.add_api_route("/detokenize", scoring.asking(detokenize, costly=True), methods=["POST"])


def _of_llamacpp(service: Service, body: Body) -> dict[str, Any]:
    text, special, with_pieces = llamacpp.parse_tokenize(body)
    ids = ([service.variant.bos_id] if special else []) + service.tokenizer.encode(text)
    return llamacpp.tokens(ids, [service.tokenizer.piece(i) for i in ids] if with_pieces else None)
