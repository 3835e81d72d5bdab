"""The texts of a request on their way out: nothing leaves before the guards have passed it.

Everything here raises `GuardUnavailable` if a guard fails; what was held back does not leave then.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import TypeVar

from llama_serving.contract.content_filter import Finding, blocks
from llama_serving.contract.request import Delta, Generations
from llama_serving.service.guards.guard import Passage, Stage
from llama_serving.service.guards.guards import Guards, Verdict
from llama_serving.service.guards.held_stream import HeldStream
from llama_serving.service.output import SequenceOutput

T = TypeVar("T")
Running = Sequence[Sequence[SequenceOutput]]
"""For each input of a request, its sequences."""


def results(running: Running, guards: Guards) -> Generations:
    """Wait for the end of all sequences and return their results."""
    generations = _results(running)
    if not guards.watches(Stage.TEXT):
        return generations
    _judge(running, guards.check(_passages(running)))
    return _generations(running)


async def aresults(running: Running, guards: Guards) -> Generations:
    """Do as `results` for an event loop."""
    for sequence in _flat(running):
        await sequence.handle.ended()
    # In a thread: a long text would block the loop.
    generations = await asyncio.to_thread(_results, running)
    if not guards.watches(Stage.TEXT):
        return generations
    _judge(running, await guards.acheck(_passages(running)))
    return await asyncio.to_thread(_generations, running)


def texts(sequence: SequenceOutput, guards: Guards) -> "Texts":
    """Return the pieces of a text; see `Texts`."""
    return _Held(sequence, guards) if guards.watches(Stage.TEXT) else Texts(sequence)


class Texts:
    """The pieces of one text as they may leave, with the prompt around it if that was requested."""

    def __init__(self, sequence: SequenceOutput) -> None:
        self._sequence = sequence

    def deltas(self, index: int) -> Iterator[Delta]:
        """Yield the pieces, and the end."""
        for text in self._pieces():
            if (delta := self._sequence.delta(index, text, shown=self._shown())) is not None:
                yield delta
        yield self._sequence.last_delta(index)

    async def adeltas(self, index: int) -> AsyncGenerator[Delta, None]:
        """Do as `deltas` for an event loop."""
        async with aclosing(self._apieces()) as pieces:
            async for text in pieces:
                delta = await self._off_loop(partial(self._sequence.delta, index, text, shown=self._shown()))
                if delta is not None:
                    yield delta
        yield await self._off_loop(partial(self._sequence.last_delta, index))

    async def _off_loop(self, work: Callable[[], T]) -> T:
        """Return what some work returns. It is done in a thread if it may take long."""
        return await asyncio.to_thread(work) if self._sequence.is_heavy else work()

    def _pieces(self) -> Iterator[str]:
        return self._sequence.pieces()

    def _apieces(self) -> AsyncGenerator[str, None]:
        return self._sequence.apieces()

    def _shown(self) -> int | None:
        """Characters that tokens may stand for; None is all."""
        return None


class _Held(Texts):
    """Text that is held back until the guards have passed it."""

    def __init__(self, sequence: SequenceOutput, guards: Guards) -> None:
        super().__init__(sequence)
        self._guards = guards
        self._held = HeldStream(guards.windows)
        self._complete = False

    def _shown(self) -> int | None:
        return None if self._complete else self._held.left

    def _pieces(self) -> Iterator[str]:
        held, handle, pieces = self._held, self._sequence.handle, self._sequence.pieces()
        yield next(pieces)  # of the prompt
        while True:
            passage = held.due(time.monotonic())
            if passage is not None and not self._passes(passage, self._guards.judge([passage])[0]):
                return
            yield held.take(time.monotonic())
            patience = held.patience(time.monotonic())
            if patience is not None and not handle.more(patience):
                continue
            if next(pieces, None) is None:
                break
            held.see(self._sequence.text, time.monotonic())
        last = held.last(self._sequence.exposed)
        if self._passes(last, self._guards.judge([last])[0]):
            yield self._rest()

    async def _apieces(self) -> AsyncGenerator[str, None]:
        held, pieces = self._held, self._sequence.apieces()
        yield await anext(pieces)  # of the prompt
        coming: asyncio.Task[str | None] | None = None
        try:
            while True:
                passage = held.due(time.monotonic())
                if passage is not None and not self._passes(passage, (await self._guards.ajudge([passage]))[0]):
                    return
                yield held.take(time.monotonic())
                coming = coming or asyncio.create_task(_next(pieces))
                await asyncio.wait({coming}, timeout=held.patience(time.monotonic()))
                if not coming.done():
                    continue
                piece, coming = coming.result(), None
                if piece is None:
                    break
                held.see(self._sequence.text, time.monotonic())
            last = held.last(self._sequence.exposed)
            if self._passes(last, (await self._guards.ajudge([last]))[0]):
                yield self._rest()
        finally:
            if coming is not None:
                coming.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await coming
            await pieces.aclose()

    def _passes(self, passage: Passage, verdict: Verdict) -> bool:
        """Return whether a passage passes; if not, the sequence ends where the text has left."""
        self._sequence.judge(verdict.findings, self._held.left)
        if blocks(verdict.findings):
            return False
        self._held.passed(passage, verdict.pending)
        return True

    def _rest(self) -> str:
        self._complete = True
        return self._held.take_all() + self._sequence.after


async def _next(pieces: AsyncIterator[str]) -> str | None:
    return await anext(pieces, None)


def _flat(running: Running) -> list[SequenceOutput]:
    return [sequence for one in running for sequence in one]


def _results(running: Running) -> Generations:
    return tuple(tuple(sequence.result() for sequence in one) for one in running)


def _generations(running: Running) -> Generations:
    return tuple(tuple(sequence.generation() for sequence in one) for one in running)


def _passages(running: Running) -> list[Passage]:
    return [Passage(Stage.TEXT, sequence.exposed) for sequence in _flat(running)]


def _judge(running: Running, found: Sequence[Sequence[Finding]]) -> None:
    for sequence, findings in zip(_flat(running), found, strict=True):
        sequence.judge(findings, 0)
