"""The scheduler without a model: order, prompt rows, preemption, and progress of every sequence."""

from collections.abc import Iterator
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_serving.engine.batching.kv_cache import BlockPool
from llama_serving.engine.batching.prefill_budget import REFRESH, SLICED, STALL, PrefillBudget
from llama_serving.engine.batching.scheduler import ScheduledSpan, Scheduler, SchedulerOutput
from llama_serving.engine.batching.sequence import Sequence
from llama_serving.engine.batching.speculation import Speculation
from llama_serving.engine.handle import Handle
from llama_serving.sampling_params import SamplingParams

LAYERS: Final = 5

numbers = iter(range(1_000_000))


class Fixed(PrefillBudget):
    """A fixed number of prompt rows beside generating ones, and of their layers, whatever they cost."""

    def __init__(self, rows: int, layers: int) -> None:
        super().__init__(largest=64, smallest=4)
        self.rows, self.layers = rows, layers

    def prefill_rows(self, generating: int) -> int:
        return self.rows if generating else self.largest

    def prefill_layers(self, generating: int, rows: int) -> int:
        return self.layers if generating else LAYERS


def sequence(prompt: int | list[int], new: int = 4, *, deadline: float | None = None) -> Sequence:
    number = next(numbers)
    ids = [number * 1000 + i for i in range(prompt)] if isinstance(prompt, int) else prompt
    return Sequence(number, ids, SamplingParams(max_new_tokens=new), Handle(), deadline=deadline)


def scheduler(
    blocks: int = 100, *, seqs: int = 8, rows: int = 8, guesses: int = 0, layers: int = LAYERS
) -> tuple[Scheduler, BlockPool]:
    pool = BlockPool(blocks, 4)
    scheduler = Scheduler(
        pool,
        max_num_seqs=seqs,
        budget=Fixed(rows, layers),
        speculation=Speculation(guesses),
        num_layers=LAYERS,
    )
    return scheduler, pool


def run(scheduler: Scheduler, step: SchedulerOutput) -> None:
    """Do what the engine does in a step, drawing token 7 for each span that samples."""
    for held, _ in step.swap_out:
        held.saved = held.ids[: held.num_swapped_tokens]
    for held in step.swap_in:
        assert held.saved == held.ids[: held.num_swapped_tokens], "it comes back as it went"
        held.saved = None
    for span in step.spans:
        scheduler.advance(span)
        if span.samples:
            span.sequence.ids.append(7)
            if span.sequence.num_generated >= span.sequence.params.max_new_tokens:
                scheduler.remove(span.sequence)


def steps(scheduler: Scheduler) -> Iterator[SchedulerOutput]:
    while step := scheduler.schedule():
        if not step.spans:
            return
        yield step
        run(scheduler, step)


def counts(step: SchedulerOutput) -> list[int]:
    return [span.count for span in step.spans]


class TestAScheduledSpan:
    def test_knows_whether_it_is_prompt_and_whether_it_samples(self) -> None:
        one = sequence(10)
        assert (ScheduledSpan(one, 0, 4).prefill, ScheduledSpan(one, 0, 4).samples) == (True, False)
        assert (ScheduledSpan(one, 4, 6).prefill, ScheduledSpan(one, 4, 6).samples) == (True, True)
        one.ids.append(7)
        assert (ScheduledSpan(one, 10, 1).prefill, ScheduledSpan(one, 10, 1).samples) == (False, True)


class TestPrompts:
    def test_alone_it_goes_in_the_largest_chunks(self) -> None:
        scheduler_, _ = scheduler()
        scheduler_.add(sequence(150, new=1))
        assert [counts(step) for step in steps(scheduler_)] == [[64], [64], [22]]

    def test_beside_generating_rows_it_goes_in_the_chunks_that_the_budget_allows(self) -> None:
        scheduler_, _ = scheduler(rows=8)
        scheduler_.add(sequence(4, new=30))
        first = scheduler_.schedule()
        run(scheduler_, first)
        scheduler_.add(sequence(20, new=1))
        assert [counts(step) for step in steps(scheduler_)][:4] == [[1, 8], [1, 8], [1, 4], [1]]

    def test_a_short_one_does_not_wait_for_a_long_one_nor_the_long_one_for_ever(self) -> None:
        scheduler_, _ = scheduler(blocks=400, rows=8)
        scheduler_.add(sequence(4, new=200))
        run(scheduler_, scheduler_.schedule())
        long, shorts = sequence(100, new=1), [sequence(8, new=1) for _ in range(5)]
        for one in (long, *shorts):
            scheduler_.add(one)
        prompts = [[span.sequence for span in step.spans if span.prefill][:1] for step in steps(scheduler_)][
            :12
        ]
        assert prompts[0] == [shorts[0]]
        assert prompts[1] == [long]
        assert [p for p in prompts if p == [long]] == [[long]] * 7, (
            "every second step, and all when it is alone"
        )
        assert [p[0] for p in prompts if p != [long]] == shorts


class TestPrefixes:
    def test_a_prompt_waits_for_the_one_that_computes_its_beginning_and_then_reuses_it(self) -> None:
        scheduler_, _ = scheduler()
        ids = list(range(21))
        for _ in range(3):
            scheduler_.add(sequence(ids, new=2))
        assert [counts(step) for step in steps(scheduler_)] == [[21], [1, 1, 1], [1, 1]]
        assert scheduler_.reused_tokens == 40

    def test_others_overtake_one_that_waits_for_its_beginning(self) -> None:
        scheduler_, _ = scheduler()
        ids = list(range(21))
        for prompt in (ids, ids, [900] * 6):
            scheduler_.add(sequence(prompt, new=1))
        assert [counts(step) for step in steps(scheduler_)] == [[21, 6], [1]]

    def test_one_whose_helper_is_cancelled_computes_for_itself(self) -> None:
        scheduler_, _ = scheduler()
        ids = list(range(100))
        first, second = sequence(ids), sequence(ids, new=1)
        scheduler_.add(first)
        scheduler_.add(second)
        run(scheduler_, scheduler_.schedule())
        first.handle.cancel()
        assert scheduler_.ended(0.0) == [(first, "cancelled")]
        assert [counts(step) for step in steps(scheduler_)] == [[36]], "it has the 64 tokens that were done"


class TestRoom:
    def test_only_so_many_run_at_a_time(self) -> None:
        scheduler_, _ = scheduler(seqs=2)
        for _ in range(5):
            scheduler_.add(sequence(4, new=3))
        assert max(len(step.spans) for step in steps(scheduler_)) == 2

    def test_one_that_does_not_fit_waits_and_those_behind_it_too(self) -> None:
        scheduler_, _ = scheduler(blocks=10)
        first, second, third = sequence(24, new=3), sequence(24, new=1), sequence(4, new=1)
        for one in (first, second, third):
            scheduler_.add(one)
        order = [{span.sequence for span in step.spans} for step in steps(scheduler_)]
        assert order == [{first}, {first}, {first}, {second, third}]

    def test_the_youngest_makes_room_and_comes_back(self) -> None:
        scheduler_, pool = scheduler(blocks=8)
        old, young = sequence(10, new=16), sequence(8, new=12)
        scheduler_.add(old)
        scheduler_.add(young)
        seen = list(steps(scheduler_))
        assert [held for step in seen for held, _ in step.swap_out] == [young]
        assert [held for step in seen for held in step.swap_in] == [young]
        assert scheduler_.num_preemptions == 1
        assert (old.num_generated, young.num_generated) == (16, 12)
        assert pool.num_free_blocks == 8

    def test_what_is_copied_out_is_what_was_generated(self) -> None:
        """The prompt's whole blocks stay in the tree, or are computed again."""
        scheduler_, _ = scheduler(blocks=8)
        scheduler_.add(sequence(10, new=16))
        young = sequence(9, new=12)
        scheduler_.add(young)
        saved = [
            (held, len(blocks), held.num_swapped_tokens)
            for step in steps(scheduler_)
            for held, blocks in step.swap_out
        ]
        assert saved
        for held, blocks, kept in saved:
            assert (held, kept > 9, blocks) == (young, True, -(-kept // 4) - 2)

    def test_one_that_has_generated_nothing_waits_again(self) -> None:
        scheduler_, pool = scheduler(blocks=12, rows=4)
        old, young = sequence(8, new=36), sequence(24, new=2)
        scheduler_.add(old)
        run(scheduler_, scheduler_.schedule())
        scheduler_.add(young)
        while young not in scheduler_.running:
            run(scheduler_, scheduler_.schedule())
        young_rows = [step for step in steps(scheduler_) if step.swap_out]
        assert not young_rows, "its prompt was done before the blocks ran out, or it had nothing to copy"
        assert (old.num_generated, young.num_generated) == (36, 2)
        assert pool.num_free_blocks == 12

    def test_prompts_that_are_alike_are_not_copied_for_each(self) -> None:
        scheduler_, pool = scheduler(blocks=16, seqs=6)
        ids = list(range(32))
        jobs = [sequence(ids, new=20) for _ in range(6)]
        for one in jobs:
            scheduler_.add(one)
        most = max((sum(len(blocks) for _, blocks in step.swap_out) for step in steps(scheduler_)), default=0)
        assert 0 < most <= 5 * 5
        assert {one.num_generated for one in jobs} == {20}
        assert pool.num_free_blocks == 16

    def test_no_new_sequence_starts_while_one_is_preempted(self) -> None:
        scheduler_, _ = scheduler(blocks=8)
        old, young, new = sequence(10, new=16), sequence(8, new=12), sequence(2, new=1)
        scheduler_.add(old)
        scheduler_.add(young)
        for step in steps(scheduler_):
            if step.swap_out:
                scheduler_.add(new)
            if scheduler_.preempted:
                assert new not in scheduler_.running
        assert new.num_generated == 1


class TestTheEnd:
    def test_a_cancelled_one_is_gone_before_the_next_step_wherever_it_is(self) -> None:
        scheduler_, pool = scheduler(blocks=8, seqs=2)
        running, also, waiting = sequence(8, new=9), sequence(8, new=9), sequence(8)
        for one in (running, also, waiting):
            scheduler_.add(one)
        run(scheduler_, scheduler_.schedule())
        running.handle.cancel()
        waiting.handle.cancel()
        assert scheduler_.ended(0.0) == [(running, "cancelled"), (waiting, "cancelled")]
        assert [span.sequence for span in scheduler_.schedule().spans] == [also]
        assert pool.num_free_blocks == 8 - len(also.blocks)

    def test_a_deadline_ends_one_that_waits_as_well(self) -> None:
        scheduler_, _ = scheduler(seqs=1)
        first, second = sequence(4, deadline=5.0), sequence(4, deadline=3.0)
        scheduler_.add(first)
        scheduler_.add(second)
        run(scheduler_, scheduler_.schedule())
        assert scheduler_.ended(2.9) == []
        assert scheduler_.ended(3.0) == [(second, "deadline")]
        assert scheduler_.ended(5.0) == [(first, "deadline")]
        assert scheduler_.schedule().spans == ()


class Machine:
    """Seconds of a step on a simulated machine."""

    def __init__(self, fixed: float, row: float, read: float = 0.0) -> None:
        self.fixed, self.row, self.read = fixed, row, read

    def step(self, model: PrefillBudget, generating: int, prompt: float, context: int = 0) -> float:
        """Run a step, record it in the budget, and return its duration in plain steps."""
        plain = self.fixed + self.row * generating
        seconds = plain + prompt * (self.row + self.read * context)
        model.observe(seconds, generating=generating, prompt=prompt)
        return seconds / plain


class TestThePrefillBudget:
    def model(self, machine: Machine, layers: int = 1) -> PrefillBudget:
        model = PrefillBudget(largest=512, smallest=16, layers=layers)
        for _ in range(20):
            machine.step(model, 8, 0)
        return model

    def test_without_generating_rows_a_chunk_is_the_largest(self) -> None:
        assert self.model(Machine(0.02, 0.001)).prefill_rows(0) == 512

    @pytest.mark.parametrize(
        "machine", [Machine(0.02, 0.0002), Machine(0.02, 0.0002, 1e-7), Machine(0.005, 0.0001)]
    )
    def test_a_long_prompt_is_read_within_the_stall_and_in_no_more_steps_than_that_takes(
        self, machine: Machine
    ) -> None:
        model, context, sizes = self.model(machine), 0, []
        while context < 8000:
            rows = model.prefill_rows(8)
            took = machine.step(model, 8, rows, context)
            assert took <= STALL * 1.35 or rows == 16
            context += rows
            sizes.append(rows)
        assert max(sizes) > 16
        assert max(sizes) == max(sizes[:8]), "it finds the size within a few steps"

    def test_where_few_rows_are_too_many_they_go_through_a_few_layers_in_each_step(self) -> None:
        """A machine on which 16 rows behind 8,000 tokens take 3 times as long as all that generates."""
        machine = Machine(0.005, 0.0001, 1.5e-7)
        model, context, layer, rows, sizes = self.model(machine, layers=12), 0, 0, 0, []
        while context < 8000:
            allowed = model.prefill_rows(8)
            if not allowed:
                machine.step(model, 8, 0)
                continue
            rows = rows if layer else allowed
            layers = min(model.prefill_layers(8, rows), 12 - layer)
            assert machine.step(model, 8, rows * layers / 12, context) <= STALL * 1.35
            layer = (layer + layers) % 12
            if not layer:
                context += rows
                sizes.append(rows)
        assert sizes[-1] == SLICED
        assert len(sizes) < 8000 / 30

    def test_it_makes_progress_by_a_layer_however_slow_they_are(self) -> None:
        machine = Machine(0.001, 100.0, 100.0)
        model = self.model(machine, layers=12)
        machine.step(model, 8, 16, 8000)
        assert model.prefill_layers(8, model.prefill_rows(8)) == 1
        assert model.prefill_layers(0, 512) == 12

    def test_a_quiet_stretch_is_not_forgotten(self) -> None:
        machine = Machine(0.02, 0.0005)
        model = self.model(machine)
        for _ in range(12):
            machine.step(model, 8, model.prefill_rows(8))
        before = model.prefill_rows(8)
        for _ in range(3000):
            machine.step(model, 8, 0)
        assert model.prefill_rows(8) == before

    def test_an_odd_step_does_not_count(self) -> None:
        machine = Machine(0.02, 0.0005)
        model = self.model(machine)
        for _ in range(12):
            machine.step(model, 8, model.prefill_rows(8))
        before = model.prefill_rows(8)
        for _ in range(3):
            model.observe(5.0, generating=8, prompt=0)
        assert model.prefill_rows(8) == before

    def test_it_makes_progress_however_slow_rows_are(self) -> None:
        machine = Machine(0.001, 1.0)
        model = self.model(machine)
        machine.step(model, 8, 16)
        assert model.prefill_rows(8) == 16

    def test_it_grows_by_no_more_than_twice(self) -> None:
        machine = Machine(0.02, 1e-9)
        model, sizes = self.model(machine), []
        for _ in range(7):
            sizes.append(model.prefill_rows(8))
            machine.step(model, 8, sizes[-1])
        assert sizes == [16, 32, 64, 128, 256, 512, 512]

    def test_while_prompts_keep_coming_a_plain_step_is_looked_at_again(self) -> None:
        """Many have joined since the last one, so that each step takes longer and can carry more."""
        few, many = Machine(0.01, 0.0005), Machine(0.2, 0.0005)
        model, sizes = self.model(few), []
        for _ in range(20 * REFRESH):
            sizes.append(model.prefill_rows(8))
            many.step(model, 8, sizes[-1])
        assert 0 in sizes[: REFRESH + 1]
        assert sizes.count(0) <= len(sizes) / REFRESH
        assert max(sizes[-REFRESH:]) == 512

    def test_knowing_nothing_it_begins_small(self) -> None:
        assert PrefillBudget(largest=512, smallest=16).prefill_rows(3) == 16


@settings(max_examples=150, deadline=None)
@given(
    jobs=st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 20), st.integers(0, 3), st.integers(0, 40)), max_size=14
    ),
    blocks=st.integers(13, 40),
    seqs=st.integers(1, 6),
    rows=st.integers(4, 16),
    layers=st.integers(1, LAYERS),
)
def test_whatever_comes_when_all_of_it_is_done_and_every_block_comes_back(
    jobs: list[tuple[int, int, int, int]], blocks: int, seqs: int, rows: int, layers: int
) -> None:
    """Random prompts (some alike), lengths, times of arrival and cancels, in little memory."""
    scheduler_, pool = scheduler(blocks, seqs=seqs, rows=rows, layers=layers)
    reached: dict[tuple[Sequence, int, int], int] = {}
    waiting = []
    for prompt, new, kind, arrival in jobs:
        one = sequence(list(range(prompt)) if kind else prompt, new)
        waiting.append((arrival, kind == 3, one))
    for now in range(3000):
        _arrive_and_leave(scheduler_, waiting, now)
        before = [(one, list(one.blocks)) for one in scheduler_.running]
        step = scheduler_.schedule()
        assert len(scheduler_.running) <= seqs
        for one in scheduler_.running:
            assert len(one.blocks) * 4 >= one.num_computed_tokens
        for held, blocks_ in step.swap_out:
            at = held.num_prompt_tokens // 4
            assert blocks_ == tuple(dict(before)[held][at : at + len(blocks_)])
        if not step.spans:
            assert not list(scheduler_.sequences), "no step without progress"
            if now > 43:
                break
        reached = _next_layers(step, reached)
        run(scheduler_, step)
    for _, cancelled, one in waiting:
        assert one.num_generated == one.params.max_new_tokens or cancelled
    assert pool.num_free_blocks == blocks


def _next_layers(
    step: SchedulerOutput, reached: dict[tuple[Sequence, int, int], int]
) -> dict[tuple[Sequence, int, int], int]:
    """Check that prompt rows go on with the layer before which they stopped, or begin anew; return where they stop now."""
    prompts = [span for span in step.spans if span.prefill]
    assert prompts == list(step.spans[len(step.spans) - len(prompts) :]), "they are last"
    assert len({span.layers for span in prompts}) <= 1
    for span in prompts:
        first, end = span.layers or (0, LAYERS)
        assert first in (0, reached.get((span.sequence, span.start, span.count), 0))
        assert span.partial == (end < LAYERS)
        reached = {**reached, (span.sequence, span.start, span.count): end % LAYERS}
    return reached


def _arrive_and_leave(scheduler: Scheduler, jobs: list[tuple[int, bool, Sequence]], now: int) -> None:
    for arrival, cancelled, one in jobs:
        if arrival == now:
            scheduler.add(one)
        if cancelled and now == arrival + 3:
            one.handle.cancel()
    scheduler.ended(0.0)
