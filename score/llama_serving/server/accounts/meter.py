"""Follows one request: what it may use, what it used, and its record once it and all of its sequences have ended."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, Final

from llama_serving.contract.receipt import of_ids
from llama_serving.contract.request import Request
from llama_serving.engine.handle import Handle
from llama_serving.errors import RateLimited, ServingError
from llama_serving.sampling_params import SamplingParams
from llama_serving.server.accounts.quotas import DAY, SECOND, Exceeded, Quota, Unit
from llama_serving.server.accounts.record import BLOCKED, Arrival, Record, timestamp
from llama_serving.service.output import SequenceOutput
from llama_serving.service.preparation import PreparedInput
from llama_serving.service.sampled_parameters import parameters_of
from llama_serving.service.service import Service

CURRENT: Final[ContextVar["RequestMeter | None"]] = ContextVar("meter", default=None)
"""The meter of the request in whose context the code runs."""


def follow(service: Service) -> None:
    """Have the service tell each request's meter what the request asks for and gets."""

    def begin(request: Request, inputs: Sequence[PreparedInput]) -> None:
        if (meter := CURRENT.get()) is not None:
            meter.prepared(request, inputs, service.variant.name)

    def submit(sequence: SequenceOutput, params: SamplingParams) -> None:
        if (meter := CURRENT.get()) is not None:
            meter.submitted(sequence, params)

    service.on_begin, service.on_submit = begin, submit


def note(error: ServingError) -> ServingError:
    """Note an error that the current request is answered with, and return it."""
    meter = CURRENT.get()
    return error if meter is None else meter.failed(error)


class RequestMeter:
    """The account of one request. Sequences end on the engine's thread, some after the client has left.

    Args:
        key: name of the request's key.
        arrival: of the request.
        quota: of the key.
        done: called once, when the request and its sequences have ended.
    """

    def __init__(
        self, key: str, arrival: Arrival, quota: Quota, done: "Callable[[RequestMeter], None]"
    ) -> None:
        self.key, self.quota = key, quota
        self._arrival, self._done = arrival, done
        self._arrived, self._started = time.time(), time.monotonic()
        self._lock = threading.Lock()
        self._model: str | None = None
        self._prompts: tuple[tuple[int, ...], ...] = ()
        self._parameters: dict[str, Any] = {}
        self._reserved = 0
        self._sequences: list[SequenceOutput] = []
        self._running = 0
        self._error: str | None = None
        self._status: int | None = None
        self._ms = 0.0

    def admit(self) -> None:
        """Count the request itself.

        Raises:
            RateLimited: the key's limit of requests is reached.
        """
        self._refuse(self.quota.take(Unit.REQUESTS, 1))

    def prepared(self, request: Request, inputs: Sequence[PreparedInput], model: str) -> None:
        """Reserve the tokens that the request can use at most.

        Raises:
            RateLimited: the key's limit of tokens does not allow them.
        """
        self._model = model
        self._prompts = tuple(tuple(one.prompt.token_ids) for one in inputs)
        if inputs:  # (Ollama's clients send none to have the model loaded)
            self._parameters = parameters_of(request, inputs[0].params[0])
        needed = sum(
            len(one.prompt.token_ids) + params.max_new_tokens for one in inputs for params in one.params
        )
        self._refuse(self.quota.take(Unit.TOKENS, needed))
        self._reserved = needed

    def submitted(self, sequence: SequenceOutput, params: SamplingParams) -> None:
        """Follow a sequence that the engine has accepted."""
        with self._lock:
            self._sequences.append(sequence)
            self._running += 1
            self._reserved -= sequence.prompt_tokens + params.max_new_tokens
        sequence.handle.when_over(partial(self._ended, params.max_new_tokens))

    def failed(self, error: ServingError) -> ServingError:
        """Note the error that the request, or the end of its stream, is answered with, and return it."""
        self._error = self._error or error.code
        return error

    def answered(self, status: int) -> None:
        """Note that the request has ended: nothing more will be submitted."""
        with self._lock:
            self._status = status
            over = not self._running
        self.quota.give_back(Unit.TOKENS, self._reserved)  # for sequences that were never submitted
        if over:
            self._settle()

    def _ended(self, reserved: int, handle: Handle) -> None:
        """Give back at once what a sequence did not use, so that the answer's headers tell what is left."""
        self.quota.give_back(Unit.TOKENS, reserved - handle.count)
        with self._lock:
            self._running -= 1
            over = not self._running and self._status is not None
        if over:
            self._settle()

    def _settle(self) -> None:
        self._ms = (time.monotonic() - self._started) * 1e3
        self._done(self)

    def _refuse(self, exceeded: Exceeded | None) -> None:
        if exceeded is not None:
            raise RateLimited(_message(self.key, exceeded), retry_after=-(-exceeded.wait // SECOND) or 1)

    @property
    def prompt_tokens(self) -> int:
        """Tokens that the sequences read: each its whole prompt, as the engine counts them."""
        return sum(sequence.prompt_tokens for sequence in self._sequences)

    @property
    def completion_tokens(self) -> int:
        """Tokens that were generated, whoever read them."""
        return sum(sequence.handle.count for sequence in self._sequences)

    @property
    def error(self) -> str | None:
        """Code of the request's error, or of its first failed sequence's."""
        failed = (sequence.handle.error for sequence in self._sequences)
        return self._error or next((error.code for error in failed if error is not None), None)

    @property
    def block(self) -> str | None:
        """What a content filter blocked."""
        if self._error == BLOCKED:
            return "prompt"
        return "text" if BLOCKED in self._reasons() else None

    def counted(self) -> dict[str, Any]:
        """Return what usage counts of the request."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "error": self.error,
            "block": self.block,
        }

    def record(self, missing_of_day: Mapping[str, float]) -> Record:
        """Return the record of the request, once it has ended; `missing_of_day` is what the quota had to tell then."""
        firsts = [one.handle.first_at for one in self._sequences if one.handle.first_at is not None]
        return Record(
            time=timestamp(self._arrived),
            request_id=self._arrival.request_id,
            key=self.key,
            model=self._model,
            route=self._arrival.route,
            status=self._status or 0,
            client=self._arrival.client,
            prompt_ids=tuple(map(of_ids, self._prompts)),
            parameters=self._parameters,
            sequences=len(self._sequences),
            first_token_ms=round((min(firsts) - self._started) * 1e3, 1) if firsts else None,
            ms=round(self._ms, 1),
            finish_reasons=self._reasons(),
            missing_of_day=missing_of_day,
            **self.counted(),
        )

    def _reasons(self) -> tuple[str, ...]:
        return tuple(
            error.code
            if (error := sequence.handle.error) is not None
            else str(sequence.finish_reason or "cancelled")
            for sequence in self._sequences
        )


def _message(key: str, exceeded: Exceeded) -> str:
    per = "day" if exceeded.period == DAY else "minute"
    limit = f"The key {key} may use {exceeded.limit} {exceeded.unit} a {per}"
    seconds = -(-exceeded.wait // SECOND) or 1
    if exceeded.unit is Unit.REQUESTS:
        return f"{limit}. Try again in {seconds} s."
    asks = f"this request asks for up to {exceeded.asked}, its prompts and all that it may generate"
    if exceeded.never:
        return f"{limit}, and {asks}: it can never be served. Ask for fewer tokens."
    return f"{limit}: {exceeded.remaining} are left, and {asks}. Try again in {seconds} s, or ask for fewer tokens."
