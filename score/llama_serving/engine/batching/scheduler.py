"""Which rows go through the model next. It sees ids and counts, never tensors.

Every step, each generating sequence gets one row, and what the cost model allows beside them goes to prompts:
in every second step to the oldest first, in the others to the one with the least left, so that a short prompt
doesn't wait for a long one and a long one doesn't wait for ever.
"""

from bisect import insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from llama_serving.engine.batching.kv_cache import BlockPool
from llama_serving.engine.batching.prefill_budget import PrefillBudget
from llama_serving.engine.batching.sequence import Sequence
from llama_serving.sampling_params import FinishReason

LOOK_AHEAD: Final = 64
"""Waiting sequences that are looked at in one step."""


@dataclass(frozen=True, slots=True)
class ScheduledSpan:
    """Consecutive tokens of one sequence that go through the model in this step."""

    sequence: Sequence
    start: int
    count: int

    @property
    def prefill(self) -> bool:
        """They are a part of the prompt."""
        return self.start < self.sequence.num_prompt_tokens

    @property
    def samples(self) -> bool:
        """They end with the last known token: the next one is drawn after them."""
        return self.start + self.count == len(self.sequence.ids)


_Held = tuple[Sequence, tuple[int, ...]]
"""A sequence and the blocks that it had."""


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One forward pass, and the copies that come before it.

    Attributes:
        swap_out: sequences whose blocks must be copied out, with the blocks that they had.
        swap_in: sequences whose copies must be written back, to the blocks that they have now.
        spans: what goes through the model.
    """

    swap_out: tuple[_Held, ...]
    swap_in: tuple[Sequence, ...]
    spans: tuple[ScheduledSpan, ...]

    @property
    def generating(self) -> int:
        """Rows that generate."""
        return sum(not span.prefill for span in self.spans)

    @property
    def prompt(self) -> int:
        """Rows of prompts."""
        return sum(span.count for span in self.spans if span.prefill)


class Scheduler:
    """The queues of one engine, and its blocks.

    Args:
        pool: the blocks of keys and values.
        max_num_seqs: sequences that run at a time.
        budget: says how much of a prompt a step can carry.
    """

    def __init__(self, pool: BlockPool, *, max_num_seqs: int, budget: PrefillBudget) -> None:
        self._pool = pool
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
        """All that have not ended."""
        yield from self.running
        yield from self.preempted
        yield from self.waiting

    def add(self, sequence: Sequence) -> None:
        """Take a sequence in; it fits the pool, the caller has seen to that."""
        self.waiting.append(sequence)

    def ended(self, now: float) -> list[tuple[Sequence, FinishReason]]:
        """Those that were cancelled or are out of time; they are gone from here, and their blocks free."""
        gone = [(sequence, reason) for sequence in self.sequences if (reason := _reason(sequence, now))]
        for sequence, _ in gone:
            self.remove(sequence)
        return gone

    def remove(self, sequence: Sequence, *, invalid: bool = False) -> list[int]:
        """Forget a sequence, wherever it is, and free its blocks.

        Args:
            sequence: which.
            invalid: what it computed must not be found by others.

        Returns:
            The blocks that nobody has any more.
        """
        for queue in (self.running, self.preempted, self.waiting):
            if sequence in queue:
                queue.remove(sequence)
        sequence.saved = None
        return self._free(sequence, invalid=invalid)

    def schedule(self) -> SchedulerOutput:
        """The next step; without spans where there is nothing to do."""
        swap_out: list[_Held] = []
        decodes = self._decodes(swap_out)
        swap_in = [] if swap_out else self._swap_in()
        if not swap_out and not self.preempted:
            self._admit()
        return SchedulerOutput(tuple(swap_out), tuple(swap_in), (*decodes, *self._prefills(decodes)))

    def advance(self, span: ScheduledSpan) -> None:
        """The rows of a span went through: their keys and values are there."""
        sequence, end = span.sequence, span.start + span.count
        self._pool.mark_computed(sequence.blocks, span.start, end)
        sequence.num_computed_tokens = end
        if sequence.num_swapped_tokens and end == sequence.num_prompt_tokens:
            sequence.num_computed_tokens, sequence.num_swapped_tokens = sequence.num_swapped_tokens, 0

    def _prefills(self, decodes: list[ScheduledSpan]) -> Iterator[ScheduledSpan]:
        """As much of the prompts as the step can carry beside its generating rows."""
        self._oldest_first = not self._oldest_first
        prompts = [sequence for sequence in self.running if sequence.prefilling]
        if not self._oldest_first:
            prompts.sort(key=lambda sequence: sequence.pending)
        left = self._budget.prefill_rows(len(decodes))
        for sequence in prompts:
            rows = min(left, sequence.num_prompt_tokens - sequence.num_computed_tokens)
            if rows:
                yield ScheduledSpan(sequence, sequence.num_computed_tokens, rows)
            left -= rows

    def _decodes(self, swap_out: list[_Held]) -> list[ScheduledSpan]:
        """One row for each generating sequence; where blocks run out, the youngest make room."""
        spans = []
        for sequence in list(self.running):
            while sequence in self.running and not sequence.prefilling and not self._grown(sequence):
                swap_out += self._preempt(self.running[-1])
            if sequence in self.running and not sequence.prefilling:
                spans.append(ScheduledSpan(sequence, sequence.num_computed_tokens, 1))
        return spans

    def _grown(self, sequence: Sequence) -> bool:
        """Whether there is a place for the keys and values of its next token."""
        missing = self._pool.blocks_for(sequence.num_computed_tokens + 1) - len(sequence.blocks)
        if missing <= 0:
            return True
        new = self._pool.allocate(missing)
        sequence.blocks += new or []
        return new is not None

    def _preempt(self, sequence: Sequence) -> list[_Held]:
        """Take a sequence out of the batch: what it generated is to be copied out, its prompt can be computed again.

        One that has generated nothing waits again, as if it had not been begun.
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
        """Those set aside that there is room for again, the oldest first."""
        back: list[Sequence] = []
        while self.preempted and self._begin(self.preempted[0], self.preempted[0].num_swapped_tokens + 1):
            back.append(self.preempted.popleft())
        return back

    def _admit(self) -> None:
        """Take in waiting sequences in order; one whose beginning is being computed waits for that."""
        passed: list[Sequence] = []
        while self.waiting and len(passed) < LOOK_AHEAD:
            sequence = self.waiting[0]
            if self._pool.match(sequence.ids[: sequence.num_prompt_tokens]).coming:
                passed.append(self.waiting.popleft())
            elif self._begin(sequence, sequence.num_prompt_tokens):
                self.waiting.popleft()
            else:
                break
        self.waiting.extendleft(reversed(passed))

    def _begin(self, sequence: Sequence, tokens: int) -> bool:
        """Give a sequence blocks for so many tokens, what is there of its prompt among them, and let it run."""
        prompt = sequence.ids[: sequence.num_prompt_tokens]
        match = self._pool.match(prompt)
        blocks = self._room(tokens, match.blocks)
        if blocks is None:
            return False
        sequence.blocks = blocks
        sequence.num_computed_tokens = len(match.blocks) * self._pool.block_tokens
        self.reused_tokens += sequence.num_computed_tokens
        insort(self.running, sequence, key=lambda s: s.seq_id)
        self._pool.register_prefix(prompt, blocks)
        return True

    def _room(self, tokens: int, shared: tuple[int, ...] = ()) -> list[int] | None:
        """Blocks for one more sequence, if that leaves each running one a block to grow into."""
        number = self._pool.blocks_for(tokens) - len(shared)
        if len(self.running) >= self._max_num_seqs or number + len(self.running) > self._pool.num_free_blocks:
            return None
        return self._pool.allocate(number, shared)

    def _free(self, sequence: Sequence, *, invalid: bool = False) -> list[int]:
        freed = self._pool.free(sequence.blocks, invalid=invalid)
        sequence.blocks = []
        return freed


def _reason(sequence: Sequence, now: float) -> FinishReason | None:
    if sequence.handle.cancelled:
        return "cancelled"
    if sequence.deadline is not None and now >= sequence.deadline:
        return "deadline"
    return None
