"""The reference engine: transformers' own tokens, and the life of sequences, threads and the engine itself.

Nothing here measures time. Where an order matters, a hook on the engine's thread makes it, and clocks are set.
"""

import asyncio
import json
import os
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, Final

import pytest
import torch
import transformers
from safetensors.torch import load_file

from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.catalog import NANO
from llama_serving.engine import pipeline
from llama_serving.engine import thread as engine_thread
from llama_serving.engine.base import Engine
from llama_serving.engine.handle import Handle, Token
from llama_serving.engine.pipeline import PipelineEngine
from llama_serving.errors import InternalError, SetupError, Unavailable
from llama_serving.sampling_params import SamplingParams
from tests.support.draws import PATIENCE_S, BeforeDraw, Gate

EOS: Final = NANO.eos_id
VOCAB: Final = NANO.shape.vocab
GREEDY: Final = SamplingParams(max_new_tokens=24)
SAMPLED: Final = replace(GREEDY, temperature=1.5, seed=11)
PROMPTS: Final = {
    "one token": (1,),
    "a few": (1, 307, 283, 539, 931, 1001, 298),
    "repetitive": (1, 300, 300, 300, 300, 300),
    "bytes": (1, *range(3, 259, 7)),
    "600 tokens": (1, *(259 + (n * 37) % 640 for n in range(600))),
}
PROMPT: Final = PROMPTS["a few"]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """An engine shared by all tests."""
    started = PipelineEngine(NANO_FOLDER, dtype="float32")
    yield started
    started.close()


@pytest.fixture
def own_engine() -> Iterator[PipelineEngine]:
    """An engine that the test may close."""
    started = PipelineEngine(NANO_FOLDER, dtype="float32")
    yield started
    started.close()


@pytest.fixture(scope="module")
def reference() -> Any:
    """The same checkpoint, loaded and run by transformers alone."""
    library: Any = transformers
    model = library.LlamaForCausalLM.from_pretrained(NANO_FOLDER, dtype=torch.float32).eval()
    model.generation_config = library.GenerationConfig()
    return model


class Clock:
    """The engine's clock, set by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(pipeline, "time", SimpleNamespace(monotonic=lambda: self.now))


def ids_of(handle: Handle) -> list[int]:
    return [token.id for token in handle]


def run(
    engine: Engine, prompt: Sequence[int], params: SamplingParams, **more: float
) -> tuple[list[int], str | None]:
    handle = engine.submit(prompt, params, **more)
    return ids_of(handle), handle.finish_reason


def in_thread(work: Callable[[], object]) -> None:
    """Run `work` in a thread, and fail if it blocks."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "it blocks"


def until(condition: Callable[[], bool]) -> None:
    """Wait for another thread."""
    tick = threading.Event()
    for _ in range(PATIENCE_S * 1_000):
        if condition():
            return
        tick.wait(0.001)
    raise AssertionError("it never came")


# --- the tokens -----------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_greedy_is_transformers_own_generate(
    engine: Engine, reference: Any, prompt: tuple[int, ...], penalty: float
) -> None:
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        expected = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=EOS,
            pad_token_id=0,
            repetition_penalty=penalty,
        )[0, len(prompt) :].tolist()
    params = replace(GREEDY, stop_ids=frozenset({EOS}), repetition_penalty=penalty)
    assert run(engine, prompt, params) == (expected, "stop" if expected[-1] == EOS else "length")


def test_logprobs_are_the_models(engine: Engine, reference: Any) -> None:
    tokens = list(engine.submit(PROMPT, replace(GREEDY, max_new_tokens=8, logprobs=3, temperature=0.5)))
    ids = [*PROMPT, *(token.id for token in tokens)]
    with torch.inference_mode():
        logits = reference(torch.tensor([ids])).logits[0, len(PROMPT) - 1 : -1].double()
    for token, expected in zip(tokens, logits.log_softmax(-1), strict=True):
        best = expected.topk(3)
        assert token.logprob == pytest.approx(float(expected[token.id]), abs=1e-4)
        assert [i for i, _ in token.top] == best.indices.tolist()
        assert [logprob for _, logprob in token.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_a_seeded_request_repeats(engine: Engine) -> None:
    first = run(engine, PROMPT, SAMPLED)
    assert run(engine, PROMPT, SAMPLED) == first
    assert run(engine, PROMPT, replace(SAMPLED, seed=12)) != first


def test_a_seeded_request_repeats_in_any_batch(engine: Engine) -> None:
    alone = run(engine, PROMPT, SAMPLED)

    def work(number: int) -> tuple[list[int], str | None]:
        if number % 2:
            return run(engine, PROMPT, SAMPLED)
        other = replace(SAMPLED, seed=number, max_new_tokens=5 + number)
        return run(engine, PROMPTS["bytes"], other) and alone

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(16))) == [alone] * 16


def test_returned_sequences_differ_and_repeat_alone(engine: Engine) -> None:
    params = [replace(SAMPLED, index=index) for index in range(4)]
    together = [ids_of(handle) for handle in [engine.submit(PROMPT, one) for one in params]]
    assert len({tuple(ids) for ids in together}) == 4
    assert [run(engine, PROMPT, one)[0] for one in reversed(params)] == together[::-1]


def test_stop_ids_end_a_sequence(engine: Engine) -> None:
    free, reason = run(engine, PROMPT, GREEDY)
    assert (len(free), reason) == (24, "length")
    wanted, absent = free[5], next(token for token in range(VOCAB) if token not in free)
    stopped = run(engine, PROMPT, replace(GREEDY, stop_ids=frozenset({wanted, absent})))
    assert stopped == (free[: free.index(wanted) + 1], "stop")


def test_min_new_tokens_keeps_a_sequence_going(engine: Engine) -> None:
    (first, *_), _ = run(engine, PROMPT, replace(GREEDY, max_new_tokens=1))
    stops = frozenset({first})
    assert run(engine, PROMPT, replace(GREEDY, stop_ids=stops)) == ([first], "stop")
    longer, _ = run(engine, PROMPT, replace(GREEDY, stop_ids=stops, min_new_tokens=6))
    assert len(longer) > 6
    assert first not in longer[:6]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_max_new_tokens_ends_a_sequence(engine: Engine, count: int) -> None:
    ids, reason = run(engine, PROMPT, replace(GREEDY, max_new_tokens=count))
    assert (len(ids), reason) == (count, "length")


# --- ends before the end --------------------------------------------------------------------------


def test_cancel_ends_within_one_step_and_is_idempotent(engine: Engine, before_draw: BeforeDraw) -> None:
    gate = Gate(seed=77, position=3)
    before_draw(gate)
    handle = engine.submit(PROMPT, replace(GREEDY, max_new_tokens=1_000, seed=77))
    assert gate.reached.wait(PATIENCE_S)
    assert not handle.cancelled
    handle.cancel()
    handle.cancel()
    gate.open()
    assert (len(ids_of(handle)), handle.finish_reason) == (4, "cancelled")
    handle.cancel()
    assert (ids_of(handle), handle.finish_reason, handle.cancelled) == ([], "cancelled", True)
    assert run(engine, PROMPT, replace(GREEDY, max_new_tokens=2))[1] == "length"


def test_a_finished_sequence_can_be_cancelled(engine: Engine) -> None:
    handle = engine.submit(PROMPT, replace(GREEDY, max_new_tokens=2))
    assert len(ids_of(handle)) == 2
    handle.cancel()
    assert handle.finish_reason == "length"


def test_a_deadline_ends_with_what_is_there(
    engine: Engine, before_draw: BeforeDraw, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    whole, _ = run(engine, PROMPT, GREEDY, deadline=1.0)

    def hook(_: SamplingParams, position: int) -> None:
        clock.now = 1.0 if position == 4 else 0.5

    before_draw(hook)
    assert run(engine, PROMPT, GREEDY, deadline=1.0) == (whole[:5], "deadline")


def test_a_deadline_before_the_first_token(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch).now = 1.0
    assert run(engine, PROMPT, GREEDY, deadline=1.0) == ([], "deadline")


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        (replace(GREEDY, max_new_tokens=3), "length"),
        (replace(GREEDY, stop_ids=frozenset(range(VOCAB)), min_new_tokens=0), "stop"),
    ],
)
def test_a_deadline_during_the_last_token_takes_nothing_away(
    engine: Engine,
    before_draw: BeforeDraw,
    monkeypatch: pytest.MonkeyPatch,
    params: SamplingParams,
    reason: str,
) -> None:
    clock = Clock(monkeypatch)

    def hook(_: SamplingParams, position: int) -> None:
        clock.now = 1.0 if reason == "stop" or position == 2 else 0.0

    before_draw(hook)
    assert run(engine, PROMPT, params, deadline=1.0)[1] == reason


@pytest.mark.parametrize("how", ["deadline", "cancelled"])
def test_what_waits_ends_without_waiting_for_its_turn(
    engine: Engine, before_draw: BeforeDraw, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    clock = Clock(monkeypatch)
    first, second = Gate(seed=1, position=2), Gate(seed=1, position=4)

    def hook(params: SamplingParams, position: int) -> None:
        first(params, position)
        second(params, position)

    before_draw(hook)
    running = engine.submit(PROMPT, replace(GREEDY, seed=1))
    waiting = engine.submit(PROMPT, GREEDY, deadline=1.0)
    last = engine.submit(PROMPT, replace(GREEDY, max_new_tokens=2), deadline=2.0)
    assert first.reached.wait(PATIENCE_S)
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (1, 2)
    clock.now = 1.0 if how == "deadline" else 0.0
    if how == "cancelled":
        waiting.cancel()
    first.open()
    assert second.reached.wait(PATIENCE_S)
    assert (waiting.finish_reason, running.finish_reason, last.finish_reason) == (how, None, None)
    assert ids_of(waiting) == []
    assert engine.stats().waiting == 1
    second.open()
    assert len(ids_of(running)) == 24
    assert (len(ids_of(last)), last.finish_reason) == (2, "length")


# --- faults ---------------------------------------------------------------------------------------


def test_a_fault_fails_its_sequence_alone(engine: Engine, before_draw: BeforeDraw) -> None:
    whole = run(engine, PROMPT, SAMPLED)

    def hook(params: SamplingParams, position: int) -> None:
        if params.seed == 666 and position == 3:
            raise ZeroDivisionError("the prompt's secret")

    before_draw(hook)
    handles = [engine.submit(PROMPT, replace(SAMPLED, seed=seed)) for seed in (11, 666, 11)]
    assert ids_of(handles[0]) == whole[0]
    with pytest.raises(InternalError, match="failed on this sequence") as failed:
        ids_of(handles[1])
    assert "secret" not in failed.value.message
    assert handles[1].finish_reason is None
    assert ids_of(handles[2]) == whole[0]
    assert engine.stats().alive


def test_a_fault_in_the_model_fails_its_sequence_alone(engine: Engine) -> None:
    outside = engine.submit((1, VOCAB), GREEDY)
    with pytest.raises(InternalError):
        ids_of(outside)
    assert len(run(engine, PROMPT, replace(GREEDY, max_new_tokens=3))[0]) == 3


def test_tokens_before_a_fault_are_delivered(engine: Engine, before_draw: BeforeDraw) -> None:
    def hook(_: SamplingParams, position: int) -> None:
        if position == 2:
            raise ZeroDivisionError

    before_draw(hook)
    tokens = iter(engine.submit(PROMPT, GREEDY))
    assert next(tokens)
    assert next(tokens)
    with pytest.raises(InternalError):
        next(tokens)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_an_engine_that_has_died(own_engine: PipelineEngine, before_draw: BeforeDraw) -> None:
    gate = Gate(seed=5)

    def hook(params: SamplingParams, position: int) -> None:
        gate(params, position)
        raise SystemExit

    before_draw(hook)
    running = own_engine.submit(PROMPT, replace(GREEDY, seed=5))
    waiting, unwanted = own_engine.submit(PROMPT, GREEDY), own_engine.submit(PROMPT, GREEDY)
    assert gate.reached.wait(PATIENCE_S)
    unwanted.cancel()
    gate.open()
    with pytest.raises(InternalError):
        ids_of(running)
    with pytest.raises(Unavailable) as stopped:
        ids_of(waiting)
    assert stopped.value.retry_after
    assert (ids_of(unwanted), unwanted.finish_reason) == ([], "cancelled")
    stats = own_engine.stats()
    assert (stats.alive, stats.running, stats.waiting) == (False, 0, 0)
    with pytest.raises(Unavailable):
        own_engine.submit(PROMPT, GREEDY)
    in_thread(own_engine.drain)
    in_thread(own_engine.close)


# --- the engine's own life ------------------------------------------------------------------------


def test_stats_count(own_engine: PipelineEngine) -> None:
    run(own_engine, PROMPT, replace(GREEDY, max_new_tokens=3))
    run(own_engine, (1, 5), replace(GREEDY, max_new_tokens=2))
    stats = own_engine.stats()
    assert (stats.engine, stats.alive, stats.running, stats.waiting) == ("pipeline", True, 0, 0)
    assert (stats.sequences, stats.tokens_in, stats.tokens_out) == (2, len(PROMPT) + 2, 5)


def test_close_cancels_everything_and_may_be_repeated(
    own_engine: PipelineEngine, before_draw: BeforeDraw
) -> None:
    gate = Gate(seed=1, position=3)
    before_draw(gate)
    handles = [own_engine.submit(PROMPT, replace(GREEDY, seed=seed)) for seed in (1, 2, 3)]
    assert gate.reached.wait(PATIENCE_S)
    closing = [threading.Thread(target=own_engine.close, daemon=True) for _ in range(2)]
    for thread in closing:
        thread.start()
    until(lambda: not own_engine.stats().alive)
    gate.open()
    for thread in closing:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    in_thread(own_engine.close)
    in_thread(own_engine.drain)
    assert [handle.finish_reason for handle in handles] == ["cancelled"] * 3
    assert [len(ids_of(handle)) for handle in handles] == [4, 0, 0]
    assert not own_engine._thread._thread.is_alive()
    with pytest.raises(Unavailable, match="shutting down") as refused:
        own_engine.submit(PROMPT, GREEDY)
    assert refused.value.retry_after


def test_drain_finishes_what_is_admitted_and_takes_nothing_more(
    own_engine: PipelineEngine, before_draw: BeforeDraw
) -> None:
    gate = Gate(seed=1)
    before_draw(gate)
    handles = [own_engine.submit(PROMPT, replace(GREEDY, seed=seed)) for seed in (1, 2, 3)]
    draining = threading.Thread(target=own_engine.drain, daemon=True)
    draining.start()
    until(lambda: not own_engine.stats().alive)
    with pytest.raises(Unavailable):
        own_engine.submit(PROMPT, GREEDY)
    assert draining.is_alive()
    assert [handle.finish_reason for handle in handles] == [None] * 3
    gate.open()
    draining.join(PATIENCE_S)
    assert not draining.is_alive()
    assert [handle.finish_reason for handle in handles] == ["length"] * 3
    assert [len(ids_of(handle)) for handle in handles] == [24] * 3
    in_thread(own_engine.drain)


def test_close_ends_a_drain(own_engine: PipelineEngine, before_draw: BeforeDraw) -> None:
    gate = Gate(seed=1)
    before_draw(gate)
    handles = [own_engine.submit(PROMPT, replace(GREEDY, seed=seed, max_new_tokens=1_000)) for seed in (1, 2)]
    draining = threading.Thread(target=own_engine.drain, daemon=True)
    draining.start()
    assert gate.reached.wait(PATIENCE_S)
    closing = threading.Thread(target=own_engine.close, daemon=True)
    closing.start()
    until(lambda: handles[1].cancelled)
    gate.open()
    for thread in (closing, draining):
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert [handle.finish_reason for handle in handles] == ["cancelled"] * 2


def test_a_waiting_consumer_is_released_by_close(own_engine: PipelineEngine, before_draw: BeforeDraw) -> None:
    gate = Gate(seed=1)
    before_draw(gate)
    own_engine.submit(PROMPT, replace(GREEDY, seed=1))
    with ThreadPoolExecutor(1) as threads:
        consumed = threads.submit(run, own_engine, PROMPT, GREEDY)
        assert gate.reached.wait(PATIENCE_S)
        until(lambda: own_engine.stats().waiting == 1)
        closing = threading.Thread(target=own_engine.close, daemon=True)
        closing.start()
        until(lambda: not own_engine.stats().alive)
        gate.open()
        assert consumed.result(PATIENCE_S) == ([], "cancelled")
        closing.join(PATIENCE_S)


def test_the_interpreters_end_closes_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon thread inside torch at interpreter shutdown aborts the process."""
    at_exit: list[Callable[[], None]] = []
    fake = SimpleNamespace(register=at_exit.append, unregister=at_exit.remove)
    monkeypatch.setattr(engine_thread, "atexit", fake)
    own = PipelineEngine(NANO_FOLDER, dtype="float32")
    handle = own.submit(PROMPT, replace(GREEDY, max_new_tokens=1_000))
    assert len(at_exit) == 1
    at_exit[0]()
    assert not own._thread._thread.is_alive()
    assert handle.finish_reason == "cancelled"
    assert at_exit == []


def test_a_forked_copy_refuses_and_never_blocks(
    own_engine: PipelineEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child of a fork has no engine thread, and a lock that may have been held while it forked."""
    run(own_engine, PROMPT, replace(GREEDY, max_new_tokens=1))

    def work() -> None:
        with pytest.raises(Unavailable):
            own_engine.submit(PROMPT, GREEDY)
        stats = own_engine.stats()
        done.append((stats.alive, stats.sequences))
        own_engine.drain()
        own_engine.close()

    done: list[tuple[bool, int]] = []
    with monkeypatch.context() as patched, own_engine._thread.lock:
        patched.setattr(own_engine._thread, "_pid", -1)
        in_thread(work)
    assert done == [(False, 1)]
    assert own_engine.stats().alive


def _nothing(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _half_the_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])


def _another_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 128}))


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _pickled_weights(folder: Path) -> None:
    """Weights that transformers would load: unpickling runs code."""
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()


@pytest.mark.parametrize(
    "damage", [_nothing, _half_the_weights, _another_config, _no_weights, _pickled_weights]
)
def test_a_checkpoint_that_can_not_be_loaded_is_a_setup_error(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(NANO_FOLDER, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    damage(folder)
    before = threading.active_count()
    says = "has no config.json" if damage is _nothing else "can't be loaded as a float32 model"
    with pytest.raises(SetupError, match=says):
        PipelineEngine(folder, dtype="float32")
    assert threading.active_count() == before


@pytest.mark.parametrize("before", [None, "0"])
def test_it_reaches_for_no_hub_and_leaves_the_process_as_it_was(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: reached.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *name, **_: reached.append(name) or [])
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DEACTIVATE_ASYNC_LOAD"):
        monkeypatch.delenv(name, raising=False)
        if before is not None:
            monkeypatch.setenv(name, before)
    environment = dict(os.environ)
    with ThreadPoolExecutor(2) as threads:
        engines = list(threads.map(lambda _: PipelineEngine(NANO_FOLDER, dtype="float32"), range(2)))
    assert dict(os.environ) == environment
    assert [len(run(engine, PROMPT, GREEDY)[0]) for engine in engines] == [24, 24]
    for engine in engines:
        engine.close()
    assert reached == []


# --- handles ---------------------------------------------------------------------------------------


def test_the_first_end_of_a_sequence_counts() -> None:
    handle = Handle()
    handle.push(Token(7))
    handle.finish("length")
    handle.fail(InternalError("too late"))
    handle.finish("cancelled")
    assert (ids_of(handle), handle.finish_reason) == ([7], "length")


def test_a_failed_sequence_stays_failed() -> None:
    handle = Handle()
    handle.push(Token(7))
    handle.fail(InternalError("first"))
    handle.fail(InternalError("second"))
    handle.finish("length")
    tokens = iter(handle)
    assert next(tokens).id == 7
    with pytest.raises(InternalError, match="first"):
        next(tokens)
    assert handle.finish_reason is None


# --- event loops ----------------------------------------------------------------------------------


async def collected(handle: Handle) -> list[int]:
    return [token.id async for token in handle]


def test_an_event_loop_gets_the_same_tokens(engine: Engine) -> None:
    expected, _ = run(engine, PROMPT, SAMPLED)
    handle = engine.submit(PROMPT, SAMPLED)
    assert asyncio.run(collected(handle)) == expected
    assert handle.finish_reason == "length"
    assert handle._waiter is None, "a loop that listens no more is still registered"


def test_two_consumers_share_an_event_loop(engine: Engine) -> None:
    params = [replace(SAMPLED, index=index) for index in range(2)]
    expected = [run(engine, PROMPT, one)[0] for one in params]

    async def both() -> list[list[int]]:
        return list(await asyncio.gather(*(collected(engine.submit(PROMPT, one)) for one in params)))

    assert asyncio.run(both()) == expected


def test_tokens_come_as_they_are_drawn_and_the_loop_stays_free(engine: Engine, before_draw: BeforeDraw) -> None:
    gate = Gate(seed=1, position=3)
    before_draw(gate)

    async def consume() -> tuple[int, int]:
        tokens = aiter(engine.submit(PROMPT, replace(GREEDY, seed=1)))
        early = [await anext(tokens) for _ in range(3)]
        task = asyncio.ensure_future(anext(tokens))
        await asyncio.sleep(0)
        assert not task.done()
        gate.open()
        late = [await task, *[token async for token in tokens]]
        return len(early), len(late)

    assert asyncio.run(consume()) == (3, 21)


def test_a_fault_reaches_an_event_loop(engine: Engine) -> None:
    with pytest.raises(InternalError):
        asyncio.run(collected(engine.submit((1, VOCAB), GREEDY)))


def test_an_event_loop_may_cancel_its_wait(engine: Engine, before_draw: BeforeDraw) -> None:
    gate = Gate(seed=1)
    before_draw(gate)
    handle = engine.submit(PROMPT, replace(GREEDY, seed=1))

    async def give_up() -> None:
        task = asyncio.ensure_future(collected(handle))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    gate.open()
    assert len(ids_of(handle)) == 24


def test_a_loop_that_closed_while_it_waited_harms_nobody(engine: Engine, before_draw: BeforeDraw) -> None:
    gate = Gate(seed=1, position=2)
    before_draw(gate)
    handle = engine.submit(PROMPT, replace(GREEDY, seed=1))
    loop = asyncio.new_event_loop()
    tokens = aiter(handle)
    loop.run_until_complete(anext(tokens))
    loop.close()
    gate.open()
    assert len(run(engine, PROMPT, GREEDY)[0]) == 24
    assert handle.finish_reason == "length"
    assert engine.stats().alive
    assert handle._waiter is not None, "the loop that is gone was still registered"


# --- threads --------------------------------------------------------------------------------------


def test_torch_is_called_on_the_engines_thread_alone(before_draw: BeforeDraw) -> None:
    """One thread owns torch. All others are watched while they load, submit, read, cancel and close."""
    drawing: set[str] = set()
    seen: set[str] = set()

    def spy(frame: FrameType, event: str, called: Any) -> None:
        if threading.current_thread().name == "engine":
            return
        name = (
            str(getattr(called, "__module__", "")) if event == "c_call" else frame.f_globals.get("__name__", "")
        )
        if str(name).partition(".")[0] in ("torch", "transformers"):
            seen.add(f"{threading.current_thread().name}: {name}")

    def work(own: PipelineEngine) -> None:
        assert len(run(own, PROMPT, replace(SAMPLED, logprobs=2))[0]) == 24
        handle = own.submit(PROMPT, GREEDY)
        next(iter(handle))
        handle.cancel()
        own.stats()
        assert len(asyncio.run(collected(own.submit(PROMPT, GREEDY)))) == 24

    before_draw(lambda *_: drawing.add(threading.current_thread().name))
    # Only threads that begin from here on are watched, and this one.
    threading.setprofile(spy)
    sys.setprofile(spy)
    try:
        own = PipelineEngine(NANO_FOLDER, dtype="float32")
        work(own)
        with ThreadPoolExecutor(2, thread_name_prefix="client") as threads:
            list(threads.map(work, [own, own]))
        own.close()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert drawing == {"engine"}
    assert seen == set()
