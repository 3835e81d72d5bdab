"""The text of an answer, whole and streamed."""

from dataclasses import replace
from typing import Any, Final, cast

import pytest

from llama_serving.catalog import NANO
from llama_serving.contract.request import (
    Completion,
    Dialog,
    Infill,
    Input,
    Message,
    ReplyShape,
    TokenIds,
)
from llama_serving.errors import BadRequest
from llama_serving.sampling_params import SamplingParams
from llama_serving.service.service import Service
from llama_serving.settings import Settings
from tests.support.draws import PATIENCE_S, BeforeDraw, Gate
from tests.support.service_requests import TEXT, greedy, only, request

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
