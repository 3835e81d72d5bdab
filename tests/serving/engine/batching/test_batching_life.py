"""Start, cancel, drain and shutdown of the batching engine."""

import asyncio
import gc
import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from llama_serving.engine.batching.factory import start
from llama_serving.errors import SetupError, Unavailable
from tests.support.batching_engines import GREEDY, Gate, Model, Started, ids_of, prompt
from tests.support.draws import PATIENCE_S


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
