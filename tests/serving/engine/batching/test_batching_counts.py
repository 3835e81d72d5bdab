"""What the batching engine counts."""

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.batching_engines import GREEDY, Gate, Model, Started, ids_of, prompt
from tests.support.draws import PATIENCE_S


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
