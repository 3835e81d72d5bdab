"""Request -> ids -> engine -> text -> `Generation`. What every carrier calls; it knows no protocol."""

import asyncio
import logging
import random
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Final

from llama_serving.catalog import ModelVariant
from llama_serving.contract.request import (
    Delta,
    Generation,
    Generations,
    Request,
    SamplingParams,
)
from llama_serving.engine.base import Engine
from llama_serving.engine.randomness import fresh_seed
from llama_serving.errors import (
    BadRequest,
    DeadlineExceeded,
    InternalError,
    QueueFull,
    ServingError,
    SetupError,
    frames,
)
from llama_serving.model_files import ModelFiles
from llama_serving.prompts.builder import Prompt, PromptBuilder, located
from llama_serving.prompts.tokenizer import Tokenizer
from llama_serving.sequences import RunningSequence, StopAt
from llama_serving.settings import Settings

_log = logging.getLogger(__name__)

DEFAULT_MAX_NEW_TOKENS: Final = 256
RETRY_AFTER_S: Final = range(5, 16)
"""Each who is sent away is told another one of these: a crowd that came together does not come again together."""


@dataclass(frozen=True, slots=True)
class Work:
    """One input of a request, ready for the engine; `params` has one entry a returned sequence."""

    prompt: Prompt
    params: tuple[SamplingParams, ...]


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
        self._gate = threading.Semaphore(settings.max_num_seqs + settings.queue)

    @classmethod
    def start(cls, files: ModelFiles, settings: Settings) -> "Service":
        """Loads the model and its engine.

        Raises:
            SetupError: the files or the settings can't be used.
        """
        context = context_of(files.variant, settings)
        tokenizer = Tokenizer.from_folder(files.checkpoint, files.variant.special_ids)
        dtype = dtype_of(files.variant, settings)
        engine = start_engine(files.checkpoint, dtype=dtype, context=context, settings=settings)
        stats = engine.stats()
        computes = f"{stats.engine} engine" + (f" on the {stats.backend} backend" if stats.backend else "")
        _log.info("%s, context %d, %s, %s; %s", files.variant.name, context, dtype, computes, settings.shown())
        if engine.capacity is not None and engine.capacity < context:
            _log.warning(
                "the memory for keys and values holds %d tokens: longer sequences are refused (LLAMA_KV_MEMORY)",
                engine.capacity,
            )
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

    def prepare(self, request: Request) -> tuple[Work, ...]:
        """Everything that can be refused, for all inputs, before any of them runs.

        Raises:
            BadRequest: with the index of the input at fault.
        """
        limit = self.settings.max_prompts
        if len(request.inputs) > limit:
            raise BadRequest(f"The request has {len(request.inputs)} prompts; at most {limit} are taken. "
                             "Send several requests.", code="too_many_prompts")  # fmt: skip
        return tuple(self._prepare_one(request, index) for index in range(len(request.inputs)))

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
                "This door can't stream. Leave `stream` out, or call the MLflow model's predict_stream.",
                code="streaming_unsupported",
                param="stream" if request.openai else f"{request.parameters_path}.stream",
            )
        works = self.prepare(request)
        with self._running(works, request, deadline) as running:
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
        with self._running(self.prepare(request), request, deadline) as (sequences,):
            for index, sequence in enumerate(sequences):
                yield from (Delta(index, piece) for piece in sequence.pieces() if piece)
                generation = sequence.generation()
                _refuse_nothing(((generation,),))
                yield Delta(index, "", generation)

    async def answer(self, request: Request, *, deadline: float | None = None) -> Generations:
        """`generate` for an event loop. Cancelling it cancels the sequences.

        Raises:
            ServingError: as `generate`.
        """
        works = await asyncio.to_thread(self.prepare, request)
        with self._running(works, request, deadline) as running:
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
        with self._running(works, request, deadline) as (sequences,):
            for index, sequence in enumerate(sequences):
                async for piece in sequence.stream():
                    if piece:
                        yield Delta(index, piece)
                generation = sequence.generation()
                _refuse_nothing(((generation,),))
                yield Delta(index, "", generation)

    def close(self) -> None:
        """Ends the engine; what runs is cancelled."""
        self.engine.close()

    def _prepare_one(self, request: Request, index: int) -> Work:
        prompt = self.builder.build_one(request, index)
        if self.settings.log_prompts:
            _log.info("prompt: %r", prompt.text)
        try:
            return Work(prompt, self._resolve(request, prompt))
        except BadRequest as error:
            raise located(error, request, index) from None

    def _resolve(self, request: Request, prompt: Prompt) -> tuple[SamplingParams, ...]:
        """What was asked for, with the model's defaults in the gaps, for each returned sequence."""
        asked, variant = request.parameters, self.variant
        temperature = variant.temperature if asked.temperature is None else asked.temperature
        greedy = asked.do_sample is False or temperature == 0
        count = asked.num_return_sequences or 1
        if greedy and count > 1:
            raise self._bad(request, "num_return_sequences", "greedy sequences would all be the same text: "
                            "let it sample (do_sample true, temperature above 0), or ask for one")  # fmt: skip
        max_new = self._max_new_tokens(request, prompt)
        params = SamplingParams(
            max_new_tokens=max_new,
            min_new_tokens=self._min_new_tokens(request, max_new),
            temperature=0.0 if greedy else temperature,
            top_p=variant.top_p if asked.top_p is None else asked.top_p,
            top_k=asked.top_k or 0,
            min_p=asked.min_p or 0.0,
            repetition_penalty=_or(asked.repetition_penalty, 1.0),
            presence_penalty=asked.presence_penalty or 0.0,
            frequency_penalty=asked.frequency_penalty or 0.0,
            stop_ids=frozenset() if asked.ignore_eos else prompt.stop_ids,
            seed=fresh_seed() if asked.seed is None else asked.seed,
            logprobs=asked.logprobs,
        )
        return tuple(replace(params, index=index) for index in range(count))

    def _max_new_tokens(self, request: Request, prompt: Prompt) -> int:
        asked = request.parameters.max_new_tokens
        room = self.builder.context - len(prompt.token_ids)
        if asked is None:
            return min(DEFAULT_MAX_NEW_TOKENS, room)
        if asked > room and not request.ceiling:
            raise self.builder.too_long(len(prompt.token_ids), asked)
        return min(asked, room)

    def _min_new_tokens(self, request: Request, max_new: int) -> int:
        asked = request.parameters.min_new_tokens or 0
        limit = max_new if not request.ceiling else (request.parameters.max_new_tokens or max_new)
        if asked > limit:
            raise self._bad(request, "min_new_tokens", f"it is {asked} and max_new_tokens is {limit}: "
                            "raise the one or lower the other")  # fmt: skip
        return min(asked, max_new)

    def _bad(self, request: Request, name: str, why: str) -> BadRequest:
        path = f"{request.parameters_path}.{name}" if request.parameters_path else name
        return BadRequest(f"`{path}` can't be met: {why}.", code="invalid_value", param=path)

    @contextmanager
    def _running(
        self, works: Sequence[Work], request: Request, deadline: float | None
    ) -> Iterator[list[list[RunningSequence]]]:
        """All sequences of a request, submitted; whatever happens, none of them outlives the block."""
        running: list[list[RunningSequence]] = []
        try:
            for work in works:
                running.append([])
                for params in work.params:
                    stop = StopAt(self.tokenizer, request.parameters.stop) if request.parameters.stop else None
                    handle = self.engine.submit(work.prompt.token_ids, params, deadline=deadline, stop=stop)
                    running[-1].append(RunningSequence(handle, work.prompt, request.parameters, self.tokenizer))
            yield running
        finally:
            for sequence in chain.from_iterable(running):
                sequence.handle.cancel()
            for sequence in chain.from_iterable(running):
                self.on_end(request, sequence)


def dtype_of(variant: ModelVariant, settings: Settings) -> str:
    """What the model is computed in."""
    return variant.dtype if settings.dtype == "auto" else settings.dtype


def batches(settings: Settings, dtype: str) -> bool:
    """Whether the batching engine is the one, and not the pipeline."""
    from llama_serving.engine.batching.start import suits

    return settings.engine != "pipeline" and (settings.engine != "auto" or suits(dtype))


def start_engine(checkpoint: Path, *, dtype: str, context: int, settings: Settings) -> Engine:
    """The engine that the settings name; `auto` is batching where it can compute the model, else pipeline.

    Raises:
        SetupError: it can't load the checkpoint.
    """
    if not batches(settings, dtype):
        from llama_serving.engine.pipeline import PipelineEngine

        if settings.kv_memory is not None:
            raise SetupError(
                "LLAMA_KV_MEMORY is set, but the pipeline engine has no cache of its own. Unset it."
            )
        return PipelineEngine(checkpoint, dtype=dtype, threads=settings.threads)
    from llama_serving.engine.batching.start import start

    return start(
        checkpoint,
        dtype=dtype,
        context=context,
        threads=settings.threads,
        max_num_seqs=settings.max_num_seqs,
        kv_memory=settings.kv_memory,
    )


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


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def log_to_stderr() -> None:
    """Makes the start line and the warnings visible in servers that have set up no logging."""
    log = logging.getLogger("llama_serving")
    log.setLevel(logging.INFO)
    if not log.hasHandlers():
        log.addHandler(logging.StreamHandler())


def as_serving_error(error: Exception) -> ServingError:
    """Any fault as one that may be shown; what nobody foresaw goes to the log, not to the client."""
    if isinstance(error, ServingError):
        return error
    _log.error("unforeseen fault (messages left out, they could quote a prompt)\n%s", frames(error))
    return InternalError("The server failed on this request. The log has the cause.")
