"""The service: preparation of requests, results, and refusals before anything runs."""

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest

from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.catalog import CATALOG, NANO, ModelVariant
from llama_serving.contract.request import (
    Completion,
    Dialog,
    Generation,
    Infill,
    Input,
    Message,
    Parameters,
    ReplyShape,
    Request,
    TokenIds,
)
from llama_serving.engine import pipeline
from llama_serving.engine.batching import engine as batching
from llama_serving.engine.handle import Handle, Token
from llama_serving.errors import (
    BadRequest,
    DeadlineExceeded,
    InternalError,
    QueueFull,
    ServingError,
    SetupError,
    Unavailable,
)
from llama_serving.faults import as_serving_error
from llama_serving.model_files import ModelFiles
from llama_serving.prompts.tokenizer import Tokenizer
from llama_serving.sampling_params import SamplingParams
from llama_serving.service.service import RETRY_AFTER_S, Service, context_of
from llama_serving.settings import Settings
from tests.conftest import shared_tokenizer
from tests.support.draws import PATIENCE_S, BeforeDraw, Gate

TEXT: Final = "def sort(values):"


@pytest.fixture(scope="module", params=["batching", "pipeline"])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    """nano with each engine."""
    started = Service.start(ModelFiles(NANO_FOLDER, NANO), Settings(engine=request.param))
    yield started
    started.close()


@pytest.fixture(scope="module", params=["batching", "pipeline"])
def in_turn(request: pytest.FixtureRequest) -> Iterator[Service]:
    """The same, one sequence at a time."""
    started = Service.start(ModelFiles(NANO_FOLDER, NANO), Settings(engine=request.param, max_num_seqs=1))
    yield started
    started.close()


def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock for the engines that only the test moves."""
    clock = SimpleNamespace(now=0.0)
    time = SimpleNamespace(monotonic=lambda: clock.now, perf_counter=lambda: clock.now)
    monkeypatch.setattr(pipeline, "time", time)
    monkeypatch.setattr(batching, "time", time)
    return clock


def request(
    *inputs: Input, ceiling: bool = False, reply: ReplyShape = ReplyShape.ROWS, **parameters: Any
) -> Request:
    """A request as `/score` gives it; greedy and short unless the test says otherwise."""
    prompts = inputs or (Completion(TEXT),)
    paths = tuple(f"input_data.input_string[{index}]" for index in range(len(prompts)))
    return Request(prompts, Parameters(**parameters), reply, paths, "input_data.parameters", ceiling)


def greedy(*inputs: Input, **parameters: Any) -> Request:
    return request(*inputs, **{"do_sample": False, "max_new_tokens": 12, **parameters})


def of(variant: ModelVariant, tokenizer: Tokenizer, **settings: Any) -> Service:
    """A service that prepares requests and has no engine."""
    return Service(variant, tokenizer, cast("Any", None), Settings(**settings))


def params_of(service: Service, asked: Request) -> tuple[SamplingParams, ...]:
    (work,) = service.prepare(asked)
    return work.params


def only(service: Service, asked: Request) -> Generation:
    ((generation,),) = service.generate(asked)
    return generation


# --- defaults -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "temperature", "top_p"),
    [
        ("codellama/CodeLlama-7b-hf", 0.2, 0.9),
        ("codellama/CodeLlama-70b-Instruct-hf", 0.2, 0.9),
        ("meta-llama/Llama-2-7b-chat-hf", 0.8, 0.7),
        ("nano", 0.2, 0.9),
    ],
)
def test_what_is_not_given_is_the_contracts_default(
    nano_tokenizer: Tokenizer, name: str, temperature: float, top_p: float
) -> None:
    variant = CATALOG[name]
    (params,) = params_of(of(variant, nano_tokenizer), request())
    assert 0 <= params.seed < 2**63
    assert asdict(replace(params, seed=0)) == {
        "max_new_tokens": 256,
        "min_new_tokens": 0,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_ids": variant.stop_ids,
        "seed": 0,
        "index": 0,
        "logprobs": None,
        "prompt_logprobs": None,
        "logit_bias": (),
        "constraint": None,
    }


def test_what_is_given_is_what_the_engine_gets(service: Service) -> None:
    given: dict[str, Any] = {
        "max_new_tokens": 9,
        "min_new_tokens": 3,
        "temperature": 1.5,
        "top_p": 0.25,
        "top_k": 7,
        "min_p": 0.125,
        "repetition_penalty": 1.25,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.75,
        "seed": 2**63 - 1,
        "logprobs": 0,
        "prompt_logprobs": 3,
        "logit_bias": ((5, 1.5),),
    }
    (params,) = params_of(service, request(**given))
    assert asdict(params) == {**given, "stop_ids": frozenset({NANO.eos_id}), "index": 0, "constraint": None}


@pytest.mark.parametrize(
    "parameters", [{"do_sample": False}, {"temperature": 0.0}, {"temperature": 0.0, "do_sample": True}]
)
def test_greedy_is_no_sampling_or_temperature_0(service: Service, parameters: dict[str, Any]) -> None:
    (params,) = params_of(service, request(**parameters))
    assert params.temperature == 0


def test_no_sampling_wins_over_a_temperature(service: Service) -> None:
    (params,) = params_of(service, request(do_sample=False, temperature=1.0))
    assert params.temperature == 0


def test_a_request_without_a_seed_gets_a_fresh_one(service: Service) -> None:
    assert len({params_of(service, request())[0].seed for _ in range(5)}) == 5


def test_ignore_eos_takes_the_stop_ids_away(service: Service) -> None:
    assert params_of(service, request(ignore_eos=True))[0].stop_ids == frozenset()
    assert params_of(service, request(Infill("a", "b"), ignore_eos=True))[0].stop_ids == frozenset()
    tokens = NANO.infill.value
    assert tokens is not None
    assert params_of(service, request(Infill("a", "b")))[0].stop_ids == {NANO.eos_id, tokens.eot}


# --- ceilings -------------------------------------------------------------------------------------


def test_the_default_length_is_cut_to_what_the_context_leaves(nano_tokenizer: Tokenizer) -> None:
    small = of(NANO, nano_tokenizer, context=64)
    for count, expected in ((10, 54), (63, 1)):
        assert params_of(small, request(TokenIds((5,) * count)))[0].max_new_tokens == expected


def test_more_than_fits_is_refused_on_score_with_the_three_numbers(nano_tokenizer: Tokenizer) -> None:
    small = of(NANO, nano_tokenizer, context=64)
    prompt = TokenIds((5,) * 10)
    assert params_of(small, request(prompt, max_new_tokens=54))[0].max_new_tokens == 54
    with pytest.raises(BadRequest, match=r"has 10 tokens, and 55 new tokens may follow") as refused:
        small.prepare(request(prompt, max_new_tokens=55))
    assert (refused.value.code, refused.value.index) == ("context_exceeded", 0)


def test_a_prompt_that_fills_the_context_is_refused_with_what_was_asked_for(nano_tokenizer: Tokenizer) -> None:
    service = of(NANO, nano_tokenizer, context=16)
    for text in ("x\n" * 16, "x\n" * 4096):  # the second is refused by its length alone
        with pytest.raises(BadRequest, match=r"has .*\d+ tokens, and 777 new tokens may follow"):
            service.prepare(request(Completion(text), max_new_tokens=777))


def test_more_than_fits_is_cut_where_it_is_a_ceiling(nano_tokenizer: Tokenizer) -> None:
    small = of(NANO, nano_tokenizer, context=64)
    prompt = TokenIds((5,) * 10)
    (params,) = params_of(small, request(prompt, max_new_tokens=1_000, min_new_tokens=500, ceiling=True))
    assert (params.max_new_tokens, params.min_new_tokens) == (54, 54)
    with pytest.raises(BadRequest, match="has 64 tokens"):
        small.prepare(request(TokenIds((5,) * 64), max_new_tokens=1, ceiling=True))


@pytest.mark.parametrize(
    ("parameters", "ceiling"),
    [
        ({"max_new_tokens": 5, "min_new_tokens": 6}, False),
        ({"max_new_tokens": 5, "min_new_tokens": 6}, True),
        ({"min_new_tokens": 257}, False),
    ],
)
def test_a_minimum_above_the_maximum_is_refused(
    service: Service, parameters: dict[str, Any], ceiling: bool
) -> None:
    with pytest.raises(BadRequest, match="min_new_tokens") as refused:
        service.prepare(request(ceiling=ceiling, **parameters))
    assert refused.value.param == "input_data.parameters.min_new_tokens"


@pytest.mark.parametrize("parameters", [{"do_sample": False}, {"temperature": 0.0}])
def test_several_greedy_sequences_are_refused(service: Service, parameters: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="let it sample") as refused:
        service.prepare(request(num_return_sequences=2, **parameters))
    assert refused.value.param == "input_data.parameters.num_return_sequences"
    assert len(params_of(service, request(num_return_sequences=1, **parameters))) == 1


def test_more_prompts_than_the_setting_allows_are_refused(nano_tokenizer: Tokenizer) -> None:
    small = of(NANO, nano_tokenizer, max_prompts=2)
    prompts = [Completion("a")] * 3
    assert len(small.prepare(request(*prompts[:2]))) == 2
    with pytest.raises(BadRequest, match="3 prompts; at most 2") as refused:
        small.prepare(request(*prompts))
    assert refused.value.code == "too_many_prompts"


def test_a_context_beyond_the_model_stops_the_start() -> None:
    variant = CATALOG["codellama/CodeLlama-7b-hf"]
    assert context_of(variant, Settings()) == 16384
    assert context_of(variant, Settings(context=100_000)) == 100_000
    with pytest.raises(SetupError, match=r"LLAMA_CONTEXT=100001 .* at most 100000"):
        context_of(variant, Settings(context=100_001))


# --- the text -------------------------------------------------------------------------------------

INPUTS: Final[dict[str, tuple[Input, str, str]]] = {
    "completion": (Completion("  def f():\n"), "  def f():\n", ""),
    "infill": (Infill("  a = ", "\nb\n"), "  a = ", "\nb\n"),
    "dialog": (Dialog((Message("user", " hi "),)), "[INST] hi [/INST]", ""),
}


@pytest.mark.parametrize(("prompt", "before", "after"), INPUTS.values(), ids=INPUTS.keys())
def test_the_full_text_is_the_text_in_its_prompt(
    service: Service, prompt: Input, before: str, after: str
) -> None:
    plain = only(service, greedy(prompt, min_new_tokens=6))
    assert plain.text
    assert plain.full_text == plain.text
    full = only(service, greedy(prompt, min_new_tokens=6, return_full_text=True))
    assert (full.text, full.full_text) == (plain.text, before + plain.text + after)


def test_token_ids_are_answered_as_the_text_they_stand_for(service: Service) -> None:
    ids = (1, *service.tokenizer.encode(TEXT))
    full = only(service, greedy(TokenIds(ids), return_full_text=True))
    assert full == only(service, greedy(Completion(TEXT), return_full_text=True))
    assert full.full_text.startswith(TEXT)


def test_usage_counts_tokens(service: Service) -> None:
    usage = only(service, greedy(ignore_eos=True)).usage
    assert usage.to_dict() == {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": 12,
        "total_tokens": usage.prompt_tokens + 12,
    }
    assert usage.prompt_tokens == 1 + len(service.tokenizer.encode(TEXT))


def test_each_prompt_has_its_own_answer_in_order(service: Service) -> None:
    prompts = [Completion(text) for text in ("import os", "class A:", "import os", "\n")]
    together = service.generate(greedy(*prompts))
    assert [text for (text,) in together] == [only(service, greedy(prompt)) for prompt in prompts]
    assert together[0] == together[2] != together[1]


def test_returned_sequences_differ_and_repeat(service: Service) -> None:
    asked = request(num_return_sequences=3, temperature=1.5, seed=5, max_new_tokens=12)
    ((first, second, third),) = service.generate(asked)
    assert len({first.text, second.text, third.text}) == 3
    assert service.generate(asked) == ((first, second, third),)
    assert only(service, replace(asked, parameters=replace(asked.parameters, num_return_sequences=1))) == first


def test_the_end_of_the_text_is_a_stop(service: Service) -> None:
    (work,) = service.prepare(greedy(ignore_eos=True))
    ids = [token.id for token in service.engine.submit(work.prompt.token_ids, work.params[0])]
    ending = Service(replace(NANO, eos_id=ids[3]), service.tokenizer, service.engine, Settings())
    stopped = only(ending, greedy())
    assert (stopped.finish_reason, stopped.usage.completion_tokens) == ("stop", ids.index(ids[3]) + 1)


# --- streaming ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prompt", "before", "after"), INPUTS.values(), ids=INPUTS.keys())
@pytest.mark.parametrize("full", [False, True])
def test_streamed_pieces_are_the_whole_text(
    service: Service, prompt: Input, before: str, after: str, full: bool
) -> None:
    asked = greedy(prompt, return_full_text=full, max_new_tokens=20, min_new_tokens=20)
    deltas = list(service.stream(asked))
    whole = only(service, asked)
    assert "".join(delta.text for delta in deltas) == whole.full_text
    assert deltas[-1].generation == whole
    assert [delta.generation for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert all(delta.text for delta in deltas[:-1])
    assert len(deltas) > 5


def test_streamed_sequences_come_one_after_the_other(service: Service) -> None:
    asked = request(num_return_sequences=3, temperature=1.5, seed=5, max_new_tokens=8)
    deltas = list(service.stream(asked))
    assert [delta.index for delta in deltas] == sorted(delta.index for delta in deltas)
    ended = [delta.generation for delta in deltas if delta.generation]
    assert (tuple(ended),) == service.generate(asked)


def test_a_stream_that_is_given_up_frees_the_engine(service: Service, before_draw: BeforeDraw) -> None:
    drawn: list[int] = []
    gate = Gate(seed=7, position=9)

    def hook(params: SamplingParams, position: int) -> None:
        drawn.append(params.seed)
        gate(params, position)

    before_draw(hook)
    deltas = service.stream(greedy(max_new_tokens=1_500, ignore_eos=True, seed=7))
    assert next(deltas).text
    cast("Any", deltas).close()
    gate.open()
    only(service, greedy(seed=8))
    assert drawn.count(7) <= 10
    assert service.engine.stats().waiting == 0


def test_requests_are_counted_apart_from_their_sequences(in_turn: Service, before_draw: BeforeDraw) -> None:
    """With one running sequence, a request of four and another of two have five waiting ones."""
    gate = Gate(seed=1, position=1)
    before_draw(gate)
    first, second = (
        request(do_sample=True, max_new_tokens=12, seed=seed, num_return_sequences=n)
        for seed, n in ((1, 4), (50, 2))
    )
    assert in_turn.requests() == (0, 0)
    with in_turn._running(in_turn.prepare(first), first, None, streamed=False):
        assert gate.reached.wait(PATIENCE_S)
        with in_turn._running(in_turn.prepare(second), second, None, streamed=False):
            stats = in_turn.engine.stats()
            assert (stats.running, stats.waiting) == (1, 5)
            assert in_turn.requests() == (1, 1)
        assert in_turn.requests() == (1, 1), "the engine has them still, at most until its next step"
        gate.open()
    assert len(in_turn.generate(first)[0]) == 4, "they were before these"
    assert in_turn.requests() == (0, 0)


def test_a_stream_of_several_prompts_is_refused(service: Service) -> None:
    with pytest.raises(BadRequest, match="one by one") as refused:
        list(service.stream(greedy(Completion("a"), Completion("b"))))
    assert refused.value.code == "streaming_unsupported"


@pytest.mark.parametrize(
    ("reply", "param"), [(ReplyShape.ROWS, "input_data.parameters.stream"), (ReplyShape.CHAT, "stream")]
)
def test_an_endpoint_that_cannot_stream_refuses(service: Service, reply: ReplyShape, param: str) -> None:
    with pytest.raises(BadRequest, match="predict_stream") as refused:
        service.generate(replace(greedy(stream=True), reply=reply))
    assert refused.value.param == param


# --- log-probabilities ----------------------------------------------------------------------------


def test_logprobs_cover_the_text(service: Service) -> None:
    whole = only(service, greedy(logprobs=2, ignore_eos=True, max_new_tokens=24))
    assert whole.logprobs is not None
    assert b"".join(token.drawn.raw for token in whole.logprobs).decode() == whole.text
    assert all(len(token.top) == 2 for token in whole.logprobs)
    # Greedy: each token is the best of its alternatives.
    assert all(token.top[0] == token.drawn for token in whole.logprobs)


def test_logprobs_end_where_a_stop_string_cuts_the_text(service: Service) -> None:
    # Sampled by a fixed seed: what is greedy may repeat itself, and then all cuts are at the start.
    sampled = {"temperature": 1.0, "seed": 5, "max_new_tokens": 24, "logprobs": 0, "ignore_eos": True}
    whole = only(service, request(**sampled))
    assert whole.logprobs is not None
    borders = [sum(len(token.drawn.text) for token in whole.logprobs[:n]) for n in range(25)]
    cuts = set()
    for length in range(1, 20, 2):
        stop = whole.text[length : length + 3]
        cut = only(service, request(**sampled, stop=(stop,)))
        assert cut.logprobs is not None
        assert cut.text == whole.text[: whole.text.index(stop)]
        in_the_text = sum(border < len(cut.text) for border in borders)
        assert cut.logprobs == whole.logprobs[:in_the_text]
        cuts.add(in_the_text)
    assert len(cuts) > 2


def test_a_stop_string_at_the_very_start_leaves_no_logprobs(service: Service) -> None:
    first = only(service, greedy()).text[0]
    cut = only(service, greedy(logprobs=1, stop=(first,)))
    assert (cut.text, cut.logprobs, cut.finish_reason) == ("", (), "stop")


def test_logprobs_are_absent_unless_asked_for(service: Service) -> None:
    assert only(service, greedy()).logprobs is None


# --- deadlines ------------------------------------------------------------------------------------


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


# --- refusals and faults --------------------------------------------------------------------------


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


# --- admission ------------------------------------------------------------------------------------


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


# --- the log --------------------------------------------------------------------------------------


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


# --- a scripted engine: what a real one does rarely ------------------------------------------------


class Scripted:
    """Gives each sequence the same tokens; refuses sequences from number `full` on."""

    def __init__(self, *ids: int, full: int = 16) -> None:
        self.handles: list[Handle] = []
        self._ids = ids
        self._full = full

    def submit(self, *_: object, **__: object) -> Handle:
        if len(self.handles) == self._full:
            raise Unavailable("No more.")
        handle = Handle()
        for token_id in self._ids:
            handle.push(Token(token_id, -1.0))
        handle.finish("length")
        self.handles.append(handle)
        return handle


def scripted(variant: ModelVariant, tokenizer: Tokenizer, engine: Scripted) -> Service:
    return Service(variant, tokenizer, cast("Any", engine), Settings())


def test_logprobs_are_of_the_answers_tokens_where_bytes_make_no_character(nano_tokenizer: Tokenizer) -> None:
    """One byte that is no character becomes U+FFFD, which has three: counting bytes would let `c` in."""
    lone_byte = 3 + 0xFF
    ids = (lone_byte, *nano_tokenizer.encode_continuation("ab"), *nano_tokenizer.encode_continuation("c"))
    answer = only(scripted(NANO, nano_tokenizer, Scripted(*ids)), greedy(stop=("c",), logprobs=0))
    assert answer.text == "\ufffdab"
    assert answer.logprobs is not None
    assert "".join(token.drawn.text for token in answer.logprobs) == "\ufffdab"


def test_a_special_id_is_no_text_whatever_the_tokenizers_file_says() -> None:
    """The 70B's <step>: the tokenizer's file may not list it among the added tokens."""
    variant = CATALOG["codellama/CodeLlama-70b-Instruct-hf"]
    tokenizer = Tokenizer.from_folder(shared_tokenizer("codellama-7b"), variant.special_ids)
    engine = Scripted(*tokenizer.encode("done"), 32015)
    assert only(scripted(variant, tokenizer, engine), greedy()).text == " done"


def test_the_rows_special_ids_are_no_text_in_a_started_service(tmp_path: Path) -> None:
    """The checkpoint's own file says of none of its tokens that it is special."""
    for file in NANO_FOLDER.glob("*.*"):
        shutil.copy(file, tmp_path)
    layout = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps({**layout, "added_tokens": []}), encoding="utf-8")
    started = Service.start(ModelFiles(tmp_path, NANO), Settings())
    try:
        assert {started.tokenizer.piece(special) for special in NANO.special_ids} == {b""}
    finally:
        started.close()


def test_sequences_that_were_taken_are_cancelled_when_a_later_one_is_refused(nano_tokenizer: Tokenizer) -> None:
    engine = Scripted(full=2)
    with pytest.raises(Unavailable):
        scripted(NANO, nano_tokenizer, engine).generate(request(num_return_sequences=3, max_new_tokens=4))
    assert [handle.cancelled for handle in engine.handles] == [True, True]
