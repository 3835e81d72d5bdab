"""Follows a request through the service, to collect what it sent."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from llama_serving.contract.request import Delta, Generation, Generations, Request
from llama_serving.errors import BadRequest, InternalError, ServingError
from llama_serving.service.collection.caller import Caller
from llama_serving.service.collection.collector import Collector
from llama_serving.service.collection.record import (
    COMPLETE,
    GONE,
    PROMPT,
    TEXT,
    CollectedInput,
    CollectedRequest,
    CollectedText,
    input_of,
)
from llama_serving.service.output import SequenceOutput
from llama_serving.service.preparation import PreparedInput
from llama_serving.service.sampled_parameters import parameters_of

BLOCKED: Final = "content_filter"


class Following:
    """What the service says of a request. This one keeps nothing: the request is not collected."""

    def prepared(self, request: Request, inputs: Sequence[PreparedInput]) -> None:
        """Note a request that may run if the guards pass its prompts."""

    def passed(self) -> None:
        """Note that the guards have passed its prompts."""

    def running(self, sequences: Sequence[Sequence[SequenceOutput]]) -> None:
        """Note the sequences of a stream."""

    def sent(self, delta: Delta) -> None:
        """Note a piece that the client's protocol has taken, and come back for more."""

    def answered(self, generations: Generations) -> None:
        """Note the answer."""


NOT_FOLLOWED: Final = Following()


@dataclass(slots=True)
class _Stream:
    """What of one sequence was sent."""

    sequence: SequenceOutput
    pieces: list[str] = field(default_factory=list)
    generation: Generation | None = None

    def collected(self) -> CollectedText:
        if self.generation is not None:
            return _collected(self.generation)
        usage = self.sequence.usage
        text = "".join(self.pieces).removeprefix(self.sequence.before)
        return CollectedText(text, "", usage.prompt_tokens, usage.completion_tokens)


class _Followed(Following):
    """A request that is collected."""

    def __init__(self, caller: Caller, model: str) -> None:
        self._caller, self._model, self._seconds = caller, model, time.time()
        self._request: Request | None = None
        self._passed = False
        self._inputs: Sequence[PreparedInput] = ()
        self._streams: list[_Stream] = []
        self._generations: Generations | None = None

    def prepared(self, request: Request, inputs: Sequence[PreparedInput]) -> None:
        self._request, self._inputs = request, inputs

    def passed(self) -> None:
        self._passed = True

    def running(self, sequences: Sequence[Sequence[SequenceOutput]]) -> None:
        self._streams = [_Stream(one) for several in sequences for one in several]

    def sent(self, delta: Delta) -> None:
        stream = self._streams[delta.index]
        stream.pieces.append(delta.text)
        stream.generation = delta.generation or stream.generation

    def answered(self, generations: Generations) -> None:
        self._generations = generations

    def record(self, end: str) -> CollectedRequest | None:
        """Return the record of the request, once it has ended; None if it never could run."""
        if self._request is None or not self._inputs:
            return None
        outputs = self._outputs()
        blocked_text = any(one.finish_reason == BLOCKED for several in outputs for one in several)
        blocked = PROMPT if end == BLOCKED else TEXT if blocked_text else ""
        return CollectedRequest(
            self._caller.request_id,
            self._seconds,
            self._model,
            parameters_of(self._request, self._inputs[0].params[0]),
            self._given(self._request) if self._passed else tuple(CollectedInput("") for _ in self._inputs),
            outputs,
            end,
            blocked,
            self._caller.secrets,
        )

    def _given(self, request: Request) -> tuple[CollectedInput, ...]:
        return tuple(
            input_of(given, prepared.prompt.text)
            for given, prepared in zip(request.inputs, self._inputs, strict=True)
        )

    def _outputs(self) -> tuple[tuple[CollectedText, ...], ...]:
        if self._generations is not None:
            return tuple(tuple(map(_collected, several)) for several in self._generations)
        if self._streams:
            return (tuple(one.collected() for one in self._streams),)
        return tuple(tuple(CollectedText() for _ in one.params) for one in self._inputs)


@contextmanager
def following(collector: Collector | None, caller: Caller | None, model: str) -> Iterator[Following]:
    """Yield what follows a request; it is collected when the block ends, however it ends."""
    if collector is None or caller is None or not collector.takes(caller.request_id):
        yield NOT_FOLLOWED
        return
    followed, end = _Followed(caller, model), COMPLETE
    try:
        yield followed
    except (asyncio.CancelledError, GeneratorExit):
        end = GONE
        raise
    except ServingError as error:
        blocked = isinstance(error, BadRequest) and error.code == BLOCKED
        end = BLOCKED if blocked else error.code
        raise
    except Exception:
        end = InternalError.default_code
        raise
    finally:
        record = followed.record(end)
        if record is not None:
            collector.put(record)


def _collected(one: Generation) -> CollectedText:
    return CollectedText(one.text, one.finish_reason, one.usage.prompt_tokens, one.usage.completion_tokens)
