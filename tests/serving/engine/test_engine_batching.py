"""The batching engine: the reference's tokens whatever else runs, and the life of sequences and of the engine.

Nothing here measures time. Steps are counted; where an order matters, a hook on the engine's thread makes it.
"""

import asyncio
import gc
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from llama_serving.engine.batching import sampler
from llama_serving.engine.batching.backends.base import Backend, BackendLostError, Rows
from llama_serving.engine.batching.engine import BatchingEngine
from llama_serving.engine.batching.factory import start
from llama_serving.engine.batching.prefill_budget import PrefillBudget
from llama_serving.engine.handle import Handle, Token
from llama_serving.engine.pipeline import PipelineEngine
from llama_serving.errors import BadRequest, InternalError, SetupError, Unavailable
from llama_serving.sampling_params import SamplingParams
from tests.support import backends, llamas
from tests.support.draws import PATIENCE_S
from tests.support.llamas import SHAPES
from tests.support.rows import spoil

GREEDY: Final = SamplingParams(max_new_tokens=12)
BLOCKS: Final = 400


@dataclass(frozen=True)
class Model:
    """A checkpoint, and the backend that computes it."""

    folder: Path
    backend: str = "portable"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llamas.write(SHAPES["grouped heads"], tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module", params=["portable", "native"])
def model(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    if request.param == "portable":
        return Model(folder)
    wide = llamas.write(SHAPES["heads of 64"], tmp_path_factory.mktemp("wide"), dtype=torch.bfloat16)
    return Model(wide, "native")


class Watched:
    """A backend with a hook before each pass, and a record of its rows."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.before: Callable[[Sequence[Rows]], None] = lambda batch: None
        self.passes: list[list[int]] = []
        self.threads: set[int] = set()

    def forward(self, batch: Sequence[Rows]) -> torch.Tensor:
        self.threads.add(threading.get_ident())
        self.before(batch)
        if batch[0].blocks[0]:  # not the engine's own probe
            self.passes.append([len(rows.ids) for rows in batch])
        return self.inner.forward(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Started:
    """An engine with a watched backend and a cache of `blocks` blocks of 16 tokens."""

    def __init__(self, model: Model, *, blocks: int = BLOCKS, **options: Any) -> None:
        self.blocks = blocks // 2 if model.backend.startswith("native") else blocks

        def load() -> Watched:
            self.backend = Watched(backends.make(model.backend, model.folder, self.blocks + 1))
            return self.backend

        self.engine = BatchingEngine(load, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def ids(self, prompt: Sequence[int], params: SamplingParams = GREEDY) -> list[int]:
        return [token.id for token in self.engine.submit(prompt, params)]


@pytest.fixture
def own(model: Model) -> Iterator[Started]:
    with Started(model) as started:
        yield started


def prompt(seed: int, count: int = 20) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 300) for _ in range(count)]


def ids_of(handle: Handle) -> list[int]:
    return [token.id for token in handle]


class Gate:
    """Holds the engine's thread before one pass until the test releases it."""

    def __init__(self, backend: Watched, passes: int = 0) -> None:
        self.reached, self._go_on = threading.Event(), threading.Event()
        self._left = passes
        backend.before = self._wait

    def _wait(self, _: Sequence[Rows]) -> None:
        if self._left == 0:
            self.reached.set()
            assert self._go_on.wait(PATIENCE_S)
        self._left -= 1

    def open(self) -> None:
        self._go_on.set()


class TestTheTokensAreTheReferences:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_greedy_ids_of_every_shape(self, shape: str, tmp_path: Path) -> None:
        llamas.write(SHAPES[shape], tmp_path)
        model = llamas.reference(tmp_path)
        with Started(Model(tmp_path)) as started:
            handles = [(p, started.engine.submit(p, replace(GREEDY, max_new_tokens=24)))
                       for p in (prompt(seed, count) for seed, count in enumerate((1, 2, 15, 16, 17, 33, 70, 200)))]  # fmt: skip
            for given_, handle in handles:
                assert ids_of(handle) == llamas.generate(model, given_, 24)

    def test_sampled_ids_and_logprobs_are_those_of_the_pipeline_engine(self, folder: Path) -> None:
        choices = [
            SamplingParams(
                max_new_tokens=16, temperature=t, top_p=p, top_k=k, repetition_penalty=r, logprobs=n, seed=s
            )
            for s, (t, p, k, r, n) in enumerate(
                [
                    (0.2, 0.9, 0, 1.0, None),
                    (1.0, 1.0, 0, 1.0, 2),
                    (1.0, 0.5, 0, 1.2, None),
                    (1.5, 1.0, 7, 1.0, 5),
                    (0, 1, 0, 1.4, 1),
                ]
            )
        ]
        other = PipelineEngine(*_tokenized(folder), dtype="float32")
        try:
            with Started(Model(folder)) as started:
                handles = [started.engine.submit(prompt(s), params) for s, params in enumerate(choices)]
                for seed, (params, handle) in enumerate(zip(choices, handles, strict=True)):
                    ours, theirs = list(handle), list(other.submit(prompt(seed), params))
                    assert [t.id for t in ours] == [t.id for t in theirs]
                    assert [t.logprob for t in ours] == pytest.approx([t.logprob for t in theirs], abs=1e-4)
        finally:
            other.close()

    @pytest.mark.parametrize("backend", ["portable bf16", *(f"native {name}" for name in backends.SETS)])
    def test_in_bf16_a_first_difference_is_a_near_tie(self, backend: str, tmp_path: Path) -> None:
        """Only where the two best logits of the reference lie closer than ε."""
        epsilon = 0.15
        llamas.write(SHAPES["heads of 64"], tmp_path, dtype=torch.bfloat16)
        model = llamas.reference(tmp_path, torch.bfloat16)
        with Started(Model(tmp_path, backend)) as started:
            texts = [
                (p, started.engine.submit(p, replace(GREEDY, max_new_tokens=20)))
                for p in map(prompt, range(16))
            ]
            for given_, handle in texts:
                ours, theirs = ids_of(handle), llamas.generate(model, given_, 20)
                differing = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), None)
                if differing is not None:
                    with torch.inference_mode():
                        logits = model(torch.tensor([given_ + theirs[:differing]])).logits[0, -1].float()
                    assert logits[theirs[differing]] - logits[ours[differing]] < epsilon

    @settings(max_examples=4)
    @given(data=st.data())
    def test_whatever_the_schedule_each_sequence_gets_what_it_gets_alone(
        self, model: Model, data: st.DataObject
    ) -> None:
        """Random joins and cancels of 32 requests, tiny memory, chunks and prefixes, greedy and seeded."""
        rng = random.Random(data.draw(st.integers(0, 10_000)))
        chunk, blocks = data.draw(st.sampled_from((16, 48, 512))), data.draw(st.sampled_from((9, 14, 60)))
        share, seqs = data.draw(st.booleans()), data.draw(st.sampled_from((2, 8, 32)))
        slices = data.draw(st.booleans())
        beginning = prompt(99, 60)
        jobs = []
        for number in range(32):
            given_ = beginning[: rng.choice((0, 16, 40, 60))] + prompt(number, rng.randint(1, 30))
            params = SamplingParams(
                max_new_tokens=rng.randint(1, 128 - 90),  # (all fit into the fewest blocks)
                temperature=rng.choice((0, 0, 1.0)),
                seed=number,
                top_p=rng.choice((1, 0.9)),
            )
            jobs.append((given_, params))
        expected = _alone(model, jobs)
        with (
            pytest.MonkeyPatch.context() as patch,
            Started(
                model, blocks=blocks, share_prefixes=share, largest_chunk=chunk, max_num_seqs=seqs
            ) as started,
        ):
            if slices:
                patch.setattr(PrefillBudget, "prefill_layers", lambda *_: 1)
            handles = []
            for number, (given_, params) in enumerate(jobs):
                handles.append(started.engine.submit(given_, params))
                if number % 6 == 5:
                    handles[rng.randrange(len(handles))].cancel()
                if rng.random() < 0.2:
                    next(iter(handles[rng.randrange(len(handles))]), None)
            for handle, whole in zip(handles, expected, strict=True):
                found = ids_of(handle)
                if handle.finish_reason == "length":
                    assert whole[len(whole) - len(found) :] == found, (
                        "its first tokens may have been looked at before"
                    )
                else:
                    assert handle.finish_reason == "cancelled"
            stats = started.engine.stats()
            assert (stats.running, stats.waiting, stats.kv_blocks_free) == (0, 0, started.blocks)

    def test_a_preempted_one_goes_on_as_if_nothing_had_been(self, model: Model) -> None:
        jobs = [(prompt(n, 20), SamplingParams(max_new_tokens=60, temperature=n % 2, seed=n)) for n in range(4)]
        expected = _alone(model, jobs)
        with Started(model, blocks=14, max_num_seqs=4) as started:
            handles = [started.engine.submit(*job) for job in jobs]
            assert [ids_of(handle) for handle in handles] == expected
            assert started.engine.stats().num_preemptions > 0


class TestCounts:
    def test_a_pass_serves_all_that_generate(self, own: Started) -> None:
        gate = Gate(own.backend)
        handles = [own.engine.submit(prompt(n, 5), GREEDY) for n in range(8)]
        assert gate.reached.wait(PATIENCE_S)
        gate.open()
        for handle in handles:
            assert len(ids_of(handle)) == 12
        assert len(own.backend.passes) <= 13, "12 tokens each, and one pass for the first to come"
        assert own.backend.passes[-1] == [1] * 8

    def test_a_beginning_is_computed_once(self, own: Started) -> None:
        given_ = prompt(1, 100)
        handles = [own.engine.submit(given_, replace(GREEDY, temperature=1.0, index=n)) for n in range(5)]
        for handle in handles:
            ids_of(handle)
        stats = own.engine.stats()
        assert stats.reused_tokens == 4 * 96
        assert stats.rows == 100 + 4 * 4 + 5 * 11
        own.ids([*given_, 7, 8])
        assert own.engine.stats().reused_tokens == 5 * 96

    def test_a_long_prompt_goes_in_parts_while_others_generate(self, model: Model) -> None:
        with Started(model, largest_chunk=64) as started:
            handle = started.engine.submit(prompt(1, 4), replace(GREEDY, max_new_tokens=400))
            tokens = iter(handle)
            next(tokens)
            long = started.engine.submit(prompt(2, 900), replace(GREEDY, max_new_tokens=1))
            ids_of(long)
            handle.cancel()
            parts = [rows for rows in started.backend.passes if max(rows) > 1]
            assert sum(sum(rows) - rows.count(1) for rows in parts[1:]) >= 880
            assert all(rows[0] == 1 for rows in parts[1:]), "the generating row was in every pass"
            assert max(map(sum, parts[1:])) <= 65

    def test_a_cancelled_one_is_gone_in_the_next_step(self, own: Started) -> None:
        gate = Gate(own.backend, passes=3)
        gone, stays = (own.engine.submit(prompt(n, 4), replace(GREEDY, max_new_tokens=30)) for n in range(2))
        assert gate.reached.wait(PATIENCE_S)
        before = len(own.backend.passes)
        gone.cancel()
        gate.open()
        assert len(ids_of(stays)) == 30
        assert own.backend.passes[before + 1 :] == [[1]] * len(own.backend.passes[before + 1 :])
        assert gone.finish_reason == "cancelled"

    def test_a_stop_is_asked_with_every_token_and_ends_the_sequence_at_once(self, own: Started) -> None:
        free = own.ids(prompt(3), replace(GREEDY, max_new_tokens=20))
        asked: list[int] = []

        def stop(token: int) -> bool:
            asked.append(token)
            return len(asked) == 5

        handle = own.engine.submit(prompt(3), replace(GREEDY, max_new_tokens=20), stop=stop)
        assert ids_of(handle) == free[:5] == asked
        assert handle.finish_reason == "stop"

    def test_all_of_torch_runs_on_the_engines_thread(self, own: Started) -> None:
        class Refuses(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                raise AssertionError(f"{func} was called outside the engine's thread")

        with Refuses():
            with pytest.raises(AssertionError):
                torch.zeros(1)
            handle = own.engine.submit(
                prompt(1), replace(GREEDY, temperature=1.0, logprobs=2, frequency_penalty=0.1)
            )
            assert len(ids_of(handle)) == 12
            own.engine.submit(prompt(2), GREEDY).cancel()
            own.engine.stats()
        assert len(own.backend.threads) == 1
        assert threading.get_ident() not in own.backend.threads


class TestFaults:
    def test_a_fault_in_the_sampler_fails_one_sequence(
        self, own: Started, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        draw = sampler.draw

        def broken(logits: torch.Tensor, sequences: Any) -> list[Token]:
            if any(one.params.seed == 13 and one.num_generated == 3 for one in sequences):
                raise ValueError("a fault")
            return draw(logits, sequences)

        monkeypatch.setattr(sampler, "draw", broken)
        expected = [own.ids(prompt(n)) for n in (1, 2)]
        handles = [own.engine.submit(prompt(n), replace(GREEDY, seed=s)) for n, s in ((1, 0), (3, 13), (2, 0))]
        assert [ids_of(handles[0]), ids_of(handles[2])] == expected
        with pytest.raises(InternalError):
            ids_of(handles[1])
        assert own.engine.stats().alive

    def test_logits_that_are_not_finite_fail_one_sequence(self, own: Started) -> None:
        forward = own.backend.forward

        def poisoned(batch: Sequence[Rows]) -> torch.Tensor:
            logits = forward(batch).clone()
            wanted = [rows for rows in batch if rows.num_logits]
            for row, rows in zip(logits, wanted, strict=True):
                if (
                    rows.start > 24
                    and rows.ids
                    and len(rows.blocks) > 1
                    and rows.blocks[0] == poisoned_block[0]
                ):
                    row.fill_(float("nan"))
            return logits

        poisoned_block = [-1]
        expected = own.ids(prompt(1))
        own.backend.forward = poisoned  # type: ignore[method-assign]
        good = own.engine.submit(prompt(1), GREEDY)
        assert ids_of(good) == expected

        def aim(batch: Sequence[Rows]) -> torch.Tensor:
            poisoned_block[0] = next(
                (rows.blocks[0] for rows in batch if rows.prefill and rows.ids[0] == 299), poisoned_block[0]
            )
            return poisoned(batch)

        own.backend.forward = aim  # type: ignore[method-assign]
        bad = own.engine.submit([299, *prompt(2, 24)], GREEDY)
        good = own.engine.submit(prompt(1), GREEDY)
        with pytest.raises(InternalError):
            ids_of(bad)
        assert ids_of(good) == expected

    def test_a_fault_between_two_layers_fails_the_sequence_at_fault_alone(
        self, own: Started, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Three prompts go through the model a layer at a time, beside one that generates."""
        if own.engine.stats().backend == "portable":
            pytest.skip("this backend computes all layers of a prompt at once")
        prompts = [prompt(n, 20) for n in range(3)]
        expected = [own.ids(p) for p in prompts]
        monkeypatch.setattr(PrefillBudget, "prefill_rows", lambda *_: 64)
        monkeypatch.setattr(PrefillBudget, "prefill_layers", lambda *_: 1)
        passes: list[tuple[int, int] | None] = []

        def before(batch: Sequence[Rows]) -> None:
            passes.append(batch[-1].layers)
            if any(rows.prefill and rows.ids[0] == 298 and rows.layers != (0, 1) for rows in batch):
                raise ValueError("a fault")

        other = own.engine.submit(prompt(9, 6), replace(GREEDY, max_new_tokens=200))
        next(iter(other))
        own.backend.before = before
        handles = [own.engine.submit(p, GREEDY) for p in (prompts[0], [298, *prompts[1]], prompts[2])]
        with pytest.raises(InternalError):
            ids_of(handles[1])
        assert [ids_of(handles[0]), ids_of(handles[2])] == [expected[0], expected[2]]
        other.cancel()
        assert (0, 1) in passes
        assert (1, 2) in passes

    @pytest.mark.parametrize("at_fault", [0, 3, 6])
    def test_a_fault_in_the_forward_fails_the_sequence_at_fault_alone(
        self, own: Started, at_fault: int
    ) -> None:
        prompts = [prompt(n, 6) for n in range(7)]
        expected = [own.ids(p) for p in prompts]
        prompts[at_fault] = [298, *prompts[at_fault]]

        def fault(batch: Sequence[Rows]) -> None:
            if any(rows.prefill and rows.ids[0] == 298 for rows in batch):
                raise RuntimeError("a fault")

        gate = Gate(own.backend)
        first = own.engine.submit(prompt(50), GREEDY)
        assert gate.reached.wait(PATIENCE_S)
        handles = [own.engine.submit(p, GREEDY) for p in prompts]
        own.backend.before = fault
        gate.open()
        ids_of(first)
        for number, handle in enumerate(handles):
            if number == at_fault:
                with pytest.raises(InternalError):
                    ids_of(handle)
            else:
                assert ids_of(handle) == expected[number]
        assert own.engine.stats().alive

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    @pytest.mark.parametrize("error", [BackendLostError("gone"), SystemExit("gone")])
    def test_what_cant_go_on_is_seen_to_be_dead(self, own: Started, error: BaseException) -> None:
        def lost(_: Sequence[Rows]) -> None:
            raise error

        gate = Gate(own.backend)
        handles = [own.engine.submit(prompt(n), GREEDY) for n in range(3)]
        assert gate.reached.wait(PATIENCE_S)
        waiting = own.engine.submit(prompt(5), GREEDY)
        own.backend.before = lost
        gate.open()
        for handle in (*handles, waiting):
            with pytest.raises(Unavailable, match="has stopped"):
                ids_of(handle)
        own.engine._thread._thread.join(PATIENCE_S)
        assert not own.engine.stats().alive
        with pytest.raises(Unavailable):
            own.engine.submit(prompt(1), GREEDY)
        own.engine.drain()

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_a_backend_that_fails_everything_is_given_up(self, own: Started) -> None:
        def fault(_: Sequence[Rows]) -> None:
            raise RuntimeError("a fault")

        own.backend.before = fault
        with pytest.raises(InternalError):
            own.ids(prompt(1))
        own.engine._thread._thread.join(PATIENCE_S)
        assert not own.engine.stats().alive
        with pytest.raises(Unavailable):
            own.ids(prompt(9))

    def test_what_a_failed_sequence_left_behind_poisons_no_other(self, model: Model) -> None:
        """Its keys and values may be NaN, which adding a mask does not remove."""
        with Started(model, blocks=6, max_num_seqs=1) as started:
            expected = started.ids(prompt(1, 3))
            forward = started.backend.forward

            def poisoned(batch: Sequence[Rows]) -> torch.Tensor:
                logits = forward(batch)
                if len(batch[0].ids) > 60:
                    spoil(started.backend, batch[0].blocks)
                    return logits * float("nan")
                return logits

            started.backend.forward = poisoned  # type: ignore[method-assign]
            with pytest.raises(InternalError):
                started.ids(prompt(2, 80))
            assert started.ids(prompt(1, 3)) == expected
            with pytest.raises(InternalError):
                started.ids(prompt(2, 80))
            assert started.engine.stats().reused_tokens == 0, "nothing of it is found again"

    def test_a_preempted_one_before_it_had_a_row_gets_done(self, model: Model) -> None:
        """The scheduler serves the oldest prompt and the shortest: a third one may wait in the batch."""
        jobs = [(prompt(n, 16), replace(GREEDY, max_new_tokens=120)) for n in range(4)]
        jobs += [(prompt(50 + n, 160), replace(GREEDY, max_new_tokens=3)) for n in range(3)]
        expected = _alone(model, jobs)
        with Started(model, blocks=44, largest_chunk=1, share_prefixes=False) as started:
            handles = [started.engine.submit(*job) for job in jobs]
            assert [ids_of(handle) for handle in handles] == expected
            assert started.engine.stats().num_preemptions > 0

    @pytest.mark.parametrize("what", ["save", "restore"])
    def test_a_copy_that_fails_fails_its_own_sequence(self, model: Model, what: str) -> None:
        jobs = [(prompt(n, 20), SamplingParams(max_new_tokens=60)) for n in range(4)]
        expected = _alone(model, jobs)
        with Started(model, blocks=14, max_num_seqs=4) as started:

            def fault(*_: object) -> None:
                raise MemoryError("a fault")

            setattr(started.backend, what, fault)
            handles = [started.engine.submit(*job) for job in jobs]
            failed = 0
            for handle, whole in zip(handles, expected, strict=True):
                try:
                    assert ids_of(handle) == whole
                except InternalError:
                    failed += 1
            assert 0 < failed < 4
            assert started.engine.stats().kv_blocks_free == started.blocks
            assert started.ids(*jobs[0]) == expected[0]

    def test_an_id_outside_the_vocabulary_is_refused(self, own: Started) -> None:
        for ids in ([5, 300], [-1]):
            with pytest.raises(BadRequest, match="0 to 299"):
                own.engine.submit(ids, GREEDY)
        assert own.engine.stats().alive

    def test_a_stop_that_fails_fails_its_own_sequence(self, own: Started) -> None:
        expected = own.ids(prompt(1))
        bad = own.engine.submit(prompt(2), GREEDY, stop=lambda token: bool(1 / 0))
        good = own.engine.submit(prompt(1), GREEDY)
        with pytest.raises(InternalError):
            ids_of(bad)
        assert ids_of(good) == expected

    def test_what_can_never_fit_is_refused_before_it_is_taken_in(self, model: Model) -> None:
        with Started(model, blocks=4) as started:
            running = started.engine.submit(prompt(1, 10), replace(GREEDY, max_new_tokens=40))
            with pytest.raises(BadRequest, match=r"60 tokens and 6 more .* holds 64") as caught:
                started.engine.submit(prompt(2, 60), replace(GREEDY, max_new_tokens=6))
            assert caught.value.code == "context_exceeded"
            assert len(started.ids(prompt(2, 60), replace(GREEDY, max_new_tokens=5))) == 5
            assert len(ids_of(running)) == 40


class TestTheLifeOfTheEngine:
    def test_sequences_come_from_any_thread_and_loop(self, own: Started) -> None:
        expected = [own.ids(prompt(n)) for n in range(6)]
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(lambda n: own.ids(prompt(n)), range(6))) == expected

        async def one(number: int) -> list[int]:
            return [token.id async for token in own.engine.submit(prompt(number), GREEDY)]

        async def all_() -> list[list[int]]:
            return await asyncio.gather(*(one(n) for n in range(6)))

        assert asyncio.run(all_()) == expected

    def test_a_deadline_ends_running_and_waiting_ones_with_what_they_have(
        self, model: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Started(model, max_num_seqs=1) as started:
            gate = Gate(started.backend, passes=4)
            now = time.monotonic()
            running = started.engine.submit(prompt(1), replace(GREEDY, max_new_tokens=500), deadline=now + 1000)
            waiting = started.engine.submit(prompt(2), GREEDY, deadline=now + 1000)
            assert gate.reached.wait(PATIENCE_S)
            monkeypatch.setattr(time, "monotonic", lambda: now + 2000)
            gate.open()
            assert len(ids_of(running)) == 5
            assert ids_of(waiting) == []
            assert (running.finish_reason, waiting.finish_reason) == ("deadline", "deadline")

    def test_drain_takes_nothing_more_and_waits_for_the_rest(self, own: Started) -> None:
        gate = Gate(own.backend)
        handles = [own.engine.submit(prompt(n), GREEDY) for n in range(3)]
        assert gate.reached.wait(PATIENCE_S)
        drained = threading.Thread(target=own.engine.drain)
        drained.start()
        while own.engine.stats().alive:
            time.sleep(0.001)
        with pytest.raises(Unavailable):
            own.engine.submit(prompt(4), GREEDY)
        assert drained.is_alive()
        gate.open()
        drained.join(PATIENCE_S)
        assert not drained.is_alive()
        assert [len(ids_of(handle)) for handle in handles] == [12] * 3

    def test_close_cancels_what_runs_and_waits(self, own: Started) -> None:
        gate = Gate(own.backend)
        handles = [own.engine.submit(prompt(n), replace(GREEDY, max_new_tokens=900)) for n in range(3)]
        assert gate.reached.wait(PATIENCE_S)
        threading.Timer(0.05, gate.open).start()
        own.engine.close()
        assert not own.engine._thread._thread.is_alive()
        for handle in handles:
            ids_of(handle)
            assert handle.finish_reason == "cancelled"
        own.engine.close()

    def test_a_checkpoint_that_cant_be_loaded_is_one_error_and_no_thread(self, tmp_path: Path) -> None:
        before = threading.active_count()
        with pytest.raises(SetupError, match=r"config\.json"):
            start(tmp_path, dtype="float32", context=100)
        assert threading.active_count() == before

    def test_half_precision_is_refused_with_what_is_allowed(self, folder: Path) -> None:
        with pytest.raises(SetupError, match="float32 or bfloat16, not float16"):
            start(folder, dtype="float16", context=100)

    def test_a_forked_copy_takes_nothing_and_hangs_nowhere(self, own: Started) -> None:
        own.ids(prompt(1))
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # no pytest, no torch, no return from here
            try:
                own.engine.submit([5], GREEDY)
                answer = b"taken"
            except Unavailable:
                own.engine.drain()
                own.engine.close()
                answer = b"alive" if own.engine.stats().alive else b"refused"
            os.write(write, answer)
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            assert pipe.read() == b"refused"
        os.waitpid(child, 0)
        assert own.ids(prompt(1))

    def test_many_short_requests_leave_nothing_behind(self, model: Model) -> None:
        """A tenth of them cancelled. Objects of Python and torch are counted, not the system's memory."""
        with Started(model, blocks=60, max_num_seqs=16) as started:
            params = replace(GREEDY, max_new_tokens=2)

            def wave(requests: int) -> None:
                for first in range(0, requests, 100):
                    handles = [started.engine.submit(prompt(first + n, 4), params) for n in range(100)]
                    for handle in handles[::10]:
                        handle.cancel()
                    for handle in handles:
                        ids_of(handle)
                    started.backend.passes.clear()

            wave(300)
            before = _objects()
            wave(600)
            after = _objects()
            grown = {name: after[name] - before[name] for name in after if after[name] - before[name] > 20}
            assert not grown
            assert started.engine.stats().kv_blocks_free == started.blocks


def _objects() -> Counter[str]:
    gc.collect()
    return Counter(type(thing).__name__ for thing in gc.get_objects())


def _alone(model: Model, jobs: Sequence[tuple[list[int], SamplingParams]]) -> list[list[int]]:
    """Each by itself, with nothing shared, in one chunk."""
    with Started(model, max_num_seqs=1, share_prefixes=False) as started:
        return [started.ids(*job) for job in jobs]


def _tokenized(folder: Path) -> tuple[Path]:
    """The pipeline engine insists on a tokenizer beside the weights; ids alone go through it."""
    import shutil

    from llama_endpoints.nano import FOLDER

    shutil.copyfile(FOLDER / "tokenizer.json", folder / "tokenizer.json")
    return (folder,)
