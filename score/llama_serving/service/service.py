"""Request -> ids -> engine -> text -> `Generation`. What every carrier calls; it knows no protocol."""

import asyncio
import logging
import random
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Final

from llama_serving.catalog import ModelVariant
from llama_serving.contract.request import Delta, Generation, Generations, Request
from llama_serving.engine.base import Engine
from llama_serving.errors import (
    BadRequest,
    DeadlineExceeded,
    QueueFull,
    SetupError,
)
from llama_serving.model_files import ModelFiles
from llama_serving.prompts.builder import PromptBuilder
from llama_serving.prompts.tokenizer import Tokenizer
from llama_serving.sampling_params import SamplingParams
from llama_serving.service.engine_factory import dtype_of, start_engine
from llama_serving.service.in_flight import InFlight
from llama_serving.service.output import RunningSequence, StopAt
from llama_serving.service.preparation import Preparer, Work
from llama_serving.settings import Settings

_log = logging.getLogger(__name__)

RETRY_AFTER_S: Final = range(5, 16)
"""Each who is sent away is told another one of these: a crowd that came together does not come again together."""


_INVARIANCE: Final = {
    True: ", batch-invariant",
    False: ", not batch-invariant: seeds and greedy texts may differ with what else is computed",
    None: "",
}


class Service:
    """A loaded model that answers requests. Safe to call from any number of threads."""

    def __init__(
        self,
        variant: ModelVariant,
        tokenizer: Tokenizer,
        engine: Engine,
        settings: Settings,
        *,
        capacity: int | None = None,
    ) -> None:
        self.variant = variant
        self.engine = engine
        self.settings = settings
        self.tokenizer = tokenizer
        context = context_of(variant, settings)
        self.builder = PromptBuilder(
            tokenizer, variant, context if capacity is None else min(context, capacity)
        )
        self.on_end: Callable[[Request, RunningSequence], None] = _nobody
        """Told of every sequence that is over, in the context of whoever asked for it."""
        self._preparer = Preparer(variant, self.builder, settings)
        self._gate = threading.Semaphore(settings.max_num_seqs + settings.queue)
        self._in_flight = InFlight()

    @classmethod
    def start(cls, files: ModelFiles, settings: Settings) -> "Service":
        """Loads the model and its engine.

        Raises:
            SetupError: the files or the settings can't be used.
        """
        context = context_of(files.variant, settings)
        tokenizer = Tokenizer.from_folder(files.checkpoint, files.variant.special_ids)
        dtype = dtype_of(files.variant, settings)
        engine, selection = start_engine(files, dtype=dtype, context=context, settings=settings)
        stats = engine.stats()
        computes = f"{stats.engine} engine" + (f" on the {stats.backend} backend" if stats.backend else "")
        computes += f" (not the native one: {stats.fallback_reason})" if stats.fallback_reason else ""
        computes += f" (chosen since {selection.why})" if selection.why else ""
        computes += _INVARIANCE[stats.batch_invariant]
        _log.info("%s, context %d, %s, %s; %s", files.variant.title, context, dtype, computes, settings.shown())
        if engine.capacity is not None and engine.capacity < context:
            why = (
                "the model's server has a context of"
                if selection.name in ("upstream", "vllm")
                else "the memory for keys and values (LLAMA_KV_MEMORY) holds"
            )
            _log.warning("%s %d tokens: longer sequences are refused", why, engine.capacity)
        return cls(files.variant, tokenizer, engine, settings, capacity=engine.capacity)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Holds one of the places for requests; decided at once, before anything is parsed.

        Raises:
            QueueFull: all places are taken.
        """
        if not self._gate.acquire(blocking=False):
            limit, again_s = self.settings.max_num_seqs + self.settings.queue, random.choice(RETRY_AFTER_S)  # noqa: S311
            raise QueueFull(
                f"All {limit} places for requests are taken. Try again in {again_s} s.", retry_after=again_s
            )
        try:
            yield
        finally:
            self._gate.release()

    def requests(self) -> tuple[int, int]:
        """How many requests have a sequence that the engine runs, and of how many every unfinished one waits."""
        return self._in_flight.counts(self.engine.stats().running_handles)

    def prepare(self, request: Request) -> tuple[Work, ...]:
        """See `Preparer.prepare`."""
        return self._preparer.prepare(request)

    def generate(self, request: Request, *, deadline: float | None = None) -> Generations:
        """All sequences of a request.

        Args:
            request: as a protocol parsed it.
            deadline: `time.monotonic()` seconds; what is done by then is the answer.

        Raises:
            BadRequest: the request can't be served; nothing of it was run.
            DeadlineExceeded: the deadline passed before anything was generated.
            ServingError: a sequence failed; the others of this request are cancelled.
        """
        if request.parameters.stream:
            raise BadRequest(
                "This endpoint cannot stream. Leave `stream` out, or call the MLflow model's predict_stream.",
                code="streaming_unsupported",
                param=request.path("stream"),
            )
        works = self.prepare(request)
        with self._running(works, request, deadline, streamed=False) as running:
            generations = _results(running)
        _refuse_nothing(generations)
        return generations

    def stream(self, request: Request, *, deadline: float | None = None) -> Iterator[Delta]:
        """The text of a request with one input, piece by piece; its sequences one after the other.

        Raises:
            BadRequest: the request can't be served, or has several inputs.
            DeadlineExceeded, ServingError: as `generate`.
        """
        _refuse_several(request)
        with self._running(self.prepare(request), request, deadline, streamed=True) as (sequences,):
            for index, sequence in enumerate(sequences):
                for piece in sequence.pieces():
                    if (delta := sequence.delta(index, piece)) is not None:
                        yield delta
                generation = sequence.generation()
                _refuse_nothing(((generation,),))
                yield Delta(index, "", generation)

    async def answer(self, request: Request, *, deadline: float | None = None) -> Generations:
        """`generate` for an event loop. Cancelling it cancels the sequences.

        Raises:
            ServingError: as `generate`.
        """
        works = await asyncio.to_thread(self.prepare, request)
        with self._running(works, request, deadline, streamed=False) as running:
            for sequence in chain.from_iterable(running):
                await sequence.handle.ended()
            # On a thread: there may be much text, and the loop has others.
            generations = await asyncio.to_thread(_results, running)
        _refuse_nothing(generations)
        return generations

    async def deltas(self, request: Request, *, deadline: float | None = None) -> AsyncGenerator[Delta, None]:
        """`stream` for an event loop. Closing it cancels the sequences.

        Raises:
            ServingError: as `stream`.
        """
        _refuse_several(request)
        works = await asyncio.to_thread(self.prepare, request)
        with self._running(works, request, deadline, streamed=True) as (sequences,):
            for index, sequence in enumerate(sequences):
                async for piece in sequence.stream():
                    if (delta := sequence.delta(index, piece)) is not None:
                        yield delta
                generation = sequence.generation()
                _refuse_nothing(((generation,),))
                yield Delta(index, "", generation)

    def close(self) -> None:
        """Ends the engine; what runs is cancelled."""
        self.engine.close()

    @contextmanager
    def _running(
        self, works: Sequence[Work], request: Request, deadline: float | None, *, streamed: bool = True
    ) -> Iterator[list[list[RunningSequence]]]:
        """All sequences of a request, submitted; whatever happens, none of them outlives the block."""
        running: list[list[RunningSequence]] = []
        with self._in_flight.request() as handles:
            try:
                for work in works:
                    running.append([])
                    for params in work.params:
                        sequence = self._begin(work, params, request, deadline, streamed=streamed)
                        handles.append(sequence.handle)
                        running[-1].append(sequence)
                yield running
            finally:
                for sequence in chain.from_iterable(running):
                    sequence.handle.cancel()
                for sequence in chain.from_iterable(running):
                    self.on_end(request, sequence)

    def _begin(
        self, work: Work, params: SamplingParams, request: Request, deadline: float | None, *, streamed: bool
    ) -> RunningSequence:
        stop = StopAt(self.tokenizer, request.parameters.stop) if request.parameters.stop else None
        handle = self.engine.submit(
            work.prompt.token_ids, params, deadline=deadline, stop=stop, streamed=streamed
        )
        return RunningSequence(handle, work.prompt, request, self.tokenizer)


def context_of(variant: ModelVariant, settings: Settings) -> int:
    """Tokens of prompt and completion together.

    Raises:
        SetupError: `LLAMA_CONTEXT` is more than the model reads.
    """
    context = settings.context or variant.trained_positions.value
    if context > variant.max_context.value:
        raise SetupError(
            f"LLAMA_CONTEXT={context} can't be used: {variant.name} reads at most "
            f"{variant.max_context.value} tokens ({variant.max_context.source})."
        )
    return context


def _results(running: Sequence[Sequence[RunningSequence]]) -> Generations:
    return tuple(tuple(sequence.result() for sequence in one) for one in running)


def _nobody(request: Request, sequence: RunningSequence) -> None:
    del request, sequence


def _refuse_several(request: Request) -> None:
    if len(request.inputs) > 1:
        raise BadRequest("A stream answers one prompt. Send the prompts one by one.",
                         code="streaming_unsupported")  # fmt: skip


def _refuse_nothing(generations: Sequence[Sequence[Generation]]) -> None:
    sequences = [sequence for one in generations for sequence in one]
    if all(s.finish_reason == "deadline" and s.usage.completion_tokens == 0 for s in sequences):
        raise DeadlineExceeded("The deadline passed before the first token. Ask for less, or allow more time.")
