"""Ends before the last token, and faults."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from llama_serving.engine import pipeline
from llama_serving.engine.base import Engine
from llama_serving.engine.pipeline import PipelineEngine
from llama_serving.errors import InternalError, Unavailable
from llama_serving.sampling_params import SamplingParams
from tests.support.draws import PATIENCE_S, BeforeDraw, Gate
from tests.support.pipeline_engines import GREEDY, PROMPT, SAMPLED, VOCAB, ids_of, in_thread, run


class Clock:
    """The engine's clock, set by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(pipeline, "time", SimpleNamespace(monotonic=lambda: self.now))


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
