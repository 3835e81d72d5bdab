"""The batching engine: one thread that owns torch, and a loop of steps.

Sequences arrive through a queue and leave through their handles. See `engine/base.py`.
"""

import logging
import queue
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as List
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Final

from llama_serving.constraints.matcher import Matcher
from llama_serving.engine.base import EngineStats
from llama_serving.engine.batching import batch_invariance, sampler
from llama_serving.engine.batching.backends.base import Backend, BackendLostError, Rows
from llama_serving.engine.batching.kv_cache import BlockPool
from llama_serving.engine.batching.prefill_budget import PrefillBudget
from llama_serving.engine.batching.scheduler import ScheduledSpan, Scheduler, SchedulerOutput
from llama_serving.engine.batching.sequence import Guessed, Sequence, SoFar
from llama_serving.engine.batching.speculation import Speculation, accepted
from llama_serving.engine.handle import Handle, Token, publish
from llama_serving.engine.thread import EngineThread, ThreadedEngine
from llama_serving.errors import BadRequest, InternalError, ServingError
from llama_serving.sampling_params import FinishReason, SamplingParams

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

LARGEST_CHUNK: Final = 512
"""Most prompt rows in one step."""
PROBE: Final = Rows(ids=(1,), start=0, blocks=(0,), prefill=True, num_logits=1)
"""A forward pass that always succeeds on a working backend; block 0 is reserved for it."""


@dataclass(slots=True)
class _StepCounters:
    tokens_out: int = 0
    steps: int = 0
    rows: int = 0


class BatchingEngine(ThreadedEngine):
    """Generates many sequences at once.

    Args:
        load: creates the backend; called on the engine's thread, like everything that uses torch.
        max_num_seqs: sequences that run at a time.
        share_prefixes: whether prompts with the same prefix compute it once.
        largest_chunk: most prompt rows in one step.
        speculative_tokens: most tokens of a sequence that are guessed in one step, where the backend is batch-invariant.

    Raises:
        SetupError: the checkpoint cannot be loaded.
    """

    def __init__(
        self,
        load: Callable[[], Backend],
        *,
        max_num_seqs: int = 16,
        share_prefixes: bool = True,
        largest_chunk: int = LARGEST_CHUNK,
        speculative_tokens: int = 0,
    ) -> None:
        self._load = load
        self._max_num_seqs = max_num_seqs
        self._share = share_prefixes
        self._largest_chunk = largest_chunk
        self._speculative_tokens = speculative_tokens
        self._counts = _StepCounters()
        self._numbers = count()
        self._thread: EngineThread[Sequence] = EngineThread(self._start, self._serve)
        self._thread.start()

    def submit(  # noqa: PLR0913  (all but two are named)
        self,
        prompt_ids: List[int],
        params: SamplingParams,
        *,
        deadline: float | None = None,
        stop: Callable[[int], bool] | None = None,
        matcher: Matcher | None = None,
        streamed: bool = True,
    ) -> Handle:
        """See `Engine.submit`."""
        del streamed  # (all tokens are delivered one by one)
        handle = Handle()
        sequence = Sequence(
            next(self._numbers), prompt_ids, params, handle, deadline=deadline, stop=stop, matcher=matcher
        )
        self._refuse_what_cant_be_computed(sequence)
        self._thread.submit(sequence, sequence.num_prompt_tokens)
        return handle

    @property
    def capacity(self) -> int:
        """See `Engine.capacity`."""
        return self._pool.capacity

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        counts, thread = self._counts, self._thread
        if thread.forked:
            return EngineStats(
                engine="batching", running=0, waiting=0, alive=False,
                sequences=thread.sequences, tokens_in=thread.tokens_in, tokens_out=counts.tokens_out,
            )  # fmt: skip
        with thread.lock:
            running = len(self._scheduler.running)
            return EngineStats(
                engine="batching",
                backend=self._backend.name,
                fallback_reason=self._backend.fallback_reason,
                instructions=self._backend.instructions,
                batch_invariant=self._batch_invariant,
                running=running,
                waiting=len(thread.open) - running,
                sequences=thread.sequences,
                tokens_in=thread.tokens_in,
                tokens_out=counts.tokens_out,
                alive=thread.alive,
                steps=counts.steps,
                rows=counts.rows,
                reused_tokens=self._scheduler.reused_tokens,
                num_preemptions=self._scheduler.num_preemptions,
                guessed_tokens=self._speculation.guessed,
                accepted_tokens=self._speculation.accepted,
                kv_blocks=self._pool.num_blocks,
                kv_blocks_free=self._pool.num_free_blocks,
                running_handles=frozenset(sequence.handle for sequence in self._scheduler.running),
            )

    def _refuse_what_cant_be_computed(self, sequence: Sequence) -> None:
        vocab = self._backend.vocab
        if not 0 <= min(sequence.ids) <= max(sequence.ids) < vocab:
            raise BadRequest(
                f"The prompt has a token id outside the model's vocabulary: it has the ids 0 to {vocab - 1}.",
                code="invalid_value",
            )
        capacity = self.capacity
        if sequence.most_tokens > capacity:
            raise BadRequest(
                f"The prompt has {sequence.num_prompt_tokens} tokens and {sequence.params.max_new_tokens} more are asked "
                f"for, but this server's memory for keys and values holds {capacity}. Send a shorter prompt, ask for "
                "fewer tokens, or have the operator raise LLAMA_KV_MEMORY.",
                code="context_exceeded",
            )

    # --- all below runs on the engine's thread --------------------------------------------------------

    def _start(self) -> None:
        self._thread.spin.adjust()
        self._backend = self._load()
        self._pool = BlockPool(self._backend.num_blocks - 1, self._backend.block_tokens, share=self._share)
        self._budget = PrefillBudget(
            largest=self._largest_chunk,
            smallest=min(self._backend.chunk_rows, self._largest_chunk),
            layers=self._backend.num_layers,
        )
        self._backend.forward([PROBE])  # a checkpoint that cannot be computed fails here
        self._batch_invariant = batch_invariance.establish(self._backend)
        self._speculation = Speculation(self._speculative_tokens if self._batch_invariant else 0)
        self._scheduler = Scheduler(
            self._pool,
            max_num_seqs=self._max_num_seqs,
            budget=self._budget,
            speculation=self._speculation,
            num_layers=self._backend.num_layers,
        )

    def _serve(self) -> None:
        try:
            while self._receive():
                self._step()
        except BaseException:
            _log.exception("the engine has stopped")
            raise
        finally:
            with self._thread.lock:
                for sequence in list(self._scheduler.sequences):
                    self._scheduler.remove(sequence)

    def _receive(self) -> bool:
        """Accept submitted sequences, and wait for one if there is nothing to do. Return False at the end."""
        busy = any(True for _ in self._scheduler.sequences)
        try:
            sequence = self._thread.inbox.get(block=not busy)
            while sequence is not None:
                self._scheduler.add(sequence)
                sequence = self._thread.inbox.get_nowait()
        except queue.Empty:
            return True
        return False

    def _step(self) -> None:
        self._thread.spin.adjust()
        for sequence, reason in self._scheduler.ended(time.monotonic()):
            self._thread.finish(sequence.handle, reason)
        step = self._scheduler.schedule()
        if not step.spans:
            if any(True for _ in self._scheduler.sequences):
                raise RuntimeError("the scheduler makes no progress")
            return
        with self._thread.lock:
            self._counts.steps += 1
            self._counts.rows += (
                step.generating
                + step.guessed
                + sum(span.count for span in step.spans if span.prefill and not span.partial)
            )
        spans = self._copied(step)
        started = time.perf_counter()
        whole = self._compute(spans)
        seconds = time.perf_counter() - started
        if whole:
            share = 1.0 if step.layers is None else step.layers / self._backend.num_layers
            self._budget.observe(seconds, generating=step.generating, prompt=step.prompt * share)
        if whole and not step.prompt:
            self._speculation.cost.observe(step.generating + step.guessed, seconds)

    def _copied(self, step: SchedulerOutput) -> list[ScheduledSpan]:
        """Do the step's copies; return the spans of the sequences whose copies succeeded."""
        failed: set[Sequence] = set()
        for sequence, blocks in step.swap_out:
            try:
                sequence.saved = self._backend.save(_behind(blocks))
            except Exception as error:
                self._fail(sequence, error)
        for sequence in step.swap_in:
            own = sequence.blocks[
                sequence.num_prompt_tokens // self._pool.block_tokens : self._pool.blocks_for(
                    sequence.num_swapped_tokens
                )
            ]
            try:
                self._backend.restore(_behind(own), sequence.saved)
                sequence.saved = None
            except Exception as error:
                failed.add(sequence)
                self._fail(sequence, error)
        return [span for span in step.spans if span.sequence not in failed]

    def _compute(self, spans: List[ScheduledSpan]) -> bool:
        """Run one forward pass; if it fails, bisect down to the sequence at fault.

        Returns:
            True if one pass was enough.
        """
        if not spans:
            return False
        try:
            logits = self._backend.forward([rows for span in spans for rows in _rows(span)])
        except BackendLostError:
            raise
        except Exception as error:
            self._scheduler.restart_chunk()
            if len(spans) > 1:
                spans = [replace(span, layers=None, partial=False) for span in spans]
                middle = len(spans) // 2
                self._compute(spans[:middle])
                self._compute(spans[middle:])
            else:
                self._fail(spans[0].sequence, error)
                self._probe()
            return False
        spans, logits = self._score(spans, logits)
        for span in spans:
            self._scheduler.advance(span)
            if span.only_reads:
                self._scheduler.remove(span.sequence)
                self._thread.finish(span.sequence.handle, "length")
        drawing = [span for span in spans if span.samples]
        if drawing:
            self._draw(drawing, logits)
        return True

    def _score(
        self, spans: List[ScheduledSpan], logits: "torch.Tensor"
    ) -> tuple[List[ScheduledSpan], "torch.Tensor"]:
        """Deliver the log-probabilities of prompts. Return the spans that go on, and the logits to draw from."""
        if not any(span.scored for span in spans):
            return spans, logits
        kept: list[ScheduledSpan] = []
        drawn_from: list[int] = []
        end = 0
        for span in spans:
            start, end = end, end + span.num_logits + len(span.guessed)
            try:
                _deliver_prompt(span, logits[start:end])
            except Exception as error:
                self._fail(span.sequence, error)
            else:
                kept.append(span)
                drawn_from += range(end - span.samples - len(span.guessed), end)
        return kept, logits[drawn_from]

    def _probe(self) -> None:
        """After a failure, check whether the backend still works for other input."""
        try:
            self._backend.forward([PROBE])
        except Exception as error:
            raise BackendLostError("the backend fails for every input") from error

    def _draw(self, spans: List[ScheduledSpan], logits: "torch.Tensor") -> None:
        """Draw the tokens of each span; if that fails, row by row, so that only those at fault fail."""
        rows = [row for span in spans for row in _sampled(span)]
        try:
            tokens: list[Token | Exception] = list(sampler.draw(logits, rows))
        except Exception:
            tokens = [_drawn(logits[i : i + 1], row) for i, row in enumerate(rows)]
        delivered: list[tuple[Handle, Token]] = []
        ended: list[tuple[Sequence, FinishReason | Exception]] = []
        for span in spans:
            own, tokens = tokens[: 1 + len(span.guessed)], tokens[1 + len(span.guessed) :]
            for token in self._accepted(span, own):
                end = token if isinstance(token, Exception) else self._append(span.sequence, token, delivered)
                if end is not None:
                    ended.append((span.sequence, end))
                    break
        publish(delivered)
        with self._thread.lock:
            self._counts.tokens_out += len(delivered)
        for sequence, end in ended:
            if isinstance(end, Exception):
                self._fail(sequence, end)
            else:
                self._scheduler.remove(sequence)
                self._thread.finish(sequence.handle, end)

    def _accepted(self, span: ScheduledSpan, drawn: List[Token | Exception]) -> List[Token | Exception]:
        """Return what was drawn after accepted guesses, whose keys and values count as computed."""
        if not span.guessed:
            return drawn
        ids = [-1 if isinstance(token, Exception) else token.id for token in drawn]
        right = accepted(span.guessed, ids)
        self._speculation.observe(span.sequence.guesses, len(span.guessed), right)
        span.sequence.num_computed_tokens += right
        return drawn[: right + 1]

    def _append(
        self, sequence: Sequence, token: Token, delivered: list[tuple[Handle, Token]]
    ) -> FinishReason | Exception | None:
        """Append a token; return why the sequence ends with it, or None."""
        sequence.ids.append(token.id)
        delivered.append((sequence.handle, token))
        try:
            reason = _reason(sequence, token)
            if reason is None and sequence.matcher is not None:
                sequence.matcher.advance(token.id)
        except Exception as error:
            return error
        return reason

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        _log.error("a sequence failed", exc_info=error)
        # Its blocks may hold NaN, and masked values still enter products: clear them before reuse.
        self._backend.clear(_behind(self._scheduler.remove(sequence, invalid=True)))
        self._thread.fail(sequence.handle, _reported(error))


def _reported(error: Exception) -> ServingError:
    if isinstance(error, ServingError):
        return error
    return InternalError("The model failed on this sequence. Try again; the log has the cause.")


def _behind(blocks: List[int]) -> list[int]:
    """Return the pool's blocks as the backend numbers them, after the reserved block."""
    return [block + 1 for block in blocks]


def _rows(span: ScheduledSpan) -> Iterator[Rows]:
    """Yield the rows of a span; each guess has rows of its own, as it will have if it is right."""
    sequence, end = span.sequence, span.start + span.count
    blocks = _behind(sequence.blocks)
    yield Rows(
        ids=sequence.ids[span.start : end],
        start=span.start,
        blocks=blocks,
        prefill=span.prefill,
        num_logits=span.num_logits,
        layers=span.layers,
    )
    for at, token in enumerate(span.guessed, end):
        yield Rows(ids=(token,), start=at, blocks=blocks, prefill=False, num_logits=1)


def _deliver_prompt(span: ScheduledSpan, logits: "torch.Tensor") -> None:
    """Deliver the log-probabilities of the prompt's tokens after those of a span, if they are requested."""
    sequence, number = span.sequence, span.sequence.params.prompt_logprobs
    if not span.scored or number is None:
        return
    delivered = sequence.handle.prompt
    first = max(span.start, len(delivered))  # a preempted prompt is computed again
    ids = sequence.ids[first + 1 : min(span.start + span.count + 1, sequence.num_prompt_tokens)]
    rows = first - span.start
    delivered += sampler.read(logits[rows : rows + len(ids)], ids, number)


def _sampled(span: ScheduledSpan) -> Iterator[SoFar]:
    """Yield the sequence as it is at each row that is drawn from."""
    yield span.sequence
    for number in range(1, len(span.guessed) + 1):
        yield Guessed(span.sequence, span.guessed[:number])


def _drawn(logits: "torch.Tensor", row: SoFar) -> Token | Exception:
    try:
        return sampler.draw(logits, [row])[0]
    except Exception as error:
        return error


def _reason(sequence: Sequence, token: Token) -> FinishReason | None:
    if token.id in sequence.params.stop_ids or (sequence.stop is not None and sequence.stop(token.id)):
        return "stop"
    return "length" if sequence.num_generated >= sequence.params.max_new_tokens else None
