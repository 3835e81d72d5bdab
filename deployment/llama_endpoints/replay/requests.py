"""The request that a receipt belongs to: from its body, or from its prompt and the receipt's own parameters."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Final

from llama_serving.constraints.constraint import Constraint
from llama_serving.contract import llamacpp, ollama, protocol, rows
from llama_serving.contract.request import Completion, Parameters, ReplyShape, Request
from llama_serving.contract.strict_json import present

_SHORT_ROW: Final = ("input_string", "prefix", "custom_id", "url")
_SHAPES: Final = {
    "openai": ReplyShape.COMPLETION,
    "ollama": ReplyShape.GENERATE,
    "llama.cpp": ReplyShape.CONTENT,
}
_OTHERWISE: Final = frozenset(("stop", "seed", "logit_bias", "response_format", "receipt"))


def of_body(body: Mapping[str, Any], protocol_name: str) -> Request:
    """Return the request in a body of the receipt's protocol, or in a row of a batch.

    Raises:
        BadRequest: the body is not valid there.
    """
    match protocol_name:
        case "ollama":
            chat = body.get("messages") is not None
            request = ollama.parse_chat(body) if chat else ollama.parse_generate(body)
        case "llama.cpp":
            infill = "input_prefix" in body
            request = llamacpp.parse_infill(body) if infill else llamacpp.parse_completion(body)
        case _:
            request = _of_row_or_body(present(body))
    return undisturbed(request)


def of_prompt(text: str, receipt: Mapping[str, Any]) -> Request:
    """Return the request of a prompt that is a plain text, with every parameter from the receipt."""
    known, held = receipt["parameters"], receipt["parameters"]["constraint"]
    named = {
        one.name: known[one.name]
        for one in fields(Parameters)
        if one.name in known and one.name not in _OTHERWISE
    }
    parameters = Parameters(
        **named,
        stop=tuple(known["stop"]) or None,
        logit_bias=tuple((int(token), bias) for token, bias in known["logit_bias"]) or None,
        seed=receipt["seed"],
        ignore_eos=True,  # the receipt has all ids that end the text
        response_format=None if held is None else Constraint(held["kind"], held["text"]),
    )
    request = Request(
        (Completion(text),),
        parameters,
        _SHAPES.get(receipt["protocol"], ReplyShape.ROWS),
        ("prompt",),
        "parameters",
        truncate_prompt_tokens=known["truncate_prompt_tokens"],
        stop_token_ids=frozenset(known["stop_token_ids"]),
        min_indent=known["min_indent"],
    )
    return undisturbed(request)


def undisturbed(request: Request) -> Request:
    """Return the request whole instead of streamed, with a receipt, and with no time limit."""
    parameters = replace(request.parameters, stream=None, receipt=True)
    return replace(request, parameters=parameters, patience_s=None, prefill_only=False)


def one_of(request: Request, index: int, seed: int | None) -> Request:
    """Return the request for one of its prompts alone, with `seed` where it has none of its own."""
    parameters = request.parameters
    seeded = replace(parameters, seed=seed) if parameters.seed is None else parameters
    return replace(request, inputs=(request.inputs[index],), paths=(request.paths[index],), parameters=seeded)


def _of_row_or_body(body: Mapping[str, Any]) -> Request:
    if any(name in body for name in _SHORT_ROW):
        return rows.request(rows.split(body), Parameters())
    return protocol.parse(body)
