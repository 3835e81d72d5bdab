"""Request -> ids -> engine -> text -> `Generation`. Called by every host and server; it knows no protocol."""

import asyncio
import logging
import random
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Final

from llama_serving.catalog import ModelVariant
from llama_serving.contract.content_filter import Finding, blocks
from llama_serving.contract.request import Delta, Generation, Generations, Request
from llama_serving.engine.base import Engine
from llama_serving.errors import BadRequest, DeadlineExceeded, QueueFull, SetupError
from llama_serving.model_files import ModelFiles
from llama_serving.prompts.builder import PromptBuilder, located
from llama_serving.prompts.tokenizer import Tokenizer
from llama_serving.sampling_params import SamplingParams
from llama_serving.service.collection.caller import Caller
from llama_serving.service.collection.following import Following, following
from llama_serving.service.engine_factory import dtype_of, start_engine
from llama_serving.service.guards import configuration, guarded_output
from llama_serving.service.guards.guard import Passage, Stage
from llama_serving.service.guards.guards import Guards
from llama_serving.service.in_flight import InFlight
from llama_serving.service.output import EndChecker, SequenceOutput
from llama_serving.service.preparation import PreparedInput, RequestPreparer
from llama_serving.service.receipts import ReceiptWriter
from llama_serving.settings import Settings

if TYPE_CHECKING:
    from llama_serving.service.collection.collector import Collector

_log = logging.getLogger(__name__)

RETRY_AFTER_S: Final = range(5, 16)
"""Seconds; each refused client gets a random one of these, so that clients do not all retry at once."""


_INVARIANCE: Final = {
    True: ", batch-invariant",
    False: ", not batch-invariant: seeds and greedy texts may depend on the rest of the batch",
    None: "",
}


class Service:
    """A loaded model that answers requests. Thread-safe."""

    def __init__(  # noqa: PLR0913  (all but the first four are named)
        self,
        variant: ModelVariant,
        tokenizer: Tokenizer,
        engine: Engine,
        settings: Settings,
        *,
        capacity: int | None = None,
        files: ModelFiles | None = None,
        guards: Guards | None = None,
    ) -> None:
        self.variant = variant
        self.engine = engine
        self.settings = settings
        self.tokenizer = tokenizer
        self.guards = configuration.load(settings.guards) if guards is None else guards
        self.collector: Collector | None = None
        """Collects the requests that come with a caller; hosts of online requests set it before the first one."""
        context = context_of(variant, settings)
        self.builder = PromptBuilder(
            tokenizer, variant, context if capacity is None else min(context, capacity)
        )
        self.on_end: Callable[[Request, SequenceOutput], None] = _ignore
        """Called for every sequence that ended, in the context of its request."""
        self.on_begin: Callable[[Request, Sequence[PreparedInput]], None] = _ignore
        """Called for every prepared request, in its context; a `ServingError` that it raises refuses the request."""
        self.on_submit: Callable[[SequenceOutput, SamplingParams], None] = _ignore
        """Called for every sequence that the engine has accepted, in the context of its request."""
        self.receipts = ReceiptWriter(variant, engine, settings, self.builder.context, files)
        self._preparer = RequestPreparer(variant, self.builder, settings)
        self._gate = threading.Semaphore(settings.max_num_seqs + settings.queue)
        self._in_flight = InFlight()

    @classmethod
    def start(cls, files: ModelFiles, settings: Settings) -> "Service":
        """Load the model and start its engine.

        Raises:
            SetupError: the files or settings cannot be used.
        """
        context = context_of(files.variant, settings)
        guards = configuration.load(settings.guards)
        tokenizer = Tokenizer.from_folder(files.checkpoint, files.variant.special_ids)
        dtype = dtype_of(files.variant, settings)
        engine, selection = start_engine(files, dtype=dtype, context=context, settings=settings)
        stats = engine.stats()
        computes = f"{stats.engine} engine" + (f" on the {stats.backend} backend" if stats.backend else "")
        computes += f" with {stats.instructions}" if stats.instructions else ""
        computes += f" (not the native one: {stats.fallback_reason})" if stats.fallback_reason else ""
        computes += f" (chosen because {selection.why})" if selection.why else ""
        computes += _INVARIANCE[stats.batch_invariant]
        _log.info("%s, context %d, %s, %s; %s", files.variant.title, context, dtype, computes, settings.shown())
        if engine.capacity is not None and engine.capacity < context:
            why = (
                "the model's server has a context of"
                if selection.name in ("upstream", "vllm")
                else "the memory for keys and values (LLAMA_KV_MEMORY) holds"
            )
            _log.warning("%s %d tokens: longer sequences are refused", why, engine.capacity)
        return cls(
            files.variant, tokenizer, engine, settings, capacity=engine.capacity, files=files, guards=guards
        )

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Hold one of the request slots; acquired or refused at once, before the body is parsed.

        Raises:
            QueueFull: all slots are taken.
        """
        if not self._gate.acquire(blocking=False):
            limit, again_s = self.settings.max_num_seqs + self.settings.queue, random.choice(RETRY_AFTER_S)  # noqa: S311
            raise QueueFull(
                f"All {limit} request slots are taken. Try again in {again_s} s.", retry_after=again_s
            )
        try:
            yield
        finally:
            self._gate.release()

    def requests(self) -> tuple[int, int]:
        """Return the number of requests with a running sequence, and of those whose unfinished sequences all wait."""
        return self._in_flight.counts(self.engine.stats().running_handles)

    def prepare(self, request: Request) -> tuple[PreparedInput, ...]:
        """See `RequestPreparer.prepare`."""
        if request.parameters.receipt:
            self.receipts.prepare()
        return self._preparer.prepare(request)

    def generate(
        self, request: Request, *, deadline: float | None = None, caller: Caller | None = None
    ) -> Generations:
        """Generate all sequences of a request.

        Args:
            request: as a protocol parsed it.
            deadline: `time.monotonic()` seconds; sequences end there with what they have.
            caller: who sends it; without one it is not collected.

        Raises:
            BadRequest: the request is invalid; nothing was generated.
            DeadlineExceeded: the deadline passed before the first token.
            ServingError: a sequence failed; the request's other sequences are cancelled.
        """
        if request.parameters.stream:
            raise BadRequest(
                "This endpoint cannot stream. Leave `stream` out, or call the MLflow model's predict_stream.",
                code="streaming_unsupported",
                param=request.path("stream"),
            )
        with self._following(caller) as followed:
            inputs = self._checked(request, self.prepare(request), followed)
            with self._running(inputs, request, deadline, streamed=False) as running:
                generations = guarded_output.results(running, self.guards)
            _refuse_nothing(generations)
            followed.answered(generations)
        return generations

    def stream(
        self, request: Request, *, deadline: float | None = None, caller: Caller | None = None
    ) -> Iterator[Delta]:
        """Stream the text of a request with one input; its sequences follow each other.

        Raises:
            BadRequest: the request is invalid or has several inputs.
            DeadlineExceeded, ServingError: as in `generate`.
        """
        _refuse_several(request)
        with self._following(caller) as followed:
            inputs = self._checked(request, self.prepare(request), followed)
            with self._running(inputs, request, deadline, streamed=True) as running:
                followed.running(running)
                for index, sequence in enumerate(chain.from_iterable(running)):
                    for delta in guarded_output.texts(sequence, self.guards).deltas(index):
                        _refuse_empty(delta)
                        yield delta
                        followed.sent(delta)

    async def agenerate(
        self, request: Request, *, deadline: float | None = None, caller: Caller | None = None
    ) -> Generations:
        """Do as `generate` for an event loop. Cancelling it cancels the sequences.

        Raises:
            ServingError: as in `generate`.
        """
        with self._following(caller) as followed:
            inputs = await self._achecked(request, await asyncio.to_thread(self.prepare, request), followed)
            with self._running(inputs, request, deadline, streamed=False) as running:
                generations = await guarded_output.aresults(running, self.guards)
            _refuse_nothing(generations)
            followed.answered(generations)
        return generations

    async def astream(
        self, request: Request, *, deadline: float | None = None, caller: Caller | None = None
    ) -> AsyncGenerator[Delta, None]:
        """Do as `stream` for an event loop. Closing it cancels the sequences.

        Raises:
            ServingError: as in `stream`.
        """
        _refuse_several(request)
        with self._following(caller) as followed:
            inputs = await self._achecked(request, await asyncio.to_thread(self.prepare, request), followed)
            with self._running(inputs, request, deadline, streamed=True) as running:
                followed.running(running)
                for index, sequence in enumerate(chain.from_iterable(running)):
                    async with aclosing(guarded_output.texts(sequence, self.guards).adeltas(index)) as deltas:
                        async for delta in deltas:
                            _refuse_empty(delta)
                            yield delta
                            followed.sent(delta)

    def close(self) -> None:
        """Stop the engine and cancel what runs."""
        self.engine.close()
        self.guards.close()
        if self.collector is not None:
            self.collector.close()

    def _following(self, caller: Caller | None) -> AbstractContextManager[Following]:
        return following(self.collector, caller, self.variant.name)

    def _checked(
        self, request: Request, inputs: Sequence[PreparedInput], followed: Following
    ) -> Sequence[PreparedInput]:
        """Return the inputs, once the guards have passed their prompts.

        Raises:
            BadRequest: a guard blocks one of them.
            GuardUnavailable: a guard failed.
        """
        self.on_begin(request, inputs)
        followed.prepared(request, inputs)
        if self.guards.watches(Stage.PROMPT):
            _refuse_blocked(request, self.guards.check(_prompts(inputs)))
        followed.passed()
        return inputs

    async def _achecked(
        self, request: Request, inputs: Sequence[PreparedInput], followed: Following
    ) -> Sequence[PreparedInput]:
        """Do as `_checked` for an event loop."""
        self.on_begin(request, inputs)
        followed.prepared(request, inputs)
        if self.guards.watches(Stage.PROMPT):
            _refuse_blocked(request, await self.guards.acheck(_prompts(inputs)))
        followed.passed()
        return inputs

    @contextmanager
    def _running(
        self,
        inputs: Sequence[PreparedInput],
        request: Request,
        deadline: float | None,
        *,
        streamed: bool = True,
    ) -> Iterator[list[list[SequenceOutput]]]:
        """Submit all sequences of a request; they are cancelled when the block ends, however it ends."""
        running: list[list[SequenceOutput]] = []
        with self._in_flight.request() as handles:
            try:
                for index, prepared in enumerate(inputs):
                    running.append([])
                    for params in prepared.params:
                        first = running[-1][0] if running[-1] else None
                        sequence = self._begin(
                            prepared, index, params, request, deadline, first=first, streamed=streamed
                        )
                        handles.append(sequence.handle)
                        running[-1].append(sequence)
                        self.on_submit(sequence, params)
                yield running
            finally:
                for sequence in chain.from_iterable(running):
                    sequence.handle.cancel()
                for sequence in chain.from_iterable(running):
                    self.on_end(request, sequence)

    def _begin(  # noqa: PLR0913  (what belongs to one sequence)
        self,
        prepared: PreparedInput,
        index: int,
        params: SamplingParams,
        request: Request,
        deadline: float | None,
        *,
        first: SequenceOutput | None,
        streamed: bool,
    ) -> SequenceOutput:
        stop = EndChecker.where_needed(request, prepared.prompt, self.tokenizer)
        handle = self.engine.submit(
            prepared.prompt.token_ids,
            params,
            deadline=deadline,
            stop=stop,
            matcher=None if prepared.compiled is None else prepared.compiled.matcher(params.stop_ids),
            streamed=streamed,
        )
        position = index, len(prepared.prompt.token_ids)
        written = (
            partial(self.receipts.write, request, position, params) if request.parameters.receipt else None
        )
        return SequenceOutput(handle, prepared.prompt, request, self.tokenizer, receipt=written, first=first)


def context_of(variant: ModelVariant, settings: Settings) -> int:
    """Return the context: the most tokens of prompt and completion together.

    Raises:
        SetupError: `LLAMA_CONTEXT` is more than the model supports.
    """
    context = settings.context or variant.trained_positions.value
    if context > variant.max_context.value:
        raise SetupError(
            f"LLAMA_CONTEXT={context} can't be used: {variant.name} reads at most "
            f"{variant.max_context.value} tokens ({variant.max_context.source})."
        )
    return context


def _prompts(inputs: Sequence[PreparedInput]) -> list[Passage]:
    return [Passage(Stage.PROMPT, one.prompt.text) for one in inputs]


def _refuse_blocked(request: Request, found: Sequence[Sequence[Finding]]) -> None:
    for index, findings in enumerate(found):
        if blocks(findings):
            names = ", ".join(dict.fromkeys(f"`{one.name}`" for one in findings if one.filtered))
            error = BadRequest(
                f"The prompt was blocked by the content filter: {names}. Change the prompt.",
                code="content_filter",
            )
            raise located(error, request, index)


def _ignore(one: object, other: object) -> None:
    del one, other


def _refuse_several(request: Request) -> None:
    if len(request.inputs) > 1:
        raise BadRequest("A stream answers one prompt. Send the prompts one by one.",
                         code="streaming_unsupported")  # fmt: skip


def _refuse_empty(last: Delta) -> None:
    if last.generation is not None:
        _refuse_nothing(((last.generation,),))


def _refuse_nothing(generations: Sequence[Sequence[Generation]]) -> None:
    sequences = [sequence for one in generations for sequence in one]
    if sequences and all(s.finish_reason == "deadline" and s.usage.completion_tokens == 0 for s in sequences):
        raise DeadlineExceeded("The deadline passed before the first token. Ask for less, or allow more time.")
