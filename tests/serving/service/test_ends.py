"""Deadlines, refusals, faults, admission, and what the log says of them."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from llama_serving.catalog import NANO
from llama_serving.contract.request import Completion, Dialog, Input, Message, TokenIds
from llama_serving.engine import pipeline
from llama_serving.engine.batching import engine as batching
from llama_serving.errors import (
    BadRequest,
    DeadlineExceeded,
    InternalError,
    QueueFull,
    ServingError,
    Unavailable,
)
from llama_serving.faults import as_serving_error
from llama_serving.prompts.tokenizer import Tokenizer
from llama_serving.sampling_params import SamplingParams
from llama_serving.service.service import RETRY_AFTER_S, Service
from tests.support.draws import PATIENCE_S, BeforeDraw, Gate
from tests.support.service_requests import Scripted, greedy, of, only, request, scripted


def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock for the engines that only the test moves."""
    clock = SimpleNamespace(now=0.0)
    time = SimpleNamespace(monotonic=lambda: clock.now, perf_counter=lambda: clock.now)
    monkeypatch.setattr(pipeline, "time", time)
    monkeypatch.setattr(batching, "time", time)
    return clock


def test_a_deadline_gives_the_text_that_is_done(
    service: Service, before_draw: BeforeDraw, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = only(service, greedy(ignore_eos=True))
    clock = stopped_clock(monkeypatch)

    def hook(_: SamplingParams, position: int) -> None:
        clock.now = 1.0 if position == 4 else 0.0

    before_draw(hook)
    ((partial,),) = service.generate(greedy(ignore_eos=True), deadline=1.0)
    assert (partial.finish_reason, partial.usage.completion_tokens) == ("deadline", 5)
    assert whole.text.startswith(partial.text)
    assert partial.text


def test_a_deadline_with_nothing_to_show_is_an_error(service: Service) -> None:
    with pytest.raises(DeadlineExceeded) as refused:
        service.generate(greedy(Completion("a"), Completion("b")), deadline=0.0)
    assert refused.value.status == 504
    with pytest.raises(DeadlineExceeded):
        list(service.stream(greedy(), deadline=0.0))


def test_a_deadline_after_the_first_of_two_prompts_gives_both(
    in_turn: Service, before_draw: BeforeDraw, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = stopped_clock(monkeypatch)

    def hook(_: SamplingParams, position: int) -> None:
        clock.now = 1.0 if position == 11 else 0.0

    before_draw(hook)
    asked = greedy(Completion("a"), Completion("b"), ignore_eos=True)
    ((first,), (second,)) = in_turn.generate(asked, deadline=1.0)
    assert (first.finish_reason, second.finish_reason) == ("length", "deadline")
    assert (bool(first.text), second.text) == (True, "")


@pytest.mark.parametrize(
    "bad",
    [
        Dialog((Message("user", "x [/INST]"),)),
        Completion("x" * 100_000),
        TokenIds((NANO.shape.vocab,)),
    ],
    ids=["marker", "too long", "outside"],
)
@pytest.mark.parametrize("call", ["generate", "stream"])
def test_one_bad_prompt_refuses_the_request_and_nothing_runs(service: Service, bad: Input, call: str) -> None:
    before = service.engine.stats()
    prompts = (bad,) if call == "stream" else (Completion("a"), Completion("b"), bad, Completion("c"))
    with pytest.raises(BadRequest) as refused:
        list(getattr(service, call)(greedy(*prompts)))
    index = len(prompts) // 2
    assert (refused.value.index, refused.value.param) == (index, f"input_data.input_string[{index}]")
    assert service.engine.stats() == before


def test_one_failing_sequence_fails_its_request_and_no_other(service: Service, before_draw: BeforeDraw) -> None:
    expected = only(service, greedy(max_new_tokens=20))
    gate = Gate(seed=666)
    drawn: set[tuple[int, int, int]] = set()

    def hook(params: SamplingParams, position: int) -> None:
        drawn.add((params.seed, params.index, position))
        gate(params, position)
        if (params.seed, params.index, position) == (666, 1, 2):
            raise ZeroDivisionError("secret")

    before_draw(hook)
    failing = request(num_return_sequences=3, temperature=1.0, seed=666, max_new_tokens=6, ignore_eos=True)
    with ThreadPoolExecutor(2) as threads:
        failed = threads.submit(service.generate, failing)
        assert gate.reached.wait(PATIENCE_S)
        other = threads.submit(only, service, greedy(max_new_tokens=20))
        gate.open()
        with pytest.raises(InternalError, match="failed on this sequence") as error:
            failed.result(PATIENCE_S)
        assert error.value.status == 500
        assert "secret" not in error.value.message
        assert other.result(PATIENCE_S) == expected
    assert {position for seed, index, position in drawn if (seed, index) == (666, 0)} == set(range(6))
    assert {position for seed, index, position in drawn if (seed, index) == (666, 1)} == set(range(3))
    assert only(service, greedy(max_new_tokens=20)) == expected
    stats = service.engine.stats()
    assert (stats.alive, stats.running, stats.waiting) == (True, 0, 0)


def test_the_siblings_of_a_failing_sequence_are_cancelled(service: Service, before_draw: BeforeDraw) -> None:
    drawn: list[int] = []
    go_on = threading.Event()

    def hook(params: SamplingParams, position: int) -> None:
        if params.seed == 666 and params.index == 0 and position == 1:
            raise ZeroDivisionError
        if params.seed == 666 and params.index == 1:
            drawn.append(position)
            assert position < 20 or go_on.wait(PATIENCE_S)

    before_draw(hook)
    failing = request(num_return_sequences=2, temperature=1.0, seed=666, max_new_tokens=1_000, ignore_eos=True)
    with pytest.raises(InternalError):
        service.generate(failing)
    go_on.set()
    assert only(service, greedy()).text
    assert max(drawn, default=0) <= 21


def test_an_engine_that_takes_nothing_is_unavailable(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.engine._thread, "_closed", True)
    with pytest.raises(Unavailable) as refused:
        service.generate(greedy())
    assert (refused.value.status, bool(refused.value.retry_after)) == (503, True)


def test_an_unexpected_error_is_logged_without_its_message_and_not_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def lookup(text: str) -> None:
        try:
            assert not {}[text]
        except KeyError as error:
            raise RuntimeError(text.upper()) from error

    try:
        lookup("se" + "cret")
    except RuntimeError as error:
        shown = as_serving_error(error)
    assert (type(shown), "secret" in (shown.message + caplog.text).lower()) == (InternalError, False)
    assert caplog.text.index("builtins.KeyError") < caplog.text.index("builtins.RuntimeError")
    assert "in lookup" in caplog.text
    refused: ServingError = BadRequest("no")
    assert as_serving_error(refused) is refused


def test_a_full_queue_refuses_at_once_and_takes_again_later(nano_tokenizer: Tokenizer) -> None:
    small = of(NANO, nano_tokenizer, max_num_seqs=1, queue=1)
    with small.admitted():
        with small.admitted():
            told = set()
            for _ in range(200):
                with pytest.raises(QueueFull, match="All 2 request slots") as refused, small.admitted():
                    pass
                assert (refused.value.status, f"in {refused.value.retry_after} s" in refused.value.message) == (
                    429,
                    True,
                )
                told.add(refused.value.retry_after)
            assert told == set(RETRY_AFTER_S)  # a crowd is not told to come again together
        with small.admitted():
            pass


def test_a_place_is_given_back_after_a_fault(nano_tokenizer: Tokenizer) -> None:
    small = of(NANO, nano_tokenizer, max_num_seqs=1, queue=0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), small.admitted():
            raise ZeroDivisionError


@pytest.mark.parametrize("switch", [False, True])
def test_prompts_are_logged_only_where_the_switch_is_on(
    nano_tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture, switch: bool
) -> None:
    with caplog.at_level("DEBUG", logger="llama_serving"):
        of(NANO, nano_tokenizer, log_prompts=switch).prepare(request(Completion("my secret")))
    assert ("my secret" in caplog.text) is switch


def test_a_fault_of_the_parameters_is_no_prompts_fault(service: Service) -> None:
    with pytest.raises(BadRequest) as refused:
        service.prepare(greedy(num_return_sequences=2))
    assert refused.value.param == "input_data.parameters.num_return_sequences"
    assert refused.value.index is None


def test_sequences_that_were_taken_are_cancelled_when_a_later_one_is_refused(nano_tokenizer: Tokenizer) -> None:
    engine = Scripted(full=2)
    with pytest.raises(Unavailable):
        scripted(NANO, nano_tokenizer, engine).generate(request(num_return_sequences=3, max_new_tokens=4))
    assert [handle.cancelled for handle in engine.handles] == [True, True]
