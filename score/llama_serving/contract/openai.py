"""OpenAI's `/v1/completions` and `/v1/chat/completions`: their bodies and responses."""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from llama_serving.contract import inputs, parameters, receipt, tools
from llama_serving.contract.adapter import EventWriter, ProtocolAdapter
from llama_serving.contract.content_filter import results
from llama_serving.contract.details import chat_logprobs, completion_logprobs, prompt_logprobs
from llama_serving.contract.parameters import ALIASES, NAMES
from llama_serving.contract.request import (
    UNLIMITED,
    Body,
    Delta,
    Dialog,
    Generation,
    Generations,
    Infill,
    Input,
    ReplyShape,
    Request,
    TokenIds,
    TokenLogprob,
    Tools,
    Usage,
)
from llama_serving.contract.strict_json import present
from llama_serving.contract.validation import validate
from llama_serving.errors import BadRequest, ServingError

PREFIXES: Final = ("/v1", "", "/models")
"""Prefixes of both routes: OpenAI's clients use the first, Azure's inference clients all three."""
_PARAMETERS: Final = frozenset((*NAMES, *ALIASES)) - {"details"}


def speaks(body: Body) -> bool:
    """Return whether a body is one of OpenAI's."""
    return body.get("messages") is not None or body.get("prompt") is not None


def parse(body: Body) -> Request:
    """Parse a body of either route: `messages` makes it a chat, `prompt` a completion.

    Raises:
        BadRequest: the body is neither, or needs something that this server does not support.
    """
    if body.get("messages") is not None:
        return parse_chat(body)
    return parse_completion(body)


def answer(request: Request, generations: Generations, model: str) -> dict[str, Any]:
    """Return OpenAI's response object; `model` is the name of the model."""
    chat = request.reply is ReplyShape.CHAT
    sequences = [sequence for per_prompt in generations for sequence in per_prompt]
    return {
        **_head("chat.completion" if chat else "text_completion", model),
        "choices": [_choice(request, index, one) for index, one in enumerate(sequences)],
        **(_of_prompt(request, sequences[0]) if chat else {}),
        "usage": _usage(generations),
    }


class Chunks:
    """OpenAI's chunk objects. A chat begins with the role; every sequence ends with its finish_reason.

    Log-probabilities are in the last chunk of a sequence, or in each one if token ids are requested; those of the prompt are
    in the chunk of its first token. Usage follows the last sequence if `stream_options` requests it.
    """

    def __init__(self, request: Request, model: str) -> None:
        self._request = request
        self._chat = request.reply is ReplyShape.CHAT
        self._head = _head("chat.completion.chunk" if self._chat else "text_completion", model)
        self._with_usage = request.include_usage
        self._started: set[int] = set()
        self._ended: list[Generation] = []
        self._calls: dict[int, tools.CallStream] = {}

    def of(self, delta: Delta) -> list[dict[str, Any]]:
        """Return the chunks of one piece of text, or of a sequence's end."""
        return [self._with_usage_so_far(one, delta) for one in self._pieces(delta)]

    def _pieces(self, delta: Delta) -> list[dict[str, Any]]:
        role = {"role": "assistant"} if self._chat and delta.index not in self._started else {}
        self._started.add(delta.index)
        end = _end(self._request, delta.generation)
        if delta.generation is not None:
            self._ended.append(delta.generation)
        if self._request.tools is not None:
            return self._pieces_of_call(delta, self._request.tools, role, end)
        text = {"delta": {**role, "content": delta.text}} if self._chat else {"text": delta.text}
        return [self._chunk({"index": delta.index, **text, **end}, delta)]

    def _chunk(self, choice: dict[str, Any], delta: Delta) -> dict[str, Any]:
        """Return a chunk of one choice, with what else is requested of the piece."""
        request, read = self._request, {}
        if request.return_token_ids:
            choice |= {"token_ids": list(delta.token_ids), "logprobs": _logprobs(request, delta.logprobs)}
            ids = None if delta.prompt_token_ids is None else list(delta.prompt_token_ids)
            read["prompt_token_ids"] = ids
        read |= prompt_logprobs(delta.prompt_logprobs)
        if self._chat:
            return {**self._head, "choices": [choice], **read}
        return {**self._head, "choices": [{**choice, **read}]}

    def _with_usage_so_far(self, chunk: dict[str, Any], delta: Delta) -> dict[str, Any]:
        """Return a chunk with the usage of all sequences up to this piece, if each one is to have it."""
        if delta.usage is None:
            return chunk
        ended = sum(one.usage.completion_tokens for one in self._ended if one is not delta.generation)
        usage = Usage(delta.usage.prompt_tokens, ended + delta.usage.completion_tokens)
        return {**chunk, "usage": usage.to_dict()}

    def _pieces_of_call(
        self, delta: Delta, offered: Tools, role: dict[str, str], end: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Return the chunks of a piece of an answer that may be a call: some, and one for the sequence's end."""
        stream = self._calls.setdefault(delta.index, tools.CallStream(offered))
        made = stream.push(delta.text)
        if delta.generation is not None:
            made += [*stream.finish(), {}]
        if (role or delta.token_ids or delta.prompt_logprobs) and not made:
            made = [{}]
        open_end = _end(self._request, None)
        chunks = [
            {
                **self._head,
                "choices": [{"index": delta.index, "delta": {**(role if i == 0 else {}), **one}, **open_end}],
            }
            for i, one in enumerate(made[:-1])
        ]
        for one in made[-1:]:
            last = {"index": delta.index, "delta": {**({} if chunks else role), **one}, **end}
            chunks.append(self._chunk(last, delta))
        return chunks

    def last(self) -> list[dict[str, Any]]:
        """Return the chunks after the last sequence has ended."""
        if not self._with_usage or not self._ended:
            return []
        return [{**self._head, "choices": [], "usage": _usage([tuple(self._ended)])}]


def parse_completion(body: Body) -> Request:
    body = present(body)
    validate(body, "openai-completions")
    _check_stream_options(body)
    prompts, paths = _prompts(body)
    made = _request(body, prompts, body, ReplyShape.COMPLETION, paths)
    parsed = made.parameters
    if parsed.return_full_text and body.get("return_token_ids"):
        raise BadRequest("`echo` and `return_token_ids` can't be combined: the prompt's ids come in a field of their "
                         "own. Leave one of them out.", code="unsupported_field", param="return_token_ids")  # fmt: skip
    echo_logprobs = bool(parsed.return_full_text) and parsed.logprobs is not None
    if echo_logprobs and isinstance(prompts[0], Infill):
        raise BadRequest("`echo` and `logprobs` can't be combined with `suffix`: the model reads both ends before the middle. "
                         "Send `prompt_logprobs` in the place of `echo`.", code="unsupported_field", param="logprobs")  # fmt: skip
    return replace(
        made,
        stop_token_ids=frozenset(int(i) for i in body.get("stop_token_ids") or ()),
        echo_logprobs=echo_logprobs,
    )


def _prompts(body: Body) -> tuple[tuple[Input, ...], tuple[str, ...]]:
    prompt, suffix = body["prompt"], body.get("suffix")
    if suffix is not None:
        if not isinstance(prompt, str):
            raise BadRequest("`suffix` goes with one `prompt` string: the text in front of the gap.",
                             code="invalid_value", param="suffix")  # fmt: skip
        return (inputs.infill(prompt, suffix, "prompt"),), ("prompt",)
    if isinstance(prompt, str):
        return (inputs.text(prompt, "prompt"),), ("prompt",)
    if not isinstance(prompt[0], (str, list)):
        return (TokenIds(tuple(int(i) for i in prompt)),), ("prompt",)
    paths = tuple(f"prompt[{index}]" for index in range(len(prompt)))
    return tuple(_prompt(value, paths[index], index) for index, value in enumerate(prompt)), paths


def _prompt(value: Any, path: str, index: int) -> Input:
    if isinstance(value, str):
        return inputs.text(value, path, index)
    return TokenIds(tuple(int(i) for i in value))


def parse_chat(body: Body) -> Request:
    body = present(body)
    validate(body, "openai-chat")
    _check_stream_options(body)
    messages, continued = body["messages"], bool(body.get("continue_final_message"))
    if body.get("add_generation_prompt") is continued:
        raise BadRequest("`add_generation_prompt` and `continue_final_message` can't be the same: the model either begins "
                         "a message or continues one. Leave `add_generation_prompt` out.", code="invalid_value",
                         param="add_generation_prompt")  # fmt: skip
    dialog = inputs.dialog(tools.told(messages), "messages", unfold=len(messages) == 1, continued=continued)
    logprobs, top = body.get("logprobs"), body.get("top_logprobs")
    if top and not logprobs:
        raise BadRequest("`top_logprobs` needs `logprobs: true` beside it.", code="invalid_value",
                         param="top_logprobs")  # fmt: skip
    if body.get("repeat_last_n", -1) != -1 and body.get("repetition_penalty", 1) != 1:
        raise BadRequest("`repeat_last_n` must be -1 beside `repetition_penalty`, which covers the whole prompt and text. "
                         "Leave one of them out.", code="invalid_value", param="repeat_last_n")  # fmt: skip
    given = {**body, "logprobs": (top or 0) if logprobs else None}
    if body.get("max_tokens") == -1:  # as llama.vscode has it
        given["max_tokens"] = UNLIMITED
    return _with_tools(_request(body, (dialog,), given, ReplyShape.CHAT, ("messages",)), dialog, body)


def _with_tools(made: Request, dialog: Dialog, body: Body) -> Request:
    """Return the request with the functions that its answer may call."""
    found = tools.parse(body)
    if found is None:
        return made
    offered, constraint = found
    if made.parameters.response_format is not None:
        name = made.called("response_format")
        raise BadRequest(f"`tools` and `{name}` can't be combined: either holds the text. Leave one of them out, or send "
                         "`tool_choice: none`.", code="competing_fields", param=name)  # fmt: skip
    return replace(
        made,
        inputs=(replace(dialog, tools=offered.prompt),),
        parameters=replace(made.parameters, response_format=constraint),
        spelling=(*made.spelling, ("response_format", "tools")),
        tools=offered,
    )


def _stream_options(body: Body) -> Mapping[str, Any]:
    return body.get("stream_options") or {}


def _check_stream_options(body: Body) -> None:
    options = _stream_options(body)
    if options.get("include_usage") and not body.get("stream"):
        raise BadRequest("`stream_options` needs `stream: true` beside it.", code="invalid_value",
                         param="stream_options")  # fmt: skip
    if options.get("continuous_usage_stats") and not options.get("include_usage"):
        raise BadRequest("`stream_options.continuous_usage_stats` needs `include_usage: true` beside it.",
                         code="invalid_value", param="stream_options.continuous_usage_stats")  # fmt: skip


def _truncate(body: Body, prompts: tuple[Input, ...]) -> int | None:
    """Return how many of a prompt's last tokens to keep; None is all of them."""
    kept = body.get("truncate_prompt_tokens")
    if kept is None:
        return None
    if any(isinstance(prompt, Infill) for prompt in prompts):
        raise BadRequest("`truncate_prompt_tokens` can't be combined with `suffix`: the ends of the gap would be lost. "
                         "Leave one of them out.", code="unsupported_field", param="truncate_prompt_tokens")  # fmt: skip
    return int(kept)


def _request(
    body: Body, prompts: tuple[Input, ...], given: Mapping[str, Any], reply: ReplyShape, paths: tuple[str, ...]
) -> Request:
    known = {name: value for name, value in given.items() if name in _PARAMETERS}
    return Request(
        prompts,
        parameters.parse(known),
        reply,
        paths,
        "",
        ceiling=True,
        model=body.get("model"),
        include_usage=bool(_stream_options(body).get("include_usage")),
        continuous_usage=bool(_stream_options(body).get("continuous_usage_stats")),
        truncate_prompt_tokens=_truncate(body, prompts),
        return_token_ids=bool(body.get("return_token_ids")),
        tokens_as_ids=bool(body.get("return_tokens_as_token_ids")),
        spelling=parameters.spelling(known),
    )


def _head(kind: str, model: str) -> dict[str, Any]:
    prefix = "chatcmpl" if kind.startswith("chat") else "cmpl"
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _usage(generations: Sequence[tuple[Generation, ...]]) -> dict[str, int]:
    """Return the usage of all prompts, each counted once, and of all their sequences."""
    read = sum(sequences[0].usage.prompt_tokens for sequences in generations)
    written = sum(sequence.usage.completion_tokens for sequences in generations for sequence in sequences)
    return Usage(read, written).to_dict()


def _end(request: Request, generation: Generation | None) -> dict[str, Any]:
    """Return the end of a sequence as OpenAI writes it, with our own finish reason where OpenAI has none."""
    if generation is None:
        return {"finish_reason": None, "logprobs": None}
    reason = generation.finish_reason
    called = None if request.tools is None else tools.finish_reason(generation, request.tools)
    return {
        "finish_reason": called or (reason if reason in ("stop", "content_filter") else "length"),
        **({"stop_reason": reason} if reason not in ("stop", "length", "content_filter") else {}),
        "logprobs": _logprobs(request, generation.logprobs),
        **receipt.field(generation),
        **results(generation.findings),
    }


def _logprobs(request: Request, tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    if request.reply is ReplyShape.CHAT:
        return chat_logprobs(tokens, as_ids=request.tokens_as_ids)
    return completion_logprobs(tokens, as_ids=request.tokens_as_ids)


def _choice(request: Request, index: int, sequence: Generation) -> dict[str, Any]:
    text: dict[str, Any] = {"text": sequence.full_text}
    if request.reply is ReplyShape.CHAT:
        said = (
            {"content": sequence.full_text} if request.tools is None else tools.message(sequence, request.tools)
        )
        text = {"message": {"role": "assistant", **said}}
    ids = {"token_ids": list(sequence.token_ids)} if request.return_token_ids else {}
    of_prompt = {} if request.reply is ReplyShape.CHAT else _of_prompt(request, sequence)
    return {"index": index, **text, **_end(request, sequence), **ids, **of_prompt}


def _of_prompt(request: Request, sequence: Generation) -> dict[str, Any]:
    """Return what is requested of the prompt: vLLM has it in each choice of a completion, and once in a chat."""
    ids = {"prompt_token_ids": list(sequence.prompt_token_ids)} if request.return_token_ids else {}
    return {**ids, **prompt_logprobs(sequence.prompt_logprobs)}


class OpenAI(ProtocolAdapter):
    """See `ProtocolAdapter`.

    Args:
        parse: parser of one route; by default it accepts a body of either.
    """

    def __init__(self, parse: Callable[[Body], Request] = parse) -> None:
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
        """See `ProtocolAdapter.error`."""
        return error.body(request_id, openai=True)
