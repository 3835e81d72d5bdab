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
from llama_serving.engine.batching.prefill_budget import CostModel
from llama_serving.engine.batching.sequence import Sequence
from llama_serving.sampling_params import FinishReason

LOOK_AHEAD: Final = 64
"""Waiting sequences that are looked at in one step."""


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one sequence that go through the model in this step."""

    sequence: Sequence
    start: int
    count: int

    @property
    def prefill(self) -> bool:
        """They are a part of the prompt."""
        return self.start < self.sequence.num_prompt

    @property
    def draws(self) -> bool:
        """They end with the last known token: the next one is drawn after them."""
        return self.start + self.count == len(self.sequence.ids)


_Held = tuple[Sequence, tuple[int, ...]]
"""A sequence and the blocks that it had."""


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass, and the copies that come before it.

    Attributes:
        save: sequences whose blocks must be copied out, with the blocks that they had.
        restore: sequences whose copies must be written back, to the blocks that they have now.
        spans: what goes through the model.
    """

    save: tuple[_Held, ...]
    restore: tuple[Sequence, ...]
    spans: tuple[Span, ...]

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
        cost: says how much of a prompt a step can carry.
    """

    def __init__(self, pool: BlockPool, *, max_num_seqs: int, cost: CostModel) -> None:
        self._pool = pool
        self._max_num_seqs = max_num_seqs
        self._cost = cost
        self.waiting: deque[Sequence] = deque()
        self.aside: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._oldest_first = False
        self.times_set_aside = 0
        self.reused_tokens = 0

    @property
    def sequences(self) -> Iterator[Sequence]:
        """All that have not ended."""
        yield from self.running
        yield from self.aside
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

    def remove(self, sequence: Sequence, *, spoilt: bool = False) -> list[int]:
        """Forget a sequence, wherever it is, and free its blocks.

        Args:
            sequence: which.
            spoilt: what it computed must not be found by others.

        Returns:
            The blocks that nobody has any more.
        """
        for queue in (self.running, self.aside, self.waiting):
            if sequence in queue:
                queue.remove(sequence)
        sequence.saved = None
        return self._free(sequence, spoilt=spoilt)

    def schedule(self) -> Step:
        """The next step; without spans where there is nothing to do."""
        save: list[_Held] = []
        decodes = self._decodes(save)
        restore = [] if save else self._restored()
        if not save and not self.aside:
            self._admit()
        return Step(tuple(save), tuple(restore), (*decodes, *self._prefills(decodes)))

    def advance(self, span: Span) -> None:
        """The rows of a span went through: their keys and values are there."""
        sequence, end = span.sequence, span.start + span.count
        self._pool.computed(sequence.blocks, span.start, end)
        sequence.computed = end
        if sequence.kept and end == sequence.num_prompt:
            sequence.computed, sequence.kept = sequence.kept, 0

    def _prefills(self, decodes: list[Span]) -> Iterator[Span]:
        """As much of the prompts as the step can carry beside its generating rows."""
        self._oldest_first = not self._oldest_first
        prompts = [sequence for sequence in self.running if sequence.prefilling]
        if not self._oldest_first:
            prompts.sort(key=lambda sequence: sequence.pending)
        left = self._cost.chunk(len(decodes))
        for sequence in prompts:
            rows = min(left, sequence.num_prompt - sequence.computed)
            if rows:
                yield Span(sequence, sequence.computed, rows)
            left -= rows

    def _decodes(self, save: list[_Held]) -> list[Span]:
        """One row for each generating sequence; where blocks run out, the youngest make room."""
        spans = []
        for sequence in list(self.running):
            while sequence in self.running and not sequence.prefilling and not self._grown(sequence):
                save += self._set_aside(self.running[-1])
            if sequence in self.running and not sequence.prefilling:
                spans.append(Span(sequence, sequence.computed, 1))
        return spans

    def _grown(self, sequence: Sequence) -> bool:
        """Whether there is a place for the keys and values of its next token."""
        missing = self._pool.blocks_for(sequence.computed + 1) - len(sequence.blocks)
        if missing <= 0:
            return True
        new = self._pool.take(missing)
        sequence.blocks += new or []
        return new is not None

    def _set_aside(self, sequence: Sequence) -> list[_Held]:
        """Take a sequence out of the batch: what it generated is to be copied out, its prompt can be computed again.

        One that has generated nothing waits again, as if it had not been begun.
        """
        self.running.remove(sequence)
        self.times_set_aside += 1
        kept = max(sequence.kept, sequence.computed)
        used = self._pool.blocks_for(kept)
        held = tuple(sequence.blocks[sequence.num_prompt // self._pool.block_tokens : used])
        self._free(sequence)
        sequence.computed = 0
        if kept <= sequence.num_prompt:
            self.waiting.appendleft(sequence)
            return []
        sequence.kept = kept
        insort(self.aside, sequence, key=lambda s: s.number)
        return [(sequence, held)]

    def _restored(self) -> list[Sequence]:
        """Those set aside that there is room for again, the oldest first."""
        back: list[Sequence] = []
        while self.aside and self._begin(self.aside[0], self.aside[0].kept + 1):
            back.append(self.aside.popleft())
        return back

    def _admit(self) -> None:
        """Take in waiting sequences in order; one whose beginning is being computed waits for that."""
        passed: list[Sequence] = []
        while self.waiting and len(passed) < LOOK_AHEAD:
            sequence = self.waiting[0]
            if self._pool.match(sequence.ids[: sequence.num_prompt]).coming:
                passed.append(self.waiting.popleft())
            elif self._begin(sequence, sequence.num_prompt):
                self.waiting.popleft()
            else:
                break
        self.waiting.extendleft(reversed(passed))

    def _begin(self, sequence: Sequence, tokens: int) -> bool:
        """Give a sequence blocks for so many tokens, what is there of its prompt among them, and let it run."""
        prompt = sequence.ids[: sequence.num_prompt]
        match = self._pool.match(prompt)
        blocks = self._room(tokens, match.blocks)
        if blocks is None:
            return False
        sequence.blocks = blocks
        sequence.computed = len(match.blocks) * self._pool.block_tokens
        self.reused_tokens += sequence.computed
        insort(self.running, sequence, key=lambda s: s.number)
        self._pool.announce(prompt, blocks)
        return True

    def _room(self, tokens: int, shared: tuple[int, ...] = ()) -> list[int] | None:
        """Blocks for one more sequence, if that leaves each running one a block to grow into."""
        number = self._pool.blocks_for(tokens) - len(shared)
        if len(self.running) >= self._max_num_seqs or number + len(self.running) > self._pool.free:
            return None
        return self._pool.take(number, shared)

    def _free(self, sequence: Sequence, *, spoilt: bool = False) -> list[int]:
        freed = self._pool.give_back(sequence.blocks, spoilt=spoilt)
        sequence.blocks = []
        return freed


def _reason(sequence: Sequence, now: float) -> FinishReason | None:
    if sequence.handle.cancelled:
        return "cancelled"
    if sequence.deadline is not None and now >= sequence.deadline:
        return "deadline"
    return None
