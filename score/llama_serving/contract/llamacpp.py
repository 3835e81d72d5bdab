"""llama.cpp's `/completion` and `/infill`, as its editors' plugins use them, and what they ask about model and tokens."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final

from llama_serving.contract import inputs, parameters, receipt
from llama_serving.contract.adapter import EventWriter, ProtocolAdapter, StreamFormat
from llama_serving.contract.content_filter import results
from llama_serving.contract.details import chat_logprobs
from llama_serving.contract.request import (
    UNLIMITED,
    Body,
    Completion,
    Delta,
    Generation,
    Generations,
    Infill,
    Input,
    ReplyShape,
    Request,
    TokenIds,
)
from llama_serving.contract.strict_json import present
from llama_serving.contract.validation import validate
from llama_serving.errors import BadRequest, ServingError

NAMES: Final[Mapping[str, str]] = {
    "n_predict": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "repeat_penalty": "repetition_penalty",
    "n_probs": "logprobs",
    "json_schema": parameters.CONSTRAINT,
    "grammar": parameters.CONSTRAINT,
    **{
        name: name
        for name in (
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "seed",
            "stop",
            "ignore_eos",
            "stream",
            "editor_stops",
            "receipt",
        )
    },
}
"""Fields that are parameters, and our names of them."""
CONTENT: Final = "content"


def parse_completion(body: Body) -> Request:
    """Parse a body of `/completion`.

    Raises:
        BadRequest: the body is invalid, or needs something that this server does not support.
    """
    body = _checked(body, "completion")
    prompt = body["prompt"]
    if not isinstance(prompt, str):
        return _request(body, TokenIds(tuple(int(i) for i in prompt)), "prompt")
    read = inputs.text(prompt, "prompt")
    return _request(body, replace(read, marked=True) if isinstance(read, Completion) else read, "prompt")


def parse_infill(body: Body) -> Request:
    """Parse a body of `/infill`. Both ends may be empty, as they are in an empty file.

    Raises:
        BadRequest: the body is invalid, or needs something that this server does not support.
    """
    body = {"editor_stops": True, **_checked(body, "infill")}
    prefix = body["input_prefix"] + body.get("prompt", "")
    extra = tuple(one["text"] for one in body.get("input_extra", ()) if one["text"])
    return _request(body, Infill(prefix, body["input_suffix"], extra, fitted=True), "input_prefix")


def answer(request: Request, generations: Generations, model: str) -> dict[str, Any]:
    """Return llama.cpp's response object; `model` is the name of the model."""
    ((sequence,),) = generations
    return _chosen(request, {**_head(request, sequence.full_text), **_end(request, sequence, model)})


class Chunks:
    """The objects of a stream: one for each piece of text, and a last one without text and with all counts."""

    def __init__(self, request: Request, model: str) -> None:
        self._request, self._model = request, model

    def of(self, delta: Delta) -> list[dict[str, Any]]:
        """Return the object of one piece of text, or of the end."""
        if delta.generation is not None:
            end = _end(self._request, delta.generation, self._model)
            return [_chosen(self._request, {**_head(self._request, delta.text), **end})]
        if self._request.prefill_only:
            return []
        return [{**_head(self._request, delta.text), "stop": False}]

    def last(self) -> list[dict[str, Any]]:
        """Return nothing: the last object has all."""
        return []


def parse_tokenize(body: Body) -> tuple[str, bool, bool]:
    """Return the text to encode, whether the id of a beginning is wanted in front, and whether each token's text is.

    Raises:
        BadRequest: the body is invalid.
    """
    body = present(body)
    validate(body, "llamacpp#/$defs/tokenize")
    return body["content"], bool(body.get("add_special")), bool(body.get("with_pieces"))


def tokens(ids: list[int], pieces: list[bytes] | None) -> dict[str, Any]:
    """Return the response of `/tokenize`; the pieces are each token's text, as bytes where it is none of its own."""
    if pieces is None:
        return {"tokens": ids}
    return {"tokens": [{"id": i, "piece": _piece(raw)} for i, raw in zip(ids, pieces, strict=True)]}


def props(model: str, context: int, slots: int, server: str) -> dict[str, Any]:
    """Return the response of `/props`."""
    return {
        "default_generation_settings": {"n_ctx": context},
        "total_slots": slots,
        "model_alias": model,
        "model_path": model,
        "modalities": {"vision": False, "audio": False},
        "build_info": server,
    }


def slots(context: int, number: int, running: int) -> list[dict[str, Any]]:
    """Return the response of `/slots`: as many as sequences may run, and as many of them busy as do."""
    return [
        {"id": one, "n_ctx": context, "speculative": False, "is_processing": one < running}
        for one in range(number)
    ]


def _piece(raw: bytes) -> str | list[int]:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return list(raw)


def _checked(body: Body, kind: str) -> Body:
    body = present(body)
    validate(body, f"llamacpp#/$defs/{kind}")
    return body


def _request(body: Body, prompt: Input, path: str) -> Request:
    given = _effective(body)
    if given["prefill_only"] and given.get("receipt"):
        raise BadRequest("`receipt` belongs to a text, and none is generated for `n_predict: 0`. Leave one of them out.",
                         code="unsupported_field", param="receipt")  # fmt: skip
    known = {name: value for name, value in given.items() if name in NAMES}
    patience = body.get("t_max_predict_ms")
    return Request(
        (prompt,),
        parameters.parse(known, aliases=NAMES),
        ReplyShape.CONTENT,
        (path,),
        "",
        ceiling=True,
        model=body.get("model"),
        spelling=tuple((NAMES[name], name) for name in known),
        fields=tuple(body.get("response_fields", ())),
        prefill_only=given["prefill_only"],
        min_indent=int(body.get("n_indent", 0)),
        patience_s=patience / 1e3 if patience else None,
    )


def _effective(body: Body) -> dict[str, Any]:
    """Return the parameters without those at a value that has no effect.

    Raises:
        BadRequest: the repetition penalty is to cover only some of the text.
    """
    given = dict(body)
    lengths = [name for name in body if NAMES.get(name) == "max_new_tokens"]
    given["prefill_only"] = any(given[name] == 0 for name in lengths)
    for name in lengths:
        if given[name] <= 0:
            given[name] = 1 if given[name] == 0 else UNLIMITED
    if given.get("seed") == -1:
        del given["seed"]
    for name in ("n_probs", "json_schema", "grammar"):
        if not given.get(name):
            given.pop(name, None)
    if given.get("repeat_last_n") == 0:
        given.pop("repeat_penalty", None)
    if given.get("repeat_penalty", 1) != 1:
        for name, all_of_it in (("repeat_last_n", -1), ("penalize_nl", True)):
            if given.get(name, all_of_it) != all_of_it:
                raise BadRequest(
                    f"`{name}` must be {str(all_of_it).lower()} beside `repeat_penalty`, which covers the whole prompt "
                    "and text here. Leave one of them out.",
                    code="invalid_value",
                    param=name,
                )
    return given


def _head(request: Request, text: str) -> dict[str, Any]:
    return {"index": 0, CONTENT: "" if request.prefill_only else text}


def _end(request: Request, sequence: Generation, model: str) -> dict[str, Any]:
    written = 0 if request.prefill_only else sequence.usage.completion_tokens
    read = sequence.usage.prompt_tokens
    logprobs = sequence.logprobs
    return {
        "tokens": [],
        "stop": True,
        "model": model,
        "tokens_predicted": written,
        "tokens_evaluated": read,
        "tokens_cached": read + written,
        "truncated": sequence.truncated,
        "has_new_line": "\n" in sequence.text and not request.prefill_only,
        "stop_type": _stop_type(sequence),
        "stopping_word": sequence.stopped_by,
        **results(sequence.findings),
        **({} if logprobs is None else {"completion_probabilities": chat_logprobs(logprobs)["content"]}),
        "timings": {
            **_timing("prompt", read, sequence.times.first_s),
            **_timing("predicted", written, sequence.times.rest_s),
        },
        **receipt.field(sequence),
    }


def _stop_type(sequence: Generation) -> str:
    if sequence.finish_reason == "stop":
        return "word" if sequence.stopped_by else "eos"
    return "content_filter" if sequence.finish_reason == "content_filter" else "limit"


def _timing(name: str, number: int, seconds: float) -> dict[str, Any]:
    return {
        f"{name}_n": number,
        f"{name}_ms": seconds * 1e3,
        f"{name}_per_token_ms": seconds * 1e3 / number if number else 0.0,
        f"{name}_per_second": number / seconds if seconds else 0.0,
    }


def _chosen(request: Request, whole: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that the request names, each under its path; all if it names none."""
    if not request.fields:
        return whole
    found = {path: _at(whole, path) for path in request.fields}
    found["receipt"] = whole.get("receipt")  # (asked for by a field of its own)
    return {path: value for path, value in found.items() if value is not None}


def _at(whole: dict[str, Any], path: str) -> Any:
    value: Any = whole
    for step in path.split("/"):
        value = value.get(step) if isinstance(value, dict) else None
    return value


class LlamaCpp(ProtocolAdapter):
    """See `ProtocolAdapter`.

    Args:
        parse: parser of one route.
    """

    stream_format: ClassVar = StreamFormat.BARE_EVENTS

    def __init__(self, parse: Callable[[Body], Request]) -> None:
        self._parse = parse

    def parse(self, body: Body) -> Request:
        """See `ProtocolAdapter.parse`."""
        return self._parse(body)

    def answer(self, request: Request, generations: Generations, model: str) -> Any:
        """See `ProtocolAdapter.answer`."""
        return answer(request, generations, model)

    def writer(self, request: Request, model: str) -> EventWriter:
        """See `ProtocolAdapter.writer`."""
        return Chunks(request, model)

    def error(self, error: ServingError, request_id: str) -> dict[str, Any]:
        """Return our object with the fields that llama.cpp has too, which are OpenAI's."""
        return error.body(request_id, openai=True)
