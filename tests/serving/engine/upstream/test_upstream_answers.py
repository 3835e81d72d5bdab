"""What is taken for an answer of the server."""

import json
from dataclasses import replace
from typing import Final

import pytest

from llama_serving.engine.upstream.engine import UpstreamEngine
from llama_serving.errors import InternalError, ServingError, Unavailable
from tests.support.upstream_engines import GREEDY, PROMPT, SECRET, read, run
from tests.support.upstreams import END, HEAD, FakeUpstream, chunk, usage

FIRST: Final = chunk([7], prompt_token_ids=list(PROMPT))


LENGTH: Final = chunk([8, 6], "length")


@pytest.mark.parametrize(
    ("events", "ids", "reason"),
    [
        ((FIRST, LENGTH, usage(3, 3), "[DONE]"), [7, 8, 6], "length"),
        ((FIRST, chunk([2], "stop"), usage(3, 2), "[DONE]"), [7, 2], "stop"),
        ((FIRST, chunk([], "deadline"), usage(3, 1), "[DONE]"), [7], "deadline"),
        # Half a character has no text; our own server has chunks of its own for the end.
        ((FIRST, chunk([8], text=""), chunk([9]), chunk([], "stop"), usage(3, 3), "[DONE]"), [7, 8, 9], "stop"),
    ],
)
def test_an_answer(events: tuple[object, ...], ids: list[int], reason: str) -> None:
    got, answer = read(*events)
    assert (got, answer.finish_reason, answer.complete) == (ids, reason, True)


@pytest.mark.parametrize(
    ("events", "says"),
    [
        (("{",), "no JSON"),
        (("[" * 100_000,), "no JSON"),
        (("[1]",), "no object"),
        (({"choices": None},), "one choice"),
        (({},), "one choice"),
        (({"choices": [FIRST["choices"][0]] * 2},), "one choice"),
        (({"choices": [7]},), "not the one asked for"),
        ((chunk([7], index=1),), "not the one asked for"),
        ((chunk([7], token_ids=None),), "without token ids"),
        ((chunk([7], token_ids=["7"]),), "without token ids"),
        ((chunk([7], token_ids=[True]),), "without token ids"),
        ((chunk([7], token_ids=[-1]),), "without token ids"),
        ((chunk([7]),), "without the ids of their prompt"),
        ((chunk([7], prompt_token_ids=[1, 1, 5, 6]),), "another prompt"),
        ((chunk([7], prompt_token_ids="ids"),), "another prompt"),
        ((FIRST, chunk([8, 6, 5])), "more tokens"),
        ((FIRST, LENGTH, chunk([5])), "behind the end"),
        ((FIRST, chunk([8], "length")), "not asked for"),
        ((FIRST, chunk([8], "stop")), "not asked for"),
        ((FIRST, chunk([8], "repetition")), "not asked for"),
        ((FIRST, chunk([8], 7)), "not asked for"),  # type: ignore[arg-type]
        ((FIRST, LENGTH, usage(3, 2)), "number of tokens"),
        ((FIRST, LENGTH, usage(4, 3)), "number of tokens"),
        ((FIRST, "[DONE]"), "before its sequence does"),
        ((FIRST, LENGTH, "[DONE]"), "before its sequence does"),
    ],
)
def test_what_is_no_answer(events: tuple[object, ...], says: str) -> None:
    with pytest.raises(InternalError, match=says) as fault:
        read(*events)
    assert fault.value.code == "upstream_error"


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        {"tokens": ["token_id:7"], "token_logprobs": [-1.0]},
        {"tokens": ["token_id:7"], "token_logprobs": [-1.0, -1.0], "top_logprobs": [{}]},
        {"tokens": ["token_id:8"], "token_logprobs": [-1.0], "top_logprobs": [{}]},
        {"tokens": ["x"], "token_logprobs": [-1.0], "top_logprobs": [{}]},
        {"tokens": ["token_id:7"], "token_logprobs": [None], "top_logprobs": [{}]},
        {"tokens": ["token_id:7"], "token_logprobs": [-1.0], "top_logprobs": [{"y": -1.0}]},
        {"tokens": [7], "token_logprobs": [-1.0], "top_logprobs": [{}]},
    ],
)
def test_log_probabilities_that_are_none(wrong: object) -> None:
    with pytest.raises(InternalError, match="log-probabilities"):
        read(chunk([7], logprobs=wrong, prompt_token_ids=list(PROMPT)), params=replace(GREEDY, logprobs=1))


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"message": SECRET, "type": "InternalServerError", "code": 500}, InternalError),
        ({"message": SECRET, "code": "internal_error"}, InternalError),
        (SECRET, InternalError),
        ({"message": SECRET, "code": "unavailable"}, Unavailable),
        ({"message": SECRET, "code": 503}, Unavailable),
    ],
)
def test_an_error_in_the_middle(said: object, kind: type[ServingError]) -> None:
    with pytest.raises(kind) as fault:
        read(FIRST, {"error": said})
    assert SECRET not in fault.value.message


@pytest.mark.parametrize("reason", ["abort", "cancelled"])
def test_a_sequence_that_the_server_gives_up(reason: str) -> None:
    with pytest.raises(Unavailable):
        read(FIRST, chunk([], reason))


def test_events_may_be_cut_anywhere(fake: FakeUpstream, own: UpstreamEngine) -> None:
    text = chunk([7], prompt_token_ids=list(PROMPT), text="é🦙")
    events = b"".join(
        b"data: " + json.dumps(one, ensure_ascii=False).encode() + b"\r\n\r\n"
        for one in (text, LENGTH, usage(3, 3))
    )
    content = b": a comment\n\n" + events + b"data: [DONE]\n\n"
    fake.answers.append([HEAD, *(b"1\r\n%c\r\n" % byte for byte in content), END])
    assert run(own) == ([7, 8, 6], "length", None)
