"""Requests of users that were once answered wrongly, each with the right answer; then their general cases."""

import json
from typing import Any, Final

import pytest

from llama_serving.contract import foreign_names, json_lines, openai, protocol, rows
from llama_serving.contract.details import completion_logprobs
from llama_serving.contract.request import Alternative, Dialog, Parameters, TokenLogprob
from llama_serving.errors import BadRequest
from llama_serving.service.service import Service
from tests.support.bad_bodies import assistant, user
from tests.support.endpoints import asked, model, predicted, record, refused, settled
from tests.support.shapes import generation

SHORT: Final = {"max_tokens": 3, "temperature": 0}
COMPLETIONS: Final = "/v1/completions"
CHAT: Final = "/v1/chat/completions"


# --- log-probabilities --------------------------------------------------------------------------------


def test_no_alternative_is_lost(service: Service) -> None:
    body = {"prompt": 'emoji = ["😀", "😁", "', "max_tokens": 2, "temperature": 1.0, "seed": 1, "logprobs": 5}
    told = asked(service, COMPLETIONS, body)["choices"][0]["logprobs"]
    assert [len(top) in (5, 6) for top in told["top_logprobs"]] == [True, True]
    for name, logprob, top in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
        assert top[name] == logprob


def test_alternatives_of_equal_text_are_told_apart() -> None:
    half, other_half = Alternative(200, b"\xf0", -1.0), Alternative(201, b"\xf0", -2.0)
    special, letter, byte = Alternative(2, b"", -3.0), Alternative(97, b"a", -4.0), Alternative(68, b"a", -5.0)
    told = completion_logprobs([TokenLogprob(byte, (half, other_half, special, letter), 0)])
    assert told["tokens"] == ["a"]
    assert told["top_logprobs"] == [
        {"bytes:\\xf0": -1.0, "token_id:201": -2.0, "token_id:2": -3.0, "token_id:97": -4.0, "a": -5.0}
    ]


@pytest.mark.parametrize(
    "more", [{}, {"return_tokens_as_token_ids": True}, {"return_token_ids": True}], ids=str
)
@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "# Größe: é è ê ë ", "max_tokens": 24, "temperature": 1.3, "seed": 0, "logprobs": 2},
        {"prompt": "def f(x):", "max_tokens": 6, "temperature": 0, "logprobs": 1},
    ],
    ids=["bytes", "words"],
)
def test_offsets_count_in_the_text(service: Service, body: dict[str, Any], more: dict[str, Any]) -> None:
    """Each is where the token's text stands; halves of one character stand where it does."""
    choice = asked(service, COMPLETIONS, {**body, **more})["choices"][0]
    request = openai.parse(body)
    ((sequence,),) = service.generate(request)
    assert sequence.logprobs is not None
    offsets = choice["logprobs"]["text_offset"][: len(sequence.logprobs)]
    assert offsets == sorted(offsets)
    for offset, token in zip(offsets, sequence.logprobs, strict=True):
        if not token.drawn.text.startswith("\ufffd"):
            assert sequence.text.startswith(token.drawn.text, offset)


def test_offsets_go_on_from_chunk_to_chunk(service: Service) -> None:
    body = {"prompt": "def f(x):", "max_tokens": 6, "temperature": 0, "logprobs": 1, "return_token_ids": True}
    whole = asked(service, COMPLETIONS, body)["choices"][0]["logprobs"]["text_offset"]
    events = asked(service, COMPLETIONS, {**body, "stream": True})
    pieces = [
        event["choices"][0]["logprobs"] for event in events if event["choices"][0]["finish_reason"] is None
    ]
    assert [offset for piece in pieces for offset in piece["text_offset"]] == whole
    assert len(pieces) > 2


def test_offsets_count_behind_the_prompt_where_it_is_shown(service: Service) -> None:
    given = {"max_new_tokens": 3, "do_sample": False, "logprobs": 0, "return_full_text": True}
    (row,) = asked(service, "/score", {"input_data": {"input_string": ["def f(x):"], "parameters": given}})
    told = row["details"][0]["logprobs"]
    assert told["text_offset"][0] == len("def f(x):")
    assert row["0"][told["text_offset"][1] :].startswith(told["tokens"][1])


@pytest.mark.parametrize("stream", [False, True])
def test_asking_for_logprobs_is_asking_for_details(service: Service, *, stream: bool) -> None:
    given = {"max_new_tokens": 3, "do_sample": False, "logprobs": 2}
    answer = asked(service, "/score", {"input_data": ["def f(x):"], "params": {**given, "stream": stream}})
    assert len(answer[-1]["details"][0]["logprobs"]["tokens"]) > 0
    streamed = predicted(service, {"input_string": ["def f(x):"], "parameters": given}, stream=True)
    assert streamed[-1]["details"][0]["logprobs"] == answer[-1]["details"][0]["logprobs"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "def f(x):", **SHORT, "logprobs": 2},
        {"messages": [user("a")], "logprobs": True, "top_logprobs": 2, "max_tokens": 3},
        {"input_string": "def f(x):", "parameters": {"max_tokens": 3, "logprobs": 2}},
    ],
)
def test_records_have_the_logprobs_that_were_asked_for(service: Service, row: dict[str, Any]) -> None:
    (told,) = record(service, row)["details"]
    assert all(len(top) >= 2 for top in told["logprobs"]["top_logprobs"])


def test_records_have_the_ids_that_were_asked_for(service: Service) -> None:
    (told,) = record(service, {"prompt": "def f(x):", "return_token_ids": True, "max_tokens": 3})["details"]
    assert len(told["token_ids"]) == told["usage"]["completion_tokens"]
    assert len(told["prompt_token_ids"]) == told["usage"]["prompt_tokens"]


# --- prompts and dialogs ------------------------------------------------------------------------------


def test_a_prompt_is_a_prompt(service: Service) -> None:
    short = {"max_new_tokens": 3, "do_sample": False}
    made = model(service)
    expected = made.predict(None, ["def f(x):"], short)
    assert made.predict(None, "def f(x):", short) == expected
    assert made.predict(None, {"inputs": "def f(x):"}, short) == expected
    for prompt in ("def f(x):", ["def f(x):"]):
        pieces = list(made.predict_stream(None, prompt, short))
        assert ["".join(piece["0"] for piece in pieces)] == expected
    assert asked(service, "/score", {"input_data": "def f(x):", "params": short}) == expected


def test_a_record_of_another_column_is_told_which_one_is_read(service: Service) -> None:
    error = refused(lambda: asked(service, "/invocations", {"dataframe_records": [{"prompt": "a"}]}))
    assert error is not None
    assert (error.param, "input_string" in error.message) == ("dataframe_records[0].input_string", True)


def test_a_dialog_in_the_place_of_prompts_is_a_dialog(service: Service) -> None:
    plain = asked(service, "/score", {"input_data": {"input_string": [user("a")]}, "params": SHORT})
    assert asked(service, "/score", {"input_data": [user("a")], "params": SHORT}) == plain
    assert plain.keys() == {"output"}


PARTS: Final = [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]


@pytest.mark.parametrize(
    "body",
    [
        {"input_data": {"input_string": [user(PARTS)]}},
        {"input_data": [user(PARTS)]},
        {"input_data": {"columns": ["input_string"], "data": [[[user(PARTS)]]]}},
        {"inputs": {"input_string": [user(PARTS)]}},
        {"dataframe_records": [{"input_string": [user(PARTS)]}]},
        {"messages": [user(PARTS)]},
    ],
    ids=lambda body: json.dumps(body)[:40],
)
def test_text_parts_are_text_at_every_endpoint(body: Any) -> None:
    (dialog,) = protocol.parse(body).inputs
    assert isinstance(dialog, Dialog)
    assert [(message.role, message.content) for message in dialog.messages] == [("user", "a")]


def test_text_parts_are_text_in_rows() -> None:
    (dialog,) = rows.request(rows.split({"messages": [user(PARTS)], "parameters": {}}), Parameters()).inputs
    assert isinstance(dialog, Dialog)


@pytest.mark.parametrize(
    ("messages", "turns"),
    [
        (
            [{"role": "system", "content": "a"}, {"role": "developer", "content": "b"},
             {"role": "user", "name": "ann", "content": "c"}],
            [("system", "a\n\nb"), ("user", "c")],
        ),
        ([user("a"), user("b")], [("user", "a\n\nb")]),
        ([user("a"), assistant("b"), assistant("c"), user("d")], [("user", "a"), ("assistant", "b\n\nc"), ("user", "d")]),
    ],
)  # fmt: skip
def test_dialogs_as_people_send_them(messages: Any, turns: Any) -> None:
    for body in ({"messages": messages}, {"input_data": {"input_string": messages}}):
        (dialog,) = protocol.parse(body).inputs
        assert isinstance(dialog, Dialog)
        assert [(message.role, message.content) for message in dialog.messages] == turns


def test_the_assistants_text_is_continued(service: Service) -> None:
    messages = [user("Reverse a list"), assistant("def reverse(")]
    body = {"messages": messages, "max_tokens": 3, "temperature": 0}
    error = refused(lambda: asked(service, CHAT, body))
    assert error is not None
    assert "`continue_final_message: true`" in error.message
    more = {"continue_final_message": True, "add_generation_prompt": False}
    answer = asked(service, CHAT, {**body, **more})
    given = {"max_new_tokens": 3, "do_sample": False, "continue_final_message": True}
    row = asked(service, "/score", {"input_data": {"input_string": messages, "parameters": given}})
    assert row["output"] == answer["choices"][0]["message"]["content"]
    read = service.builder.build(protocol.parse({**body, **more}).inputs[0])
    assert read.text.endswith("def reverse(")


# --- names and values ---------------------------------------------------------------------------------


def test_names_of_cards_and_servers_are_ours(service: Service) -> None:
    """`max_gen_len` stands in the sample of a Code Llama card on Azure."""
    given = {"top_p": 0.9, "temperature": 0.6, "max_gen_len": 96, "do_sample": True}
    request = protocol.parse(
        {"input_data": {"input_string": ["I believe the meaning of life is"], "parameters": given}}
    )
    assert request.parameters == Parameters(top_p=0.9, temperature=0.6, max_new_tokens=96, do_sample=True)
    request = protocol.parse({"input_data": {"input_string": ["x"], "parameters": {"stop_sequences": ["\n"]}}})
    assert request.parameters == Parameters(stop=("\n",))


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        ("stopSequences", "stop_sequences"), ("topP", "top_p"), ("topK", "top_k"), ("TOP_P", "top_p"), ("temp", "temperature"),
        ("min_length", "min_new_tokens"), ("greedy", "temperature"), ("max_length", "max_new_tokens"),
        ("maxTokens", "max_tokens"), ("maxOutputTokens", "max_new_tokens"), ("candidateCount", "num_return_sequences"),
        ("top-p", "top_p"), ("max_new_token", "max_new_tokens"), ("random_seed", "seed"),
    ],
)  # fmt: skip
def test_foreign_names_are_told_ours(foreign: str, ours: str) -> None:
    with pytest.raises(BadRequest, match=f"`{ours}") as refusal:
        protocol.parse({"input_data": {"input_string": ["x"], "parameters": {foreign: 1}}})
    assert refusal.value.code == "unknown_field"


def test_on_openais_routes_foreign_names_are_told_openais() -> None:
    with pytest.raises(BadRequest, match="Did you mean `max_tokens`"):
        protocol.parse({"prompt": "x", "maxOutputTokens": 1})


@pytest.mark.parametrize(
    "given",
    [
        {"stop": ["</s>"], "stop_sequences": "</s>"},
        {"max_new_tokens": 5, "max_tokens": 5.0, "num_predict": 5},
        {"n": 1, "num_return_sequences": 1},
    ],
)
def test_one_value_under_two_names_is_one_parameter(given: dict[str, Any]) -> None:
    """PyRIT and prompt flow send the names of several servers."""
    first = dict([next(iter(given.items()))])
    for body in ({"input_data": ["x"], "params": given}, {"inputs": ["x"], "parameters": given}):
        asked_once = protocol.parse({**body, next(name for name in body if name[0] == "p"): first})
        assert protocol.parse(body).parameters == asked_once.parameters


@pytest.mark.parametrize(
    "given", [{"stop": "a", "stop_sequences": "b"}, {"max_new_tokens": 5, "max_tokens": 6}]
)
def test_two_values_of_one_parameter_compete(given: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as refusal:
        protocol.parse({"input_data": ["x"], "params": given})
    assert (refusal.value.code, refusal.value.param) == ("competing_fields", f"params.{[*given][1]}")


@pytest.mark.parametrize("place", ["parameters", "params"])
def test_inputs_is_input_data_to_score(service: Service, place: str) -> None:
    """LangChain's formatter for GPT-2 sends that to an endpoint of Azure's."""
    body = {"inputs": {"input_string": ["def f(x):"]}, place: SHORT}
    ((plain,),) = [asked(service, "/score", {"input_data": ["def f(x):"], place: SHORT})]
    assert asked(service, "/score", body) == [{"0": plain}]
    both = refused(lambda: asked(service, "/score", {**body, "input_data": ["x"]}))
    assert both is not None
    assert (both.code, both.param) == ("competing_fields", "inputs")


def test_fields_without_effect_pass_and_are_carried_along() -> None:
    free = {"user": "u", "metadata": {"a": 1}, "store": True, "safety_identifier": "s", "prompt_cache_key": "k",
            "prompt_cache_retention": "24h"}  # fmt: skip
    for body in ({"prompt": "x"}, {"messages": [user("x")]}):
        assert protocol.parse({**body, **free}) == protocol.parse(body)
        assert rows.split({**body, **free}).extra == free


def test_letters_alone_mean_nothing() -> None:
    assert foreign_names.meant("top_z", ("top_p", "top_k", "stop")) == ""
    assert foreign_names.meant("sequences", ("num_return_sequences", "stop_sequences")) == ""


@pytest.mark.parametrize(
    ("body", "plain"),
    [
        ({"messages": [user("a")], "response_format": {"type": "text"}, "logit_bias": {}, "tools": [],
          "tool_choice": "none", "parallel_tool_calls": False, "service_tier": "auto", "modalities": ["text"],
          "functions": [], "top_logprobs": 0, "add_special_tokens": False}, {"messages": [user("a")]}),
        ({"prompt": "a", "best_of": 1, "logprobs": False, "stop": "", "stream_options": {}, "suffix": None,
          "add_special_tokens": True},
         {"prompt": "a"}),
        ({"input_data": {"input_string": ["x"], "parameters": {"seed": 3}}, "params": {}},
         {"input_data": {"input_string": ["x"], "parameters": {"seed": 3}}}),
        ({"input_data": {"input_string": ["x"], "parameters": {"num_beams": 1, "seed": 3}}},
         {"input_data": {"input_string": ["x"], "parameters": {"seed": 3}}}),
        ({"input_data": {"input_string": ["x"], "parameters": {"top_k": -1}}},
         {"input_data": {"input_string": ["x"], "parameters": {"top_k": 0}}}),
    ],
)  # fmt: skip
def test_what_asks_for_nothing_passes(body: Any, plain: Any) -> None:
    assert protocol.parse(body) == protocol.parse(plain)


def test_refusals_use_the_protocols_names(service: Service) -> None:
    error = refused(lambda: asked(service, COMPLETIONS, {"prompt": "a", "n": 3, "temperature": 0}))
    assert error is not None
    assert error.param == "n"
    error = refused(lambda: asked(service, COMPLETIONS, {"prompt": "a", "max_tokens": 2, "min_tokens": 3}))
    assert error is not None
    assert (error.param, "max_tokens is 2" in error.message) == ("min_tokens", True)


def test_a_full_context_is_said_in_openais_words(service: Service) -> None:
    error = refused(lambda: asked(service, CHAT, {"messages": [user("x " * 3000)], "max_tokens": 3}))
    assert error is not None
    told = error.body(openai=True)["error"]
    assert told["code"] == "context_length_exceeded"
    assert "This model's maximum context length is 2048 tokens" in told["message"]
    assert "`max_tokens`" in told["message"]
    assert error.body()["error"]["code"] == "context_exceeded"


@pytest.mark.parametrize("body", [{"prompt": "a"}, {"messages": [user("a")]}])
def test_finish_reasons_are_openais(body: Any) -> None:
    request = openai.parse(body)
    (choice,) = openai.answer(request, ((generation(reason="deadline"),),), "m")["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "deadline")
    (choice,) = openai.answer(request, ((generation(),),), "m")["choices"]
    assert "stop_reason" not in choice


def test_an_echoed_separator_is_escaped_in_events_and_records(service: Service) -> None:
    body = {"prompt": 'a = "x\u2028y"\n', "echo": True, "max_tokens": 3}
    (event, *_) = asked(service, COMPLETIONS, {**body, "stream": True})
    assert len(json_lines.json_line(event).splitlines()) == 1
    answer = settled(asked(service, COMPLETIONS, body))
    assert "\u2028" in answer["choices"][0]["text"]
    assert "\u2028" in record(service, body)["output"]
