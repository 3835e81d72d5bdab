"""OpenAI's `/v1/completions` and `/v1/chat/completions`: body 8 of CONTRACT section 1."""

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from llama_serving.contract import inputs, parameters
from llama_serving.contract.details import chat_logprobs, completion_logprobs
from llama_serving.contract.parameters import ALIASES, NAMES
from llama_serving.contract.request import (
    Body,
    Delta,
    Generation,
    Generations,
    Input,
    Parameters,
    Reply,
    Request,
    TokenIds,
    Usage,
)
from llama_serving.contract.validation import validate
from llama_serving.errors import BadRequest

_PARAMETERS: Final = frozenset((*NAMES, *ALIASES)) - {"details", "logprobs"}


def parse(body: Body) -> Request:
    """A body of either route: `messages` makes it a chat, `prompt` a completion.

    Raises:
        BadRequest: it is neither, or holds what this server does not support.
    """
    if "messages" in body:
        return parse_chat(body)
    return parse_completion(body)


def answer(request: Request, generations: Generations, model: str) -> dict[str, Any]:
    """OpenAI's object; `model` is the name of the model that answered."""
    chat = request.reply is Reply.CHAT
    sequences = [sequence for per_prompt in generations for sequence in per_prompt]
    choice = _chat_choice if chat else _completion_choice
    with_ids = _ids if request.return_token_ids else _nothing
    return {
        **_head("chat.completion" if chat else "text_completion", model),
        "choices": [{**choice(index, one), **with_ids(one)} for index, one in enumerate(sequences)],
        "usage": _usage(generations),
    }


class Chunks:
    """OpenAI's chunk objects: a chat begins with the role, every sequence ends with its finish_reason.

    Log-probabilities come with that end, or with each piece where token ids do; usage behind the last sequence where
    `stream_options` asks for it.
    """

    def __init__(self, request: Request, model: str) -> None:
        self._ids = request.return_token_ids
        self._chat = request.reply is Reply.CHAT
        self._head = _head("chat.completion.chunk" if self._chat else "text_completion", model)
        self._with_usage = request.include_usage
        self._started: set[int] = set()
        self._ended: list[Generation] = []

    def of(self, delta: Delta) -> dict[str, Any]:
        """The chunk of one piece of text, or of a sequence's end."""
        role = {"role": "assistant"} if self._chat and delta.index not in self._started else {}
        self._started.add(delta.index)
        text = {"delta": {**role, "content": delta.text}} if self._chat else {"text": delta.text}
        end = _end(delta.generation, chat=self._chat)
        if delta.generation is not None:
            self._ended.append(delta.generation)
        if self._ids:
            end = {**end, **_piece(delta)}
        return {**self._head, "choices": [{"index": delta.index, **text, **end}]}

    def last(self) -> list[dict[str, Any]]:
        """What comes when all sequences have ended."""
        if not self._with_usage or not self._ended:
            return []
        return [{**self._head, "choices": [], "usage": _usage([tuple(self._ended)])}]


def chunks(request: Request, deltas: Iterable[Delta], model: str) -> Iterator[dict[str, Any]]:
    """The chunk objects of a whole stream; see `Chunks`."""
    made = Chunks(request, model)
    yield from map(made.of, deltas)
    yield from made.last()


def parse_completion(body: Body) -> Request:
    validate(body, "openai-completions")
    _check_stream_options(body)
    prompts, paths = _prompts(body)
    given = {name: value for name, value in body.items() if name in _PARAMETERS or name == "logprobs"}
    asked = parameters.parse(given)
    if asked.return_full_text and asked.logprobs is not None:
        raise BadRequest("`echo` and `logprobs` can't be combined: no log-probabilities of the prompt are kept. "
                         "Leave one of them out.", code="unsupported_field", param="logprobs")  # fmt: skip
    if asked.return_full_text and body.get("return_token_ids"):
        raise BadRequest("`echo` and `return_token_ids` can't be combined: the prompt's ids come in a field of their "
                         "own. Leave one of them out.", code="unsupported_field", param="return_token_ids")  # fmt: skip
    return replace(
        _request(body, prompts, asked, Reply.COMPLETION, paths),
        stop_token_ids=frozenset(int(i) for i in body.get("stop_token_ids") or ()),
        return_token_ids=bool(body.get("return_token_ids")),
        tokens_as_ids=bool(body.get("return_tokens_as_token_ids")),
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
    validate(body, "openai-chat")
    _check_stream_options(body)
    messages = [{"role": m["role"], "content": _content(m["content"])} for m in body["messages"]]
    dialog = inputs.dialog(messages, "messages", unfold=len(messages) == 1)
    given = {name: value for name, value in body.items() if name in _PARAMETERS}
    wanted, top = body.get("logprobs"), body.get("top_logprobs")
    if top is not None and not wanted:
        raise BadRequest("`top_logprobs` needs `logprobs: true` beside it.", code="invalid_value",
                         param="top_logprobs")  # fmt: skip
    asked = parameters.parse({**given, "logprobs": (top or 0) if wanted else None})
    return _request(body, (dialog,), asked, Reply.CHAT, ("messages",))


def _content(content: str | list[Mapping[str, str]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _check_stream_options(body: Body) -> None:
    if body.get("stream_options") is not None and not body.get("stream"):
        raise BadRequest("`stream_options` needs `stream: true` beside it.", code="invalid_value",
                         param="stream_options")  # fmt: skip


def _request(
    body: Body, prompts: tuple[Input, ...], asked: Parameters, reply: Reply, paths: tuple[str, ...]
) -> Request:
    usage = bool((body.get("stream_options") or {}).get("include_usage"))
    return Request(prompts, asked, reply, paths, "", ceiling=True, model=body.get("model"), include_usage=usage)


def _head(kind: str, model: str) -> dict[str, Any]:
    prefix = "chatcmpl" if kind.startswith("chat") else "cmpl"
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _usage(generations: Sequence[tuple[Generation, ...]]) -> dict[str, int]:
    """Of all prompts, each counted once, and all their sequences."""
    read = sum(sequences[0].usage.prompt_tokens for sequences in generations)
    written = sum(sequence.usage.completion_tokens for sequences in generations for sequence in sequences)
    return Usage(read, written).to_dict()


def _end(generation: Generation | None, *, chat: bool) -> dict[str, Any]:
    if generation is None:
        return {"finish_reason": None, "logprobs": None}
    return {"finish_reason": generation.finish_reason, "logprobs": _logprobs(generation, chat=chat)}


def _logprobs(generation: Generation, *, chat: bool) -> dict[str, Any] | None:
    if generation.logprobs is None:
        return None
    return chat_logprobs(generation.logprobs) if chat else completion_logprobs(generation.logprobs)


def _ids(generation: Generation) -> dict[str, Any]:
    return {"prompt_token_ids": list(generation.prompt_token_ids), "token_ids": list(generation.token_ids)}


def _nothing(generation: Generation) -> dict[str, Any]:
    del generation
    return {}


def _piece(delta: Delta) -> dict[str, Any]:
    """What a piece has beside its text where token ids were asked for, as vLLM streams it."""
    return {
        "prompt_token_ids": None if delta.prompt_token_ids is None else list(delta.prompt_token_ids),
        "token_ids": list(delta.token_ids),
        "logprobs": None if delta.logprobs is None else completion_logprobs(delta.logprobs),
    }


def _completion_choice(index: int, sequence: Generation) -> dict[str, Any]:
    return {"index": index, "text": sequence.full_text, **_end(sequence, chat=False)}


def _chat_choice(index: int, sequence: Generation) -> dict[str, Any]:
    message = {"role": "assistant", "content": sequence.text}
    return {"index": index, "message": message, **_end(sequence, chat=True)}
