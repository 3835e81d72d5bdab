"""What the server is asked, and log-probabilities that come back."""

import json
from dataclasses import replace
from typing import Any, Final

import pytest

from llama_serving.engine.handle import Token
from llama_serving.engine.upstream.engine import UpstreamEngine
from llama_serving.engine.upstream.remote import KINDS, TOKENS_PER_EVENT, RemoteServer
from llama_serving.engine.upstream.stream_parser import StreamedCompletion
from llama_serving.errors import BadRequest, InternalError
from llama_serving.sampling_params import SamplingParams
from tests.support.upstream_engines import GREEDY, PROMPT, read, run, running
from tests.support.upstreams import MODEL, FakeUpstream, chunk, stream, usage, whole

SERVER: Final = RemoteServer(KINDS["vllm"], "0.32.0", MODEL, 2048)


def test_ids_go_in_and_come_out(fake: FakeUpstream, own: UpstreamEngine) -> None:
    fake.answers.append(stream(whole(PROMPT, [7, 8, 9])))
    assert run(own) == ([7, 8, 9], "length", None)
    assert fake.asked[0]["prompt"] == [1, 5, 6]
    stats = own.stats()
    assert (stats.engine, stats.backend) == ("upstream", f"vLLM 0.32.0 at {fake.url}")
    assert (stats.sequences, stats.tokens_in, stats.tokens_out) == (1, 3, 3)
    assert (stats.alive, stats.away, stats.running, stats.waiting) == (True, False, 0, 0)
    assert own.capacity == 2048


def test_every_field_is_decided_here() -> None:
    params = SamplingParams(
        max_new_tokens=7, min_new_tokens=2, temperature=0.7, top_p=0.9, top_k=40, min_p=0.1, repetition_penalty=1.2,
        presence_penalty=-0.5, frequency_penalty=0.25, stop_ids=frozenset({9, 2}), seed=2**63 - 1, logprobs=3,
    )  # fmt: skip
    assert SERVER.body(PROMPT, params) == {
        "model": MODEL, "prompt": [1, 5, 6], "stream": True, "stream_options": {"include_usage": True},
        "return_token_ids": True, "max_tokens": 7, "min_tokens": 2, "temperature": 0.7, "top_p": 0.9, "top_k": 40,
        "min_p": 0.1, "repetition_penalty": 1.2, "presence_penalty": -0.5, "frequency_penalty": 0.25,
        "stop_token_ids": [2, 9], "ignore_eos": True, "seed": 2**63 - 1, "logprobs": 3,
        "return_tokens_as_token_ids": True,
    }  # fmt: skip


def test_tokens_that_are_not_streamed_may_come_together(fake: FakeUpstream, own: UpstreamEngine) -> None:
    fake.answers.extend(stream(whole(PROMPT, [7, 8, 9])) for _ in range(3))
    run(own)
    run(own, streamed=False)
    run(
        own, streamed=False, stop=lambda _: False
    )  # (a token behind a stop string would be computed for nothing)
    assert [asked.get("stream_interval") for asked in fake.asked] == [None, TOKENS_PER_EVENT, None]
    # Our own server behind us refuses names that it does not know.
    assert "stream_interval" not in replace(SERVER, kind=KINDS["llama-endpoints"]).body(
        PROMPT, GREEDY, streamed=False
    )


def test_our_own_server_s_name_of_the_least_tokens() -> None:
    body = replace(SERVER, kind=KINDS["llama-endpoints"]).body(PROMPT, replace(GREEDY, min_new_tokens=2))
    assert body["min_new_tokens"] == 2
    assert "min_tokens" not in body


def test_each_sequence_of_a_request_has_a_seed_of_its_own() -> None:
    seeds = [SERVER.body(PROMPT, replace(GREEDY, seed=5, index=index))["seed"] for index in range(16)]
    assert seeds[0] == 5
    assert len(set(seeds)) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [SERVER.body(PROMPT, replace(GREEDY, seed=5, index=index))["seed"] for index in range(16)]
    assert seeds[1] != SERVER.body(PROMPT, replace(GREEDY, seed=6, index=1))["seed"]


def test_a_temperature_that_vllm_would_raise_is_refused(fake: FakeUpstream, own: UpstreamEngine) -> None:
    with pytest.raises(BadRequest, match=r"`temperature` must be 0 or at least 0\.01 .* not 0\.005"):
        own.submit(PROMPT, replace(GREEDY, temperature=0.005))
    assert fake.asked == []
    assert run(own, replace(GREEDY, temperature=0.01))[2] is None
    ours = replace(SERVER, kind=KINDS["llama-endpoints"])
    assert ours.body(PROMPT, replace(GREEDY, temperature=0.005))["temperature"] == 0.005


def test_log_probabilities(fake: FakeUpstream, own: UpstreamEngine) -> None:
    logprobs = {
        "text_offset": [0, 1], "tokens": ["token_id:7", "token_id:8"], "token_logprobs": [-2.0, -0.5],
        # vLLM: the drawn one first, and one more than was asked for where it is not among the best.
        "top_logprobs": [{"token_id:7": -2.0, "token_id:3": -0.1, "token_id:4": -1.5},
                         {"token_id:8": -0.5, "token_id:6": -1.0}],
    }  # fmt: skip
    first = chunk([7, 8], "length", logprobs=logprobs, prompt_token_ids=list(PROMPT))
    fake.answers.append(stream([first, usage(3, 2), "[DONE]"]))
    handle = own.submit(PROMPT, replace(GREEDY, max_new_tokens=2, logprobs=2))
    assert list(handle) == [
        Token(7, -2.0, ((3, -0.1), (4, -1.5))),
        Token(8, -0.5, ((8, -0.5), (6, -1.0))),
    ]


TOLD: Final = {
    "text_offset": [0, 0, 0, 0], "tokens": ["token_id:1", "token_id:5", "token_id:6", "token_id:7"],
    "token_logprobs": [None, -2.0, -0.5, -1.0],
    "top_logprobs": [None, {"token_id:5": -2.0, "token_id:3": -0.1}, {"token_id:6": -0.5}, {"token_id:7": -1.0}],
}  # fmt: skip
"""vLLM's log-probabilities of the echoed prompt and of one token."""


FIELD: Final = [
    None,
    {"5": {"logprob": -2.0, "rank": 9, "decoded_token": "a"}, "3": {"logprob": -0.1, "rank": 1, "decoded_token": "b"}},
    {"6": {"logprob": -0.5, "rank": 1, "decoded_token": "c"}},
]  # fmt: skip
"""Ours, of the same prompt."""


@pytest.mark.parametrize("new", [0, 1])
def test_log_probabilities_of_a_prompt(fake: FakeUpstream, own: UpstreamEngine, new: int) -> None:
    first = chunk([7], "length", logprobs=TOLD, prompt_token_ids=list(PROMPT))
    fake.answers.append(stream([first, usage(3, 1), "[DONE]"]))
    handle = own.submit(PROMPT, SamplingParams(max_new_tokens=new, prompt_logprobs=1))
    assert list(handle) == [Token(7)][:new]
    assert handle.prompt == [Token(5, -2.0, ((3, -0.1),)), Token(6, -0.5, ((6, -0.5),), 1)]
    assert handle.finish_reason == "length"
    asked = fake.asked[0]
    assert (asked["max_tokens"], asked["echo"], asked["logprobs"]) == (1, True, 1)


def test_log_probabilities_of_a_prompt_of_one_token() -> None:
    said = {"tokens": ["token_id:5", "token_id:7"], "token_logprobs": [None, -1.0],
            "top_logprobs": [None, {"token_id:7": -1.0}]}  # fmt: skip
    for logprobs, expected in ((None, Token(7)), (0, Token(7, -1.0))):
        answer = StreamedCompletion(
            (5,), SamplingParams(max_new_tokens=1, prompt_logprobs=0, logprobs=logprobs)
        )
        event = json.dumps(chunk([7], "length", logprobs=said, prompt_token_ids=[5]))
        assert (answer.read(event), answer.prompt) == ([expected], [])


def test_log_probabilities_of_a_prompt_from_our_own_server() -> None:
    params = SamplingParams(max_new_tokens=1, prompt_logprobs=1)
    answer = StreamedCompletion(PROMPT, params)
    said = chunk([7], "length", prompt_logprobs=FIELD, prompt_token_ids=list(PROMPT))
    assert answer.read(json.dumps(said)) == [Token(7)]
    assert answer.prompt == [Token(5, -2.0, ((3, -0.1),), 9), Token(6, -0.5, ((6, -0.5),), 1)]
    body = replace(SERVER, kind=KINDS["llama-endpoints"]).body(PROMPT, params)
    assert (body["prompt_logprobs"], "echo" in body, "logprobs" in body) == (1, False, False)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"logprobs": {**TOLD, "tokens": ["token_id:1", "token_id:6", "token_id:5", "token_id:7"]}},
        {"logprobs": {name: each[:2] for name, each in TOLD.items()}},
        {"prompt_logprobs": FIELD[:2]},
        {"prompt_logprobs": [None, {"6": FIELD[1]["5"]}, FIELD[2]]},
        {"prompt_logprobs": [None, {"5": {}}, FIELD[2]]},
        {"prompt_logprobs": 5},
    ],
)  # fmt: skip
def test_log_probabilities_of_another_prompt_or_none(wrong: dict[str, Any]) -> None:
    params = SamplingParams(max_new_tokens=1, prompt_logprobs=1)
    with pytest.raises(InternalError, match="log-probabilities"):
        read(chunk([7], "length", **wrong, prompt_token_ids=list(PROMPT)), usage(3, 1), "[DONE]", params=params)


def test_a_key_is_sent(fake: FakeUpstream) -> None:
    with running(fake, key="k"):
        pass
    assert all("Authorization: Bearer k\r\n" in head for head in fake.headers)
    assert fake.headers


def test_a_proxy_of_the_shell_s_is_not_between(fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with running(fake) as own:
        assert run(own)[1] == "length"
