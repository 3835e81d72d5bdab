"""Ollama's `/api/generate` and `/api/chat`: their bodies and responses. `ollama_models` describes the model."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

from llama_serving.contract import inputs, parameters, receipt
from llama_serving.contract.adapter import EventWriter, ProtocolAdapter, StreamFormat
from llama_serving.contract.content_filter import results
from llama_serving.contract.details import chat_logprobs
from llama_serving.contract.request import (
    FILL_MARKER,
    UNLIMITED,
    Body,
    Completion,
    Delta,
    Dialog,
    Generation,
    Generations,
    Input,
    Message,
    Parameters,
    ReplyShape,
    Request,
)
from llama_serving.contract.strict_json import present
from llama_serving.contract.validation import schema, validate
from llama_serving.errors import BadRequest, ServingError

OPTIONS: Final[Mapping[str, str]] = {
    "num_predict": "max_new_tokens",
    "repeat_penalty": "repetition_penalty",
    **{
        name: name
        for name in (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "stop",
            "seed",
        )
    },
}
"""Options that have an effect, and our names of them."""
_NS: Final = 1e9


def parse_generate(body: Body) -> Request:
    """Parse a body of `/api/generate`; without a prompt it only asks for the model to be loaded.

    Raises:
        BadRequest: the body is invalid, or needs something that this server does not support.
    """
    body = _checked(body, "generate")
    prompt = _generate_prompt(body)
    return _request(body, () if prompt is None else (prompt,), ReplyShape.GENERATE, "prompt")


def parse_chat(body: Body) -> Request:
    """Parse a body of `/api/chat`; without messages it only asks for the model to be loaded.

    A last message of the assistant is continued, as Ollama does.

    Raises:
        BadRequest: the body is invalid, or needs something that this server does not support.
    """
    body = _checked(body, "chat")
    messages = [{"content": "", **message} for message in body.get("messages", ())]
    if messages and messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
        messages.pop()  # nothing to continue: the message is begun
    if not messages:
        return _request(body, (), ReplyShape.MESSAGE, "messages")
    alone, continued = len(messages) == 1, messages[-1]["role"] == "assistant"
    dialog = inputs.dialog(messages, "messages", unfold=alone, continued=continued)
    return _request(body, (replace(dialog, marked=alone),), ReplyShape.MESSAGE, "messages")


def answer(request: Request, generations: Generations, model: str) -> dict[str, Any]:
    """Return Ollama's response object; `model` is the name of the model."""
    if not generations:
        return {**_head(model), **_text(request, ""), "done": True, "done_reason": "load"}
    ((sequence,),) = generations
    return {**_head(model), **_text(request, sequence.full_text), **_end(sequence)}


class Lines:
    """The objects of a stream: one for each piece of text, and a last one without text and with the counts.

    Log-probabilities are in the last one.
    """

    def __init__(self, request: Request, model: str) -> None:
        self._request, self._model = request, model

    def of(self, delta: Delta) -> list[dict[str, Any]]:
        """Return the object of one piece of text, or of the end."""
        end = {"done": False} if delta.generation is None else _end(delta.generation)
        return [{**_head(self._model), **_text(self._request, delta.text), **end}]

    def last(self) -> list[dict[str, Any]]:
        """Return what follows the end: the only object, if nothing was to be generated."""
        return [] if self._request.inputs else [answer(self._request, (), self._model)]


def _checked(body: Body, kind: str) -> Body:
    body = present(body)
    options = schema("ollama")["$defs"]["options"]["properties"]
    misplaced = next((name for name in body if name in options), None)
    if misplaced is not None:
        raise BadRequest(
            f'`{misplaced}` is an option: send it inside `options`, as {{"options": {{"{misplaced}": ...}}}}.',
            code="unknown_field",
            param=misplaced,
        )
    validate(body, f"ollama#/$defs/{kind}")
    if body.get("top_logprobs") and not body.get("logprobs"):
        raise BadRequest("`top_logprobs` needs `logprobs: true` beside it.", code="invalid_value",
                         param="top_logprobs")  # fmt: skip
    return body


def _generate_prompt(body: Body) -> Input | None:
    """Return the prompt; None if there is none. Clients send the empty string for a suffix or system that they lack."""
    prompt, suffix, system = (body.get(name, "") for name in ("prompt", "suffix", "system"))
    if suffix or FILL_MARKER in prompt:
        _refuse_system(system, "an infilling prompt")
        return inputs.infill(prompt, suffix, "prompt") if suffix else inputs.text(prompt, "prompt")
    if not prompt:
        return None
    if body.get("raw"):
        _refuse_system(system, "`raw: true`")
        return Completion(prompt, marked=True)
    messages = (Message("system", system),) if system else ()
    return Dialog((*messages, Message("user", prompt)), unfold=not system, marked=not system)


def _refuse_system(system: str, beside: str) -> None:
    if system:
        raise BadRequest(f"`system` belongs to a dialog and can't be combined with {beside}. Leave one of them out.",
                         code="unsupported_field", param="system")  # fmt: skip


def _request(body: Body, prompts: tuple[Input, ...], reply: ReplyShape, path: str) -> Request:
    return Request(
        prompts,
        _parameters(body, prompts),
        reply,
        (path,) * len(prompts),
        "options",
        beside=frozenset(("format", "logprobs", "receipt", "stream")),
        ceiling=True,
        model=body.get("model"),
        spelling=(
            *((OPTIONS[name], name) for name in body.get("options", ()) if name in OPTIONS),
            *(((parameters.CONSTRAINT, "format"),) if body.get("format") else ()),
        ),
    )


def _parameters(body: Body, prompts: tuple[Input, ...]) -> Parameters:
    """Return the parameters of a body: its options, and what stands beside them."""
    options = _effective(body.get("options", {}))
    continued = any(isinstance(one, Dialog) and one.continued for one in prompts)
    return parameters.parse(
        {
            **{OPTIONS[name]: value for name, value in options.items() if name in OPTIONS},
            "logprobs": body.get("top_logprobs", 0) if body.get("logprobs") else None,
            "stream": body.get("stream", True),
            "receipt": body.get("receipt"),
            "continue_final_message": True if continued else None,
            "format": body.get("format") or None,
        },
        aliases={"format": parameters.CONSTRAINT},
    )


def _effective(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options without those at a value that has no effect.

    Raises:
        BadRequest: the repetition penalty is to cover only some of the text.
    """
    given = dict(options)
    if given.get("seed") == -1:
        del given["seed"]
    if given.get("num_predict", 1) < 0:
        given["num_predict"] = UNLIMITED
    if given.get("repeat_last_n") == 0:
        given.pop("repeat_penalty", None)
    if given.get("repeat_penalty", 1) != 1:
        for name, all_of_it in (("repeat_last_n", -1), ("penalize_newline", True)):
            if given.get(name, all_of_it) != all_of_it:
                raise BadRequest(
                    f"`options.{name}` must be {str(all_of_it).lower()} beside `repeat_penalty`, which covers the whole "
                    "prompt and text here. Leave one of them out.",
                    code="invalid_value",
                    param=f"options.{name}",
                )
    return given


def _head(model: str) -> dict[str, Any]:
    return {"model": model, "created_at": timestamp(datetime.now(UTC))}


def timestamp(moment: datetime) -> str:
    """Return a moment as Ollama writes it: UTC, to the microsecond."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _text(request: Request, text: str) -> dict[str, Any]:
    if request.reply is ReplyShape.MESSAGE:
        return {"message": {"role": "assistant", "content": text}}
    return {"response": text}


def _end(sequence: Generation) -> dict[str, Any]:
    """Return the end of a text, with our own finish reason where Ollama has none. Durations are in nanoseconds.

    Clients divide by them: none is 0 but the time to load, since the model is loaded already.
    """
    reason, times = sequence.finish_reason, sequence.times
    read, wrote = (max(1, round(seconds * _NS)) for seconds in (times.first_s, times.rest_s))
    logprobs = sequence.logprobs
    return {
        "done": True,
        "done_reason": reason if reason in ("stop", "content_filter") else "length",
        **({"stop_reason": reason} if reason not in ("stop", "length", "content_filter") else {}),
        **results(sequence.findings),
        "total_duration": read + wrote,
        "load_duration": 0,
        "prompt_eval_count": sequence.usage.prompt_tokens,
        "prompt_eval_duration": read,
        "eval_count": sequence.usage.completion_tokens,
        "eval_duration": wrote,
        **({} if logprobs is None else {"logprobs": chat_logprobs(logprobs)["content"]}),
        **receipt.field(sequence),
    }


class Ollama(ProtocolAdapter):
    """See `ProtocolAdapter`.

    Args:
        parse: parser of one route.
    """

    stream_format: ClassVar = StreamFormat.LINES
    names_media_type: ClassVar = False

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
        return Lines(request, model)

    def error(self, error: ServingError, request_id: str) -> dict[str, Any]:
        """Return Ollama's sentence, with our fields beside it."""
        told = error.body(request_id)["error"]
        return {"error": told.pop("message"), **told}
