"""Parameters that are not given, and ceilings."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from llama_serving.catalog import CATALOG, NANO
from llama_serving.contract.request import Completion, Infill, Request, TokenIds
from llama_serving.errors import BadRequest, SetupError
from llama_serving.prompts.tokenizer import Tokenizer
from llama_serving.sampling_params import SamplingParams
from llama_serving.service.service import Service, context_of
from llama_serving.settings import Settings
from tests.support.service_requests import of, request


def params_of(service: Service, asked: Request) -> tuple[SamplingParams, ...]:
    (work,) = service.prepare(asked)
    return work.params


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
