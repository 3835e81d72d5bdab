"""A fault fails the sequence at fault and no other."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from llama_serving.engine.batching import sampler
from llama_serving.engine.batching.backends.base import BackendLostError, Rows
from llama_serving.engine.batching.prefill_budget import PrefillBudget
from llama_serving.engine.handle import Token
from llama_serving.errors import BadRequest, InternalError, Unavailable
from llama_serving.sampling_params import SamplingParams
from tests.support.batching_engines import GREEDY, Gate, Model, Started, alone, ids_of, prompt
from tests.support.draws import PATIENCE_S
from tests.support.rows import spoil


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
        expected = alone(model, jobs)
        with Started(model, blocks=44, largest_chunk=1, share_prefixes=False) as started:
            handles = [started.engine.submit(*job) for job in jobs]
            assert [ids_of(handle) for handle in handles] == expected
            assert started.engine.stats().num_preemptions > 0

    @pytest.mark.parametrize("what", ["save", "restore"])
    def test_a_copy_that_fails_fails_its_own_sequence(self, model: Model, what: str) -> None:
        jobs = [(prompt(n, 20), SamplingParams(max_new_tokens=60)) for n in range(4)]
        expected = alone(model, jobs)
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
