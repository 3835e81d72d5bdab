"""What evaluations ask of a server: a prompt's log-probabilities, its tokens, a bias, and nothing but the prompt read."""

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.conftest import Answer, post
from tests.support.calls import metric
from tests.support.in_process import LocalServer, serving

PROMPT: Final = "def add(a, b):\n    return '🦙' + a"
DIALOG: Final = [{"role": "user", "content": "Reverse a list"}]


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with serving() as running:
        yield running


def complete(server: LocalServer, **body: Any) -> Any:
    answer = post(f"{server.url}/v1/completions", {"prompt": PROMPT, "temperature": 0, **body})
    assert answer.status == 200, answer.text
    return answer.json["choices"][0]


def chat(server: LocalServer, **body: Any) -> Any:
    answer = post(f"{server.url}/v1/chat/completions", {"messages": DIALOG, "temperature": 0, **body})
    assert answer.status == 200, answer.text
    return answer.json


def events(answer: Answer) -> list[Any]:
    return [
        json.loads(line.removeprefix("data: "))
        for line in answer.text.split("\n\n")
        if line.startswith("data: {")
    ]


def ids_of(server: LocalServer, **body: Any) -> list[int]:
    found: list[int] = post(f"{server.url}/tokenize", body).json["tokens"]
    return found


def test_an_echo_has_the_log_probabilities_of_prompt_and_text(server: LocalServer) -> None:
    """Each token's are those that it has where the text before it is the prompt."""
    ids = ids_of(server, prompt=PROMPT)
    whole = complete(server, echo=True, logprobs=2, max_tokens=3, ignore_eos=True)
    logprobs = whole["logprobs"]
    assert len(logprobs["tokens"]) == len(ids) + 3
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    assert whole["text"].startswith(PROMPT)
    for at, (name, offset) in enumerate(zip(logprobs["tokens"], logprobs["text_offset"], strict=True)):
        if name.startswith((" ", "\n", "def")) and at > 1:
            assert whole["text"][offset:].startswith(name)
        if 1 <= at < len(ids):
            before = complete(server, prompt=ids[:at], max_tokens=1, logprobs=2)["logprobs"]
            best = max(logprobs["top_logprobs"][at].values())
            assert before["token_logprobs"][0] == pytest.approx(best, abs=1e-3)


def test_the_prompt_alone_is_read(server: LocalServer) -> None:
    ids = ids_of(server, prompt=PROMPT)
    for body in ({"echo": True, "logprobs": 0}, {"echo": True}, {"prompt_logprobs": 1}):
        alone = complete(server, max_tokens=0, **body)
        assert alone["text"] == (PROMPT if "echo" in body else "")
        assert alone["finish_reason"] == "length"
    logprobs = complete(server, max_tokens=0, echo=True, logprobs=0)["logprobs"]
    assert logprobs == {
        name: each[: len(ids)] for name, each in complete(server, echo=True, logprobs=0)["logprobs"].items()
    }


def test_log_probabilities_of_a_prompt_by_id(server: LocalServer) -> None:
    ids = ids_of(server, prompt=PROMPT)
    of_echo = complete(server, max_tokens=0, echo=True, logprobs=0)["logprobs"]["token_logprobs"]
    found = complete(server, prompt_logprobs=2, max_tokens=1)["prompt_logprobs"]
    assert found[0] is None
    for token, expected, one in zip(ids[1:], of_echo[1:], found[1:], strict=True):
        assert one[str(token)]["logprob"] == expected
        ranks = [each["rank"] for each in one.values()]
        assert set(ranks) >= {1, 2}
        assert len(one) == len({*ranks, 1, 2})


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_has_them_once_and_its_ids(server: LocalServer, *, stream: bool) -> None:
    ids = ids_of(server, messages=DIALOG)
    body = {"max_tokens": 4, "prompt_logprobs": 0, "return_token_ids": True, "logprobs": True}
    whole = chat(server, **body, return_tokens_as_token_ids=True)
    choice = whole["choices"][0]
    assert whole["prompt_token_ids"] == ids
    assert len(choice["token_ids"]) == 4
    assert [one["token"] for one in choice["logprobs"]["content"]] == [
        f"token_id:{i}" for i in choice["token_ids"]
    ]
    assert [None if one is None else list(one) for one in whole["prompt_logprobs"]] == [
        None, *([str(i)] for i in ids[1:])
    ]  # fmt: skip
    if stream:
        sent = {"messages": DIALOG, "temperature": 0, "stream": True, **body}
        pieces = events(post(f"{server.url}/v1/chat/completions", sent))
        assert [one["prompt_token_ids"] for one in pieces if one["prompt_token_ids"]] == [ids]
        assert [i for one in pieces for i in one["choices"][0]["token_ids"]] == choice["token_ids"]
        assert [one["prompt_logprobs"] for one in pieces if "prompt_logprobs" in one] == [
            whole["prompt_logprobs"]
        ]


def test_ids_of_a_call_are_all_there(server: LocalServer) -> None:
    """Pieces without text have ids too."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    body = {"messages": DIALOG, "tools": [tool], "tool_choice": "required", "max_tokens": 30, "seed": 5,
            "return_token_ids": True}  # fmt: skip
    whole = post(f"{server.url}/v1/chat/completions", body).json["choices"][0]
    pieces = events(post(f"{server.url}/v1/chat/completions", {**body, "stream": True}))
    found = [i for one in pieces for i in one["choices"][0].get("token_ids", ())]
    assert found == whole["token_ids"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_usage_so_far_grows_to_that_of_the_end(server: LocalServer, path: str) -> None:
    prompt = {"prompt": PROMPT} if path == "/v1/completions" else {"messages": DIALOG}
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {**prompt, "n": 2, "seed": 3, "max_tokens": 6, "stream": True, "stream_options": options}
    pieces = events(post(server.url + path, body))
    counts = [one["usage"]["completion_tokens"] for one in pieces]
    assert counts == sorted(counts)
    assert counts[-2:] == [counts[-1]] * 2
    assert counts[0] >= 1
    assert pieces[-1]["choices"] == []
    plain = events(post(server.url + path, {**body, "stream_options": {"include_usage": True}}))
    assert [("usage" in one) for one in plain] == [False] * (len(plain) - 1) + [True]


def test_a_bias_decides(server: LocalServer) -> None:
    plain = complete(server, max_tokens=2, return_token_ids=True)
    banned = complete(
        server, max_tokens=2, return_token_ids=True, logit_bias={str(plain["token_ids"][0]): -100}
    )
    assert banned["token_ids"][0] != plain["token_ids"][0]
    forced = complete(server, max_tokens=3, return_token_ids=True, logit_bias={"100": 100}, logprobs=0)
    assert forced["token_ids"] == [100] * 3
    assert max(forced["logprobs"]["token_logprobs"]) < -1, "they are the model's own"
    outside = post(f"{server.url}/v1/completions", {"prompt": PROMPT, "logit_bias": {"4096": 1}})
    assert (outside.status, outside.json["error"]["param"]) == (400, "logit_bias")


def test_the_last_tokens_of_a_prompt_are_kept(server: LocalServer) -> None:
    ids = ids_of(server, prompt=PROMPT)
    short = complete(server, truncate_prompt_tokens=3, max_tokens=4, return_token_ids=True)
    assert short["prompt_token_ids"] == ids[-3:]
    assert (
        short["token_ids"]
        == complete(server, prompt=ids[-3:], max_tokens=4, return_token_ids=True)["token_ids"]
    )
    assert (
        complete(server, truncate_prompt_tokens=999, max_tokens=1, return_token_ids=True)["prompt_token_ids"]
        == ids
    )
    long = "x = 1\n" * 3000
    assert post(f"{server.url}/v1/completions", {"prompt": long, "max_tokens": 8}).status == 400
    for most in (8, 5000, None):
        kept = complete(server, truncate_prompt_tokens=-1, max_tokens=most, return_token_ids=True)
        assert kept["prompt_token_ids"] == ids, "it fits alone"
    for most, room in ((None, 256), (5000, 1024)):
        kept = complete(server, prompt=long, truncate_prompt_tokens=-1, max_tokens=most, ignore_eos=True, return_token_ids=True,
                        logit_bias={"100": 100}, stop="aaa")  # fmt: skip
        assert len(kept["prompt_token_ids"]) == 2048 - room
    fitted = complete(
        server, prompt=long, truncate_prompt_tokens=-1, max_tokens=8, ignore_eos=True, return_token_ids=True
    )
    assert len(fitted["prompt_token_ids"]) + 8 == 2048
    assert len(fitted["token_ids"]) == 8
    assert chat(server, truncate_prompt_tokens=5, max_tokens=1, return_token_ids=True)["prompt_token_ids"] == (
        ids_of(server, messages=DIALOG)[-5:]
    )  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
def test_text_far_above_the_context_is_not_encoded(server: LocalServer, path: str) -> None:
    long = "x" * 200_000
    prompts: list[dict[str, Any]] = [{"messages": [{"role": "user", "content": long}]}]
    if path != "/v1/chat/completions":
        prompts.append({"prompt": long})
    for prompt in prompts[-1:] if path == "/v1/completions" else prompts:
        body = prompt if path == "/tokenize" else {**prompt, "truncate_prompt_tokens": 5}
        answer = post(server.url + path, body)
        assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_value")
        assert "131072" in answer.text or "131,072" in answer.text


def test_one_sequence_reads_the_prompt_for_all(server: LocalServer) -> None:
    def read() -> float:
        return metric(server.url, "llama_prefix_cache_hit_tokens_total")

    body = {"prompt": PROMPT * 9, "n": 3, "seed": 5, "max_tokens": 2, "temperature": 1, "prompt_logprobs": 0}
    before = read()
    choices = post(f"{server.url}/v1/completions", body).json["choices"]
    assert choices[0]["prompt_logprobs"] == choices[1]["prompt_logprobs"] == choices[2]["prompt_logprobs"]
    assert len(choices[0]["prompt_logprobs"]) > 90
    assert read() > before, "the others reuse what it computes"
    pieces = events(post(f"{server.url}/v1/completions", {**body, "stream": True}))
    told = [one["choices"][0] for one in pieces if "prompt_logprobs" in one["choices"][0]]
    assert [one["index"] for one in told] == [0, 1, 2]
    assert [one["prompt_logprobs"] for one in told] == [choices[0]["prompt_logprobs"]] * 3


def test_a_stream_tells_of_the_prompt_with_the_first_token(server: LocalServer) -> None:
    """What ends the text does not take it away."""
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 9, "prompt_logprobs": 0, "stream": True}
    for more in ({}, {"echo": True}, {"return_token_ids": True}, {"stop": "e"}):
        choices = [one["choices"][0] for one in events(post(f"{server.url}/v1/completions", {**body, **more}))]
        assert sum("prompt_logprobs" in one for one in choices) == 1
        assert "prompt_logprobs" not in choices[-1] or len(choices) == 1 or "stop" in more


def test_tokens_as_vllm_tells_them(server: LocalServer) -> None:
    def tokens(**body: Any) -> Any:
        return post(f"{server.url}/tokenize", body).json

    whole = tokens(model="nano", prompt="def f(", return_token_strs=True)
    assert whole == {
        "count": 4,
        "max_model_len": 2048,
        "tokens": whole["tokens"],
        "token_strs": ["<s>", "▁def", "▁f", "("],
    }
    assert tokens(prompt="def f(", add_special_tokens=False)["tokens"] == whole["tokens"][1:]
    assert tokens(prompt="")["count"] == 1
    assert tokens(prompt="x" * 20_000)["count"] > 2048, "it counts what is too long, too"
    said = chat(server, max_tokens=1, return_token_ids=True)["prompt_token_ids"]
    assert tokens(messages=DIALOG, add_generation_prompt=True)["tokens"] == said
    back = post(f"{server.url}/detokenize", {"model": "nano", "tokens": whole["tokens"]})
    assert back.json["prompt"] == "def f("
    for body in ({"prompt": 5}, {"messages": []}, {"prompt": "a", "content": "b"}, {}):
        assert post(f"{server.url}/tokenize", body).status == 400
