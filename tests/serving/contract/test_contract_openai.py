"""OpenAI's two routes: body 8 in, OpenAI's objects out, and what this server does not support."""

import re
from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_serving.contract import openai, protocol
from llama_serving.contract.adapter import events_of
from llama_serving.contract.request import (
    Completion,
    Delta,
    Dialog,
    Infill,
    Input,
    Message,
    Parameters,
    ReplyShape,
    Request,
    TokenIds,
)
from llama_serving.contract.validation import schema
from llama_serving.errors import BadRequest
from llama_serving.service.service import Service
from tests.support.bad_bodies import (
    CALLING,
    EDGES,
    LLAMACPPS,
    NO_EFFECT,
    OPENAI_REFUSED_BY_THE_MODEL,
    SECRET,
    UNSUPPORTED,
    WRONG_OPENAI,
    Bad,
    assistant,
    field,
    user,
)
from tests.support.shapes import LOGPROBS, generation, shape

CHAT: Final[dict[str, Any]] = {"messages": [user()]}
COMPLETION: Final[dict[str, Any]] = {"prompt": SECRET}
SMALL: Final = {"max_tokens": 4, "seed": 7}
USAGE: Final = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
IDS: Final = ("stop_token_ids", "return_token_ids", "return_tokens_as_token_ids")
"""vLLM's fields beside OpenAI's, of completions alone."""
ROUTES: Final = {"openai-completions": COMPLETION, "openai-chat": CHAT}


# --- body -> request --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "inputs", "paths"),
    [
        ({"prompt": "a"}, (Completion("a"),), ("prompt",)),
        ({"prompt": ["a", "b"]}, (Completion("a"), Completion("b")), ("prompt[0]", "prompt[1]")),
        ({"prompt": [1, 2.0, 3]}, (TokenIds((1, 2, 3)),), ("prompt",)),
        ({"prompt": [[1], [2, 3]]}, (TokenIds((1,)), TokenIds((2, 3))), ("prompt[0]", "prompt[1]")),
        ({"prompt": "a", "suffix": "b"}, (Infill("a", "b"),), ("prompt",)),
        ({"prompt": "a", "suffix": ""}, (Infill("a", ""),), ("prompt",)),
        ({"prompt": "", "suffix": "b"}, (Infill("", "b"),), ("prompt",)),
        ({"prompt": "a<FILL_ME>b", "suffix": "c"}, (Infill("a<FILL_ME>b", "c"),), ("prompt",)),
        ({"prompt": ["a<FILL_ME>b"]}, (Infill("a", "b"),), ("prompt[0]",)),
        ({"prompt": "a", "suffix": None}, (Completion("a"),), ("prompt",)),
    ],
)
def test_completions_are_understood(body: Any, inputs: tuple[Input, ...], paths: tuple[str, ...]) -> None:
    assert openai.parse(body) == Request(inputs, Parameters(), ReplyShape.COMPLETION, paths, "", ceiling=True)


@pytest.mark.parametrize(
    ("messages", "turns", "unfold"),
    [
        ([user("a")], (Message("user", "a"),), True),
        ([user([{"type": "text", "text": " a"}, {"type": "text", "text": "b\n"}])], (Message("user", " ab\n"),),
         True),
        ([{"role": "system", "content": ""}, user("a")], (Message("system", ""), Message("user", "a")), False),
        ([user("a"), assistant(""), user("b")],
         (Message("user", "a"), Message("assistant", ""), Message("user", "b")), False),
    ],
)  # fmt: skip
def test_chats_are_understood(messages: Any, turns: tuple[Message, ...], *, unfold: bool) -> None:
    request = openai.parse({"messages": messages, "model": "any"})
    assert request.inputs == (Dialog(turns, unfold),)
    assert (request.reply, request.paths, request.model) == (ReplyShape.CHAT, ("messages",), "any")
    assert request.ceiling


@settings(deadline=None)
@given(prompts=st.lists(st.text(min_size=1).filter(lambda text: "<FILL_ME>" not in text), min_size=1))
def test_no_prompt_is_changed(prompts: list[str]) -> None:
    assert openai.parse({"prompt": prompts}).inputs == tuple(map(Completion, prompts))
    parts = [{"type": "text", "text": prompt} for prompt in prompts]
    (dialog,) = openai.parse({"messages": [user(parts)]}).inputs
    assert dialog == Dialog((Message("user", "".join(prompts)),), unfold=True)


@settings(deadline=None)
@given(ids=st.lists(st.lists(st.integers(0, 2**40), min_size=1), min_size=1))
def test_no_token_id_is_changed(ids: list[list[int]]) -> None:
    assert openai.parse({"prompt": ids}).inputs == tuple(TokenIds(tuple(one)) for one in ids)
    assert openai.parse({"prompt": ids[0]}).inputs == (TokenIds(tuple(ids[0])),)


@pytest.mark.parametrize("bad", WRONG_OPENAI, ids=lambda bad: bad.name)
def test_what_the_parser_refuses(bad: Bad) -> None:
    with pytest.raises(BadRequest) as refusal:
        openai.parse(bad.body)
    assert bad.fault(refusal.value.body(openai=True)) is None
    assert refusal.value.body(openai=True)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("name", ROUTES)
def test_every_field_is_read_or_refused(name: str) -> None:
    free = {"user", "metadata", "store", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
    known = {
        "prompt",
        "suffix",
        "messages",
        "model",
        "stream_options",
        "top_logprobs",
        "add_generation_prompt",
        "truncate_prompt_tokens",
        *IDS,
        *EDGES,
        *UNSUPPORTED,
        *CALLING,
        *NO_EFFECT,
        *LLAMACPPS,
    }
    assert schema(name)["properties"].keys() <= free | known
    assert schema(name)["properties"].keys() >= free | set(UNSUPPORTED)


# --- parameters -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "name", "value"),
    [
        (route, name, value)
        for route in ROUTES
        for name in EDGES
        if name != "logprobs" and name in schema(route)["properties"]
        for value in EDGES[name].accepted
        if (name, value) != ("continue_final_message", True)
    ],
)
def test_parameters_are_read_under_openai_s_names(route: str, name: str, value: Any) -> None:
    asked = openai.parse({**ROUTES[route], name: value}).parameters
    assert asked == Parameters(**field(name, value))


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("field", ["user", "metadata", "store", "stream_options", *UNSUPPORTED, *CALLING])
def test_null_is_absent(name: str, field: str) -> None:
    assert openai.parse({**ROUTES[name], field: None}) == openai.parse(ROUTES[name])


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize(("field", "value"), [("user", "x"), ("metadata", {"a": [1]}), ("store", True)])
def test_fields_without_effect_pass(name: str, field: str, value: Any) -> None:
    assert openai.parse({**ROUTES[name], field: value}) == openai.parse(ROUTES[name])


@pytest.mark.parametrize(
    ("body", "logprobs"),
    [
        (COMPLETION, None),
        ({**COMPLETION, "logprobs": 0}, 0),
        ({**COMPLETION, "logprobs": 5}, 5),
        (CHAT, None),
        ({**CHAT, "logprobs": False}, None),
        ({**CHAT, "logprobs": True}, 0),
        ({**CHAT, "logprobs": True, "top_logprobs": None}, 0),
        ({**CHAT, "logprobs": True, "top_logprobs": 5}, 5),
    ],
)
def test_logprobs_are_asked_for_as_openai_has_it(body: Any, logprobs: int | None) -> None:
    assert openai.parse(body).parameters == Parameters(logprobs=logprobs)


def test_echo_without_logprobs() -> None:
    assert openai.parse({**COMPLETION, "echo": True}).parameters == Parameters(return_full_text=True)


def test_token_ids_are_asked_for_as_vllm_has_it() -> None:
    asked = openai.parse(
        {
            **COMPLETION,
            "stop_token_ids": [2, 7.0, 2],
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
    )
    assert (asked.stop_token_ids, asked.return_token_ids, asked.tokens_as_ids) == ({2, 7}, True, True)
    assert openai.parse({**COMPLETION, **dict.fromkeys(IDS)}) == openai.parse(COMPLETION)


# --- answers ----------------------------------------------------------------------------------------


def head(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key not in ("choices", "usage")}


@pytest.mark.parametrize(
    ("body", "kind", "prefix"), [(COMPLETION, "text_completion", "cmpl"), (CHAT, "chat.completion", "chatcmpl")]
)
def test_the_head_of_an_answer(body: Any, kind: str, prefix: str) -> None:
    request = openai.parse(body)
    first, second = (openai.answer(request, ((generation(),),), "nano") for _ in range(2))
    assert re.fullmatch(rf"{prefix}-[0-9a-f]{{32}}", first["id"])
    assert first["id"] != second["id"]
    assert head(first) | {"id": "", "created": 0} == {"id": "", "object": kind, "created": 0, "model": "nano"}


def test_choices_are_numbered_through_all_prompts() -> None:
    request = openai.parse({"prompt": ["a", "b"], "n": 2})
    two = (generation("x", usage=(3, 2)), generation("y", before="b", reason="length", usage=(3, 1)))
    answer = openai.answer(request, (two, two), "m")
    assert answer["choices"] == [
        {"index": 0, "text": "x", "finish_reason": "stop", "logprobs": None},
        {"index": 1, "text": "by", "finish_reason": "length", "logprobs": None},
        {"index": 2, "text": "x", "finish_reason": "stop", "logprobs": None},
        {"index": 3, "text": "by", "finish_reason": "length", "logprobs": None},
    ]
    assert answer["usage"] == {"prompt_tokens": 6, "completion_tokens": 6, "total_tokens": 12}


def test_a_chat_s_choice() -> None:
    answer = openai.answer(openai.parse(CHAT), ((generation("x", reason="deadline"),),), "m")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "x"},
            "finish_reason": "length",
            "stop_reason": "deadline",
            "logprobs": None,
        }
    ]


def test_logprobs_of_both_kinds() -> None:
    generations = ((generation("aé", logprobs=LOGPROBS),),)
    completion = openai.answer(openai.parse({**COMPLETION, "logprobs": 2}), generations, "m")
    assert completion["choices"][0]["logprobs"]["text_offset"] == [0, 1]
    chat = openai.answer(openai.parse({**CHAT, "logprobs": True}), generations, "m")
    assert chat["choices"][0]["logprobs"] == {
        "content": [
            {
                "token": "a",
                "bytes": [97],
                "logprob": -0.5,
                "top_logprobs": [
                    {"token": "a", "bytes": [97], "logprob": -0.5},
                    {"token": "b", "bytes": [98], "logprob": -1.5},
                ],
            },
            {
                "token": "é",
                "bytes": [195, 169],
                "logprob": -0.25,
                "top_logprobs": [{"token": "é", "bytes": [195, 169], "logprob": -0.25}],
            },
        ]
    }


def streamed(body: Any, **how: Any) -> list[dict[str, Any]]:
    """The chunks of two sequences, each of one piece and its end."""
    ends = [generation("x", reason="length", **how) for _ in range(2)]
    deltas = [delta for n, end in enumerate(ends) for delta in (Delta(n, "x"), Delta(n, "", end))]
    return list(events_of(openai.Chunks(openai.parse(body), "m"), deltas))


@pytest.mark.parametrize(
    ("body", "kind", "first", "next_"),
    [
        (COMPLETION, "text_completion", {"text": "x"}, {"text": ""}),
        (CHAT, "chat.completion.chunk", {"delta": {"role": "assistant", "content": "x"}}, {"delta": {"content": ""}}),
    ],
)  # fmt: skip
def test_chunks(body: Any, kind: str, first: dict[str, Any], next_: dict[str, Any]) -> None:
    chunks = streamed(body)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {(chunk["object"], chunk["model"]) for chunk in chunks} == {(kind, "m")}
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": n, **text, "finish_reason": reason, "logprobs": None}]
        for n in range(2)
        for text, reason in ((first, None), (next_, "length"))
    ]


def test_chunks_end_with_the_usage_that_was_asked_for() -> None:
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    *_, last = streamed({**CHAT, **stream})
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert len(streamed({**CHAT, **stream, "stream_options": {"include_usage": False}})) == 4


@pytest.mark.parametrize(
    ("body", "key"),
    [({**COMPLETION, "logprobs": 1}, "tokens"), ({**CHAT, "logprobs": True}, "content")],
)
def test_the_end_of_a_sequence_has_its_logprobs(body: Any, key: str) -> None:
    first, end, *_ = streamed(body, logprobs=LOGPROBS)
    assert first["choices"][0]["logprobs"] is None
    assert len(end["choices"][0]["logprobs"][key]) == len(LOGPROBS)


def test_token_ids_come_where_they_are_asked_for() -> None:
    body = {**COMPLETION, "return_token_ids": True, "logprobs": 1}
    made = openai.Chunks(openai.parse(body), "m")
    deltas = [
        Delta(0, "", prompt_token_ids=(1, 5), token_ids=(7,), logprobs=LOGPROBS[:1]),
        Delta(0, "aé", token_ids=(8, 2), logprobs=LOGPROBS),
        Delta(0, "", generation(logprobs=LOGPROBS)),
    ]
    choices = [chunk["choices"][0] for delta in deltas for chunk in made.of(delta)]
    assert [one["prompt_token_ids"] for one in choices] == [[1, 5], None, None]
    assert [one["token_ids"] for one in choices] == [[7], [8, 2], []]
    assert [one["logprobs"] and one["logprobs"]["tokens"] for one in choices] == [["a"], ["a", "é"], None]
    whole = replace(generation(), prompt_token_ids=(1, 5), token_ids=(7, 8, 2))
    for asked, has in ((body, True), (COMPLETION, False)):
        (choice,) = openai.answer(openai.parse(asked), ((whole,),), "m")["choices"]
        assert (choice.get("prompt_token_ids"), choice.get("token_ids")) == (([1, 5], [7, 8, 2]) if has else (None, None))  # fmt: skip


# --- with the embedded model ------------------------------------------------------------------------


def ask(service: Service, body: Any) -> Any:
    request = openai.parse(body)
    return protocol.answer(request, service.generate(request), service.variant.name)


CHOICE: Final = {"index": 0, "text": "text", "finish_reason": "text", "logprobs": None}
MESSAGE: Final = {"role": "text", "content": "text"}


@pytest.mark.parametrize(
    ("body", "choices"),
    [
        ({"prompt": "a"}, [CHOICE]),
        ({"prompt": ["a", "b"]}, [CHOICE, CHOICE]),
        ({"prompt": "a", "n": 2}, [CHOICE, CHOICE]),
        ({"prompt": [1, 5]}, [CHOICE]),
        ({"prompt": [[1, 5], [1]]}, [CHOICE, CHOICE]),
        ({"prompt": "a", "suffix": "b"}, [CHOICE]),
        ({"prompt": "", "suffix": "b"}, [CHOICE]),
        (
            {"messages": [user("a")]},
            [{"index": 0, "message": MESSAGE, "finish_reason": "text", "logprobs": None}],
        ),
    ],
)
def test_the_embedded_model_s_answers(service: Service, body: Any, choices: object) -> None:
    answer = ask(service, {**body, **SMALL})
    assert shape(answer) == {
        "id": "text",
        "object": "text",
        "created": 0,
        "model": "text",
        "choices": choices,
        "usage": USAGE,
    }
    assert answer["model"] == "nano"


IDS_BODY: Final[dict[str, Any]] = {"prompt": "def f(", "suffix": "return x\n", "max_tokens": 12, "temperature": 0,
                                   "logprobs": 1, "return_token_ids": True, "return_tokens_as_token_ids": True}  # fmt: skip


def test_token_ids_of_the_embedded_model(service: Service) -> None:
    """The ids of prompt and completion are returned; streamed and whole."""
    answer = ask(service, IDS_BODY)
    (choice,) = answer["choices"]
    assert len(choice["prompt_token_ids"]) == answer["usage"]["prompt_tokens"]
    assert len(choice["token_ids"]) == answer["usage"]["completion_tokens"]
    assert choice["logprobs"]["tokens"] == [f"token_id:{i}" for i in choice["token_ids"]]
    # Its own ids are the same prompt; only what ends it has to be said.
    eot = service.tokenizer.special_id("▁<EOT>")
    again = {**IDS_BODY, "prompt": choice["prompt_token_ids"], "suffix": None, "stop_token_ids": [eot]}
    assert ask(service, again)["choices"][0]["token_ids"] == choice["token_ids"]
    request = openai.parse({**IDS_BODY, "stream": True})
    pieces = [one["choices"][0] for one in events_of(openai.Chunks(request, "m"), service.stream(request))]
    assert [i for one in pieces for i in one["token_ids"]] == choice["token_ids"]
    assert [one["prompt_token_ids"] for one in pieces] == [
        choice["prompt_token_ids"],
        *[None] * (len(pieces) - 1),
    ]
    assert all(len(one["logprobs"]["tokens"]) == len(one["token_ids"]) for one in pieces if one["token_ids"])
    assert "".join(one["text"] for one in pieces) == choice["text"]


def test_an_id_that_ends_the_text(service: Service) -> None:
    whole = ask(service, IDS_BODY)["choices"][0]["token_ids"]
    choice = ask(service, {**IDS_BODY, "stop_token_ids": [whole[3]]})["choices"][0]
    assert choice["token_ids"] == whole[: whole.index(whole[3]) + 1]
    assert choice["finish_reason"] == "stop"


def test_a_ceiling_is_cut_to_the_context(service: Service) -> None:
    answer = ask(service, {"prompt": "a " * 2000, "max_tokens": 10**9, "ignore_eos": True})
    assert answer["usage"]["total_tokens"] == 2048
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_whole_prompt_as_one_message_is_unfolded(service: Service) -> None:
    """As the Llama-2 model card sends it."""
    card = "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nSort a list. [/INST]"
    turns = [{"role": "system", "content": "Be brief."}, user("Sort a list.")]
    texts = [ask(service, {"messages": m, **SMALL})["choices"][0]["message"] for m in ([user(card)], turns)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("bad", OPENAI_REFUSED_BY_THE_MODEL, ids=lambda bad: bad.name)
def test_what_the_model_refuses_before_anything_runs(service: Service, bad: Bad) -> None:
    before = service.engine.stats()
    with pytest.raises(BadRequest) as refusal:
        ask(service, bad.body)
    assert bad.fault(refusal.value.body(openai=True)) is None
    assert service.engine.stats() == before
