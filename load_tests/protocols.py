"""The request of each route, and the answer it must give. No connections."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from load_tests.workload import KINDS, Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from load_tests.workload import Asked

DONE: Final = "[DONE]"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        status: HTTP status.
        body: the body as received; all events of a stream.
        retry_after: the Retry-After header.
        cut: whether our client disconnected before the end.
    """

    status: int
    body: bytes
    retry_after: str | None = None
    cut: bool = False

    @property
    def events(self) -> list[str]:
        """Return the data of all events of a stream."""
        return [line.removeprefix("data: ") for line in self.body.decode().split("\n\n") if line]

    @property
    def json(self) -> Any:
        """Return the body as JSON; None if it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


class Route(Protocol):
    """One route.

    Attributes:
        kinds: the kinds of inputs it takes.
        streams: whether it can stream.
    """

    path: str
    kinds: Sequence[Kind]
    streams: bool

    def body(self, asked: Asked) -> dict[str, Any]:
        """Return the request in this route's form."""

    def whole(self, asked: Asked, answer: Any) -> int:
        """Return the tokens of an answer.

        Raises:
            LookupError, TypeError, ValueError, AttributeError: the answer has another shape.
        """

    def streamed(self, events: Sequence[Any]) -> int:
        """Return the tokens of a stream's events.

        Raises:
            LookupError, TypeError, ValueError, AttributeError: as `whole`.
        """


class AzureML:
    """`/score` and `/invocations`, in Azure's form.

    Args:
        path: the route.
        key: the key of the inputs.
        wrapped: the key of the outputs, if there is one.
        streams: whether it can stream.
    """

    kinds: Sequence[Kind] = KINDS

    def __init__(self, path: str, key: str, *, wrapped: str | None = None, streams: bool) -> None:
        self.path, self._key, self._wrapped, self.streams = path, key, wrapped, streams

    def body(self, asked: Asked) -> dict[str, Any]:
        """See `Route.body`."""
        parameters = {"max_new_tokens": asked.new_tokens, "seed": asked.seed, "details": True, **_bad(asked)}
        if asked.stream:
            parameters["stream"] = True
        return {self._key: {"input_string": _inputs(asked), "parameters": parameters}}

    def whole(self, asked: Asked, answer: Any) -> int:
        """See `Route.whole`."""
        rows = answer[self._wrapped] if self._wrapped else answer
        if asked.kind == "dialog":
            return _tokens(rows, {"output", "details"})
        if len(rows) != len(asked.texts):
            raise ValueError(f"{len(rows)} rows for {len(asked.texts)} prompts")
        return sum(_tokens(row, {"0", "details"}) for row in rows)

    def streamed(self, events: Sequence[Any]) -> int:
        """See `Route.streamed`."""
        *pieces, last = events
        if not all(piece.keys() == {"0"} for piece in pieces):
            raise ValueError("an event that is no piece of sequence 0")
        return _tokens(last, {"details"})


class Completions:
    """`/v1/completions`."""

    path, streams = "/v1/completions", True
    kinds: Sequence[Kind] = ("completion", "infill")

    def body(self, asked: Asked) -> dict[str, Any]:
        """See `Route.body`."""
        given = {"max_tokens": asked.new_tokens, "seed": asked.seed, **_bad(asked), **_streaming(asked)}
        if asked.kind == "infill":
            before, behind = asked.holes[0]
            return {"prompt": before, "suffix": behind, **given}
        return {"prompt": asked.texts[0] if len(asked.texts) == 1 else list(asked.texts), **given}

    def whole(self, asked: Asked, answer: Any) -> int:
        """See `Route.whole`."""
        wanted = 1 if asked.kind == "infill" else len(asked.texts)
        texts = [choice["text"] for choice in answer["choices"]]
        if len(texts) != wanted or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{len(texts)} choices for {wanted} prompts")
        return int(answer["usage"]["completion_tokens"])

    def streamed(self, events: Sequence[Any]) -> int:
        """See `Route.streamed`."""
        return _chunks(events, lambda choice: choice["text"])


class Chat:
    """`/v1/chat/completions`."""

    path, streams = "/v1/chat/completions", True
    kinds: Sequence[Kind] = ("dialog",)

    def body(self, asked: Asked) -> dict[str, Any]:
        """See `Route.body`."""
        given = {"max_tokens": asked.new_tokens, "seed": asked.seed, **_bad(asked), **_streaming(asked)}
        return {"messages": _inputs(asked), **given}

    def whole(self, asked: Asked, answer: Any) -> int:
        """See `Route.whole`."""
        del asked
        (choice,) = answer["choices"]
        if not isinstance(choice["message"]["content"], str):
            raise TypeError("the content is no text")
        return int(answer["usage"]["completion_tokens"])

    def streamed(self, events: Sequence[Any]) -> int:
        """See `Route.streamed`."""
        return _chunks(events, lambda choice: choice["delta"])


ROUTES: Final[dict[str, Route]] = {
    "ScoreUser": AzureML("/score", "input_data", streams=True),
    "InvocationsUser": AzureML("/invocations", "inputs", wrapped="predictions", streams=True),
    "CompletionsUser": Completions(),
    "ChatUser": Chat(),
    "StockScoreUser": AzureML("/score", "input_data", streams=False),
    "StockInvocationsUser": AzureML("/invocations", "inputs", wrapped="predictions", streams=False),
}
"""Routes by the class of their users; stock servers cannot stream."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement on an answer.

    Attributes:
        outcome: answered; refused, as required; busy, a 429 with Retry-After; cancelled, by us; wrong.
        tokens: generated tokens.
        fault: what is wrong.
    """

    outcome: str
    tokens: int = 0
    fault: str | None = None


OUTCOMES: Final = ("answered", "refused", "busy", "cancelled", "wrong")


def verdict(route: Route, asked: Asked, reply: Reply) -> Verdict:
    """Judge an answer by its request."""
    if reply.status == 429:
        return _busy(reply)
    if asked.bad:
        fault = _unrefused(reply)
        return Verdict("wrong", fault=fault) if fault else Verdict("refused")
    if reply.status != 200:
        return Verdict("wrong", fault=f"status {reply.status}: {_error(reply).get('code', 'no error object')}")
    if reply.cut and not _is_error(reply.events[0]):
        return Verdict("cancelled", tokens=len(reply.events))
    return _answered(route, asked, reply)


def _busy(reply: Reply) -> Verdict:
    # MLflow's server drops headers.
    if reply.retry_after is None and "retry_after" not in _error(reply):
        return Verdict("wrong", fault="429 that does not say when to come again")
    return Verdict("busy")


def _answered(route: Route, asked: Asked, reply: Reply) -> Verdict:
    try:
        return Verdict("answered", tokens=_tokens_of(route, asked, reply))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        return Verdict("wrong", fault=f"not the shape of an answer: {error!r}")


def _tokens_of(route: Route, asked: Asked, reply: Reply) -> int:
    if not asked.stream:
        return route.whole(asked, reply.json)
    *events, end = reply.events
    if end != DONE:
        raise ValueError(f"the stream does not end with {DONE}, but with {end[:200]!r}")
    return route.streamed([json.loads(event) for event in events])


def _unrefused(reply: Reply) -> str | None:
    if reply.status != 400:
        return f"status {reply.status} for a bad request, not 400"
    error = _error(reply)
    if not all(isinstance(error.get(key), str) for key in ("code", "message")):
        return "a 400 without an error that has a code and a message"
    return None if str(error.get("param", "")).endswith("top_p") else "the error does not name top_p"


def _is_error(event: str) -> bool:
    """Return whether an event is an error, and not a text that is the word."""
    found = json.loads(event) if event.startswith("{") else None
    return isinstance(found, dict) and "error" in found


def _error(reply: Reply) -> dict[str, Any]:
    error = reply.json.get("error") if isinstance(reply.json, dict) else None
    return error if isinstance(error, dict) else {}


def _inputs(asked: Asked) -> list[Any]:
    if asked.kind == "infill":
        return [{"prefix": before, "suffix": behind} for before, behind in asked.holes]
    if asked.kind == "dialog":
        return [{"role": "user", "content": asked.texts[0]}]
    return list(asked.texts)


def _bad(asked: Asked) -> dict[str, Any]:
    return {"top_p": 7} if asked.bad else {}


def _streaming(asked: Asked) -> dict[str, Any]:
    return {"stream": True, "stream_options": {"include_usage": True}} if asked.stream else {}


def _tokens(row: Any, keys: set[str]) -> int:
    if row.keys() != keys:
        raise ValueError(f"the keys {sorted(row)} and not {sorted(keys)}")
    return sum(int(one["usage"]["completion_tokens"]) for one in row["details"])


def _chunks(events: Sequence[Any], part: Any) -> int:
    first, *others, last = events
    for chunk in (first, *others):
        part(chunk["choices"][0])
    return int(last["usage"]["completion_tokens"])
