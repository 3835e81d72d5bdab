"""Decides which rows go through the model next. It sees ids and counts, never tensors.

In each step every generating sequence has one row. The prefill budget allows prompt rows beside them. In every second step
these go to the oldest prompt first, in the others to the one with the fewest left, so that short prompts do not wait for
long ones and long ones do not starve.
"""

from bisect import insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from llama_serving.engine.batching.kv_cache import NO_MATCH, BlockPool, Match
from llama_serving.engine.batching.prefill_budget import PrefillBudget
from llama_serving.engine.batching.sequence import Sequence
from llama_serving.engine.batching.speculation import Speculation
from llama_serving.sampling_params import FinishReason

MOST_CONSTRAINED: Final = 4
"""Most guesses behind a constrained text: each takes a copy of its matcher."""
SCORED: Final = 64
"""Most rows of a prompt in one step, if their log-probabilities are requested: each has as many logits as the vocabulary."""
LOOK_AHEAD: Final = 64
"""Most waiting sequences to consider in one step."""


@dataclass(frozen=True, slots=True)
class ScheduledSpan:
    """Consecutive tokens of one sequence in this step.

    Attributes:
        guessed: tokens after them, each with a row of its own.
        layers: as `Rows.layers`.
        partial: later steps have their last layers.
    """

    sequence: Sequence
    start: int
    count: int
    guessed: tuple[int, ...] = ()
    layers: tuple[int, int] | None = None
    partial: bool = False

    @property
    def prefill(self) -> bool:
        """Whether they are prompt tokens."""
        return self.start < self.sequence.num_prompt_tokens

    @property
    def samples(self) -> bool:
        """Whether they end with the last known token, so that the next one is drawn."""
        return self._ends and self.sequence.params.max_new_tokens > 0

    @property
    def only_reads(self) -> bool:
        """Whether they end a prompt after which nothing is generated."""
        return self._ends and not self.sequence.params.max_new_tokens

    @property
    def scored(self) -> bool:
        """Whether log-probabilities of the tokens after them are requested."""
        return self.prefill and not self.partial and self.sequence.scoring

    @property
    def num_logits(self) -> int:
        """Number of its last tokens whose logits are needed."""
        return self.count if self.scored else int(self.samples)

    @property
    def _ends(self) -> bool:
        return not self.partial and self.start + self.count == len(self.sequence.ids)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Prompt rows that were computed up to a layer."""

    spans: tuple[ScheduledSpan, ...]
    layer: int = 0

    @property
    def rows(self) -> int:
        return sum(span.count for span in self.spans)


_Held = tuple[Sequence, tuple[int, ...]]
"""A sequence and the blocks that it had."""


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One forward pass, and the copies that come before it.

    Attributes:
        swap_out: preempted sequences, with the blocks to copy out.
        swap_in: resumed sequences, whose copies belong in the blocks that they have now.
        spans: the rows of the forward pass.
    """

    swap_out: tuple[_Held, ...]
    swap_in: tuple[Sequence, ...]
    spans: tuple[ScheduledSpan, ...]

    @property
    def generating(self) -> int:
        """Number of generating rows."""
        return sum(not span.prefill for span in self.spans)

    @property
    def prompt(self) -> int:
        """Number of prompt rows."""
        return sum(span.count for span in self.spans if span.prefill)

    @property
    def layers(self) -> int | None:
        """Number of layers that the prompt rows go through; None is all."""
        layers = self.spans[-1].layers if self.spans else None
        return None if layers is None else layers[1] - layers[0]

    @property
    def guessed(self) -> int:
        """Number of rows of guessed tokens."""
        return sum(len(span.guessed) for span in self.spans)


class Scheduler:
    """The queues of one engine, and the allocation of its blocks.

    Args:
        pool: the blocks of keys and values.
        max_num_seqs: sequences that run at a time.
        budget: of prompt rows in a step.
        speculation: guesses next tokens, in steps without prompt rows.
        num_layers: that prompt rows can be computed in a few of at a time; 1 if only in all.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_num_seqs: int,
        budget: PrefillBudget,
        speculation: Speculation,
        num_layers: int = 1,
    ) -> None:
        self._pool = pool
        self._num_layers = num_layers
        self._chunk: _Chunk | None = None
        self._speculation = speculation
        self._max_num_seqs = max_num_seqs
        self._budget = budget
        self.waiting: deque[Sequence] = deque()
        self.preempted: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._oldest_first = False
        self.num_preemptions = 0
        self.reused_tokens = 0

    @property
    def sequences(self) -> Iterator[Sequence]:
        """All sequences that have not ended."""
        yield from self.running
        yield from self.preempted
        yield from self.waiting

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; the caller has checked that it fits the pool."""
        self.waiting.append(sequence)

    def ended(self, now: float) -> list[tuple[Sequence, FinishReason]]:
        """Remove and return the sequences that were cancelled or are past their deadline."""
        gone = [
            (sequence, reason)
            for sequence in self.sequences
            if (reason := sequence.handle.early_end(sequence.deadline, now))
        ]
        for sequence, _ in gone:
            self.remove(sequence)
        return gone

    def remove(self, sequence: Sequence, *, invalid: bool = False) -> list[int]:
        """Remove a sequence from its queue and free its blocks.

        Args:
            sequence: to remove.
            invalid: its blocks must not be reused as a prefix.

        Returns:
            The blocks that are now unused and not cached.
        """
        for queue in (self.running, self.preempted, self.waiting):
            if sequence in queue:
                queue.remove(sequence)
        sequence.saved = None
        return self._free(sequence, invalid=invalid)

    def schedule(self) -> SchedulerOutput:
        """Return the next step, which has no spans if there is nothing to do."""
        swap_out: list[_Held] = []
        decodes = self._decodes(swap_out)
        swap_in = [] if swap_out else self._swap_in()
        if not swap_out and not self.preempted:
            self._admit()
        prefills = self._prefills(len(decodes))
        if not prefills:
            decodes = [self._with_guesses(span, len(decodes)) for span in decodes]
        return SchedulerOutput(tuple(swap_out), tuple(swap_in), (*decodes, *prefills))

    def advance(self, span: ScheduledSpan) -> None:
        """Record that a span was computed, unless it goes on in a later step."""
        if span.partial:
            return
        sequence, end = span.sequence, span.start + span.count
        self._pool.mark_computed(sequence.blocks, span.start, end)
        sequence.num_computed_tokens = end
        if sequence.num_swapped_tokens and end == sequence.num_prompt_tokens:
            sequence.num_computed_tokens, sequence.num_swapped_tokens = sequence.num_swapped_tokens, 0

    def restart_chunk(self) -> None:
        """Compute prompt rows that are between two layers from the first one again."""
        self._chunk = None

    def _prefills(self, generating: int) -> tuple[ScheduledSpan, ...]:
        """Return the prompt spans of this step: new ones within the budget, or those that go on with their next layers."""
        budget = self._budget.prefill_rows(generating)
        chunk = self._chunk
        if chunk is None or not all(self._goes_on(span) for span in chunk.spans):
            chunk = _Chunk(tuple(self._next_prefills(budget)))
        self._chunk = chunk if chunk.layer else None
        if not budget or not chunk.spans:
            return ()
        end = min(self._num_layers, chunk.layer + self._budget.prefill_layers(generating, chunk.rows))
        if not chunk.layer and end == self._num_layers:
            return chunk.spans
        partial = end < self._num_layers
        self._chunk = _Chunk(chunk.spans, end) if partial else None
        return tuple(replace(span, layers=(chunk.layer, end), partial=partial) for span in chunk.spans)

    def _goes_on(self, span: ScheduledSpan) -> bool:
        return span.sequence in self.running and span.sequence.num_computed_tokens == span.start

    def _next_prefills(self, left: int) -> Iterator[ScheduledSpan]:
        """Yield prompt spans of at most `left` rows."""
        self._oldest_first = not self._oldest_first
        prompts = [sequence for sequence in self.running if sequence.prefilling]
        if not self._oldest_first:
            prompts.sort(key=lambda sequence: sequence.pending)
        for sequence in prompts:
            most = SCORED if sequence.scoring else sequence.num_prompt_tokens
            rows = min(left, most, sequence.num_prompt_tokens - sequence.num_computed_tokens)
            if rows:
                yield ScheduledSpan(sequence, sequence.num_computed_tokens, rows)
            left -= rows

    def _decodes(self, swap_out: list[_Held]) -> list[ScheduledSpan]:
        """Return one span for each generating sequence; if blocks run out, preempt the youngest."""
        spans = []
        for sequence in list(self.running):
            while sequence in self.running and not sequence.prefilling and not self._grown(sequence):
                swap_out += self._preempt(self.running[-1])
            if sequence in self.running and not sequence.prefilling:
                spans.append(ScheduledSpan(sequence, sequence.num_computed_tokens, 1))
        return spans

    def _grown(self, sequence: Sequence) -> bool:
        """Return whether the sequence has a block for its next token, allocating one if needed."""
        missing = self._pool.blocks_for(sequence.num_computed_tokens + 1) - len(sequence.blocks)
        if missing <= 0:
            return True
        new = self._pool.allocate(missing)
        sequence.blocks += new or []
        return new is not None

    def _with_guesses(self, span: ScheduledSpan, generating: int) -> ScheduledSpan:
        """Return the span with guessed tokens after it, as many as pay and have blocks."""
        sequence, known = span.sequence, span.start + span.count
        left = sequence.params.max_new_tokens - sequence.num_generated - 1
        if sequence.matcher is not None:
            left = min(left, MOST_CONSTRAINED)
        guessed = self._speculation.guess(sequence.guesses, generating, left)
        if not guessed:
            return span
        missing = self._pool.blocks_for(known + len(guessed)) - len(sequence.blocks)
        if missing > 0 and missing + len(self.running) <= self._pool.num_free_blocks:
            sequence.blocks += self._pool.allocate(missing) or []
        return replace(span, guessed=guessed[: len(sequence.blocks) * self._pool.block_tokens - known])

    def _preempt(self, sequence: Sequence) -> list[_Held]:
        """Take a sequence out of the batch and return its generated blocks, to be copied out; its prompt is recomputed.

        A sequence that has generated nothing waits again as if it were new.
        """
        self.running.remove(sequence)
        self.num_preemptions += 1
        kept = max(sequence.num_swapped_tokens, sequence.num_computed_tokens)
        used = self._pool.blocks_for(kept)
        held = tuple(sequence.blocks[sequence.num_prompt_tokens // self._pool.block_tokens : used])
        self._free(sequence)
        sequence.num_computed_tokens = 0
        if kept <= sequence.num_prompt_tokens:
            self.waiting.appendleft(sequence)
            return []
        sequence.num_swapped_tokens = kept
        insort(self.preempted, sequence, key=lambda s: s.seq_id)
        return [(sequence, held)]

    def _swap_in(self) -> list[Sequence]:
        """Resume preempted sequences that fit again, the oldest first."""
        back: list[Sequence] = []
        while self.preempted and self._begin(self.preempted[0], self.preempted[0].num_swapped_tokens + 1):
            back.append(self.preempted.popleft())
        return back

    def _admit(self) -> None:
        """Admit waiting sequences in order; one whose prefix is being computed waits for that."""
        passed: list[Sequence] = []
        while self.waiting and len(passed) < LOOK_AHEAD:
            sequence = self.waiting[0]
            if self._match(sequence).coming:
                passed.append(self.waiting.popleft())
            elif self._begin(sequence, sequence.num_prompt_tokens):
                self.waiting.popleft()
            else:
                break
        self.waiting.extendleft(reversed(passed))

    def _begin(self, sequence: Sequence, tokens: int) -> bool:
        """Start a sequence with blocks for `tokens` tokens, reusing cached ones; return whether they fit."""
        match = self._match(sequence)
        blocks = self._room(tokens, match.blocks)
        if blocks is None:
            return False
        sequence.blocks = blocks
        sequence.num_computed_tokens = len(match.blocks) * self._pool.block_tokens
        self.reused_tokens += sequence.num_computed_tokens
        insort(self.running, sequence, key=lambda s: s.seq_id)
        self._pool.register_prefix(sequence.ids[: sequence.num_prompt_tokens], blocks)
        return True

    def _match(self, sequence: Sequence) -> Match:
        """Return the cached prefix of a prompt; none if every token must be computed."""
        return NO_MATCH if sequence.scoring else self._pool.match(sequence.ids[: sequence.num_prompt_tokens])

    def _room(self, tokens: int, shared: tuple[int, ...] = ()) -> list[int] | None:
        """Allocate blocks for one more sequence, if that leaves one spare block for each running one."""
        number = self._pool.blocks_for(tokens) - len(shared)
        if len(self.running) >= self._max_num_seqs or number + len(self.running) > self._pool.num_free_blocks:
            return None
        return self._pool.allocate(number, shared)

    def _free(self, sequence: Sequence, *, invalid: bool = False) -> list[int]:
        freed = self._pool.free(sequence.blocks, invalid=invalid)
        sequence.blocks = []
        return freed
