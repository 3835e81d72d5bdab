"""`/score`: bodies 1 to 6 in, their answers out, and what is refused on the way."""

from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_serving.contract import azure
from llama_serving.contract.parameters import ALIASES
from llama_serving.contract.request import (
    FILL_MARKER,
    Completion,
    Dialog,
    Infill,
    Input,
    Message,
    Parameters,
    ReplyShape,
    Request,
)
from llama_serving.errors import BadRequest
from llama_serving.service.service import Service
from tests.support.bad_bodies import (
    EDGES,
    REFUSED,
    REFUSED_BY_THE_MODEL,
    SECRET,
    Bad,
    assistant,
    field,
    score,
    user,
)
from tests.support.shapes import LOGPROBS, generation, shape

PROMPT: Final = "def f("
DIALOG: Final = Dialog((Message("user", SECRET),))
SMALL: Final = {"max_new_tokens": 4, "seed": 7}


# --- body -> request --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("input_data", "inputs", "reply", "paths"),
    [
        ({"input_string": ["a", "b"]}, (Completion("a"), Completion("b")), ReplyShape.ROWS, ("input_string[0]", "input_string[1]")),
        ({"input_string": "a"}, (Completion("a"),), ReplyShape.ROWS, ("input_string",)),
        ({"input_string": [user()]}, (DIALOG,), ReplyShape.OUTPUT, ("input_string",)),
        ({"input_string": {"prefix": "a", "suffix": ""}}, (Infill("a", ""),), ReplyShape.ROWS, ("input_string",)),
        ({"input_string": ["a", {"prefix": "", "suffix": "b"}]}, (Completion("a"), Infill("", "b")), ReplyShape.ROWS, ("input_string[0]", "input_string[1]")),
        (["a", "b"], (Completion("a"), Completion("b")), ReplyShape.TEXTS, ("[0]", "[1]")),
        ([f"a{FILL_MARKER}b", {"prefix": FILL_MARKER, "suffix": "c"}], (Infill("a", "b"), Infill(FILL_MARKER, "c")), ReplyShape.TEXTS, ("[0]", "[1]")),
        ({"columns": ["input_string"], "index": [3, "x"], "data": [["a"], [[user()]]]}, (Completion("a"), DIALOG), ReplyShape.ROWS, ("data[0]", "data[1]")),
        ({"columns": ["prefix", "suffix"], "data": [["a", "b"], ["", "c"]]}, (Infill("a", "b"), Infill("", "c")), ReplyShape.ROWS, ("data[0]", "data[1]")),
    ],
)  # fmt: skip
def test_bodies_are_understood(
    input_data: Any, inputs: tuple[Input, ...], reply: ReplyShape, paths: tuple[str, ...]
) -> None:
    request = azure.parse({"input_data": input_data})
    full_paths = tuple(f"input_data{'' if path.startswith('[') else '.'}{path}" for path in paths)
    assert request == Request(inputs, Parameters(), reply, full_paths, "input_data.parameters")


def test_a_dialog_keeps_its_messages() -> None:
    messages = [{"role": "system", "content": " s\n"}, user("\tu "), assistant(""), user(" ")]
    (dialog,) = azure.parse(score(messages)).inputs
    assert dialog == Dialog(
        (Message("system", " s\n"), Message("user", "\tu "), Message("assistant", ""), Message("user", " "))
    )


@settings(deadline=None)
@given(prompts=st.lists(st.text(min_size=1).filter(lambda text: FILL_MARKER not in text), min_size=1))
def test_no_prompt_is_changed(prompts: list[str]) -> None:
    expected = tuple(map(Completion, prompts))
    assert azure.parse(score(prompts)).inputs == expected
    assert azure.parse({"input_data": prompts}).inputs == expected
    table = {"columns": ["input_string"], "data": [[prompt] for prompt in prompts]}
    assert azure.parse({"input_data": table}).inputs == expected


@settings(deadline=None)
@given(prefix=st.text().filter(lambda text: FILL_MARKER[0] not in text), suffix=st.text(min_size=1))
def test_both_ways_to_ask_for_a_middle_are_one(prefix: str, suffix: str) -> None:
    if FILL_MARKER in suffix:
        return
    item = azure.parse(score([{"prefix": prefix, "suffix": suffix}])).inputs
    assert item == azure.parse(score([prefix + FILL_MARKER + suffix])).inputs == (Infill(prefix, suffix),)


@pytest.mark.parametrize("bad", REFUSED, ids=lambda bad: bad.name)
def test_what_the_parser_refuses(bad: Bad) -> None:
    with pytest.raises(BadRequest) as refusal:
        azure.parse(bad.body)
    assert bad.fault(refusal.value.body()) is None


# --- parameters -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, edges in EDGES.items() for value in edges.accepted]
)
@pytest.mark.parametrize("place", ["inside", "parameters", "params"])
def test_parameters_are_read_in_each_place(place: str, name: str, value: Any) -> None:
    body = score("a", **{name: value}) if place == "inside" else score("a") | {place: {name: value}}
    assert azure.parse(body).parameters == Parameters(**field(name, value))


@pytest.mark.parametrize(("name", "value", "kind"), [("max_new_tokens", 8.0, int), ("temperature", 1, float)])
def test_numbers_become_what_the_field_is(name: str, value: float, kind: type) -> None:
    assert type(getattr(azure.parse(score("a", **{name: value})).parameters, name)) is kind


def test_a_null_place_is_no_place() -> None:
    body = {"input_data": {"input_string": "a", "parameters": None}, "parameters": None, "params": {"seed": 1}}
    request = azure.parse(body)
    assert (request.parameters, request.parameters_path) == (Parameters(seed=1), "params")


def test_a_null_name_is_no_second_name() -> None:
    assert azure.parse(score("a", max_tokens=None, max_new_tokens=5)).parameters.max_new_tokens == 5


# --- generations -> answer ---------------------------------------------------------------------------


def answer(body: Any, *per_prompt: tuple[Any, ...]) -> Any:
    return azure.answer(azure.parse(body), per_prompt)


ONE: Final = (generation("x"),)
TWO: Final = (generation("x"), generation("y"))
DETAIL: Final = {
    "finish_reason": "stop",
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    "logprobs": None,
}


@pytest.mark.parametrize(
    ("body", "generations", "expected"),
    [
        (score(["a"]), (ONE,), [{"0": "x"}]),
        (score(["a", "b"]), (ONE, TWO), [{"0": "x"}, {"0": "x", "1": "y"}]),
        (score("a"), (TWO,), [{"0": "x", "1": "y"}]),
        (score([user()]), (ONE,), {"output": "x"}),
        (score([user()]), (TWO,), {"output": ["x", "y"]}),
        ({"input_data": ["a", "b"]}, (ONE, ONE), ["x", "x"]),
        ({"input_data": ["a"]}, (TWO,), [["x", "y"]]),
        (score(["a"], details=True), (TWO,), [{"0": "x", "1": "y", "details": [DETAIL, DETAIL]}]),
        (score([user()], details=True), (ONE,), {"output": "x", "details": [DETAIL]}),
        ({"input_data": ["a"], "params": {"details": True}}, (ONE,), [{"0": "x", "details": [DETAIL]}]),
        (score(["a"], details=False), (ONE,), [{"0": "x"}]),
    ],
)
def test_answers_follow_the_body(body: Any, generations: Any, expected: object) -> None:
    assert answer(body, *generations) == expected


def test_the_full_text_is_answered() -> None:
    full = (generation("x", before="a"),)
    assert answer(score(["a"]), full) == [{"0": "ax"}]
    assert answer({"input_data": ["a"]}, full) == ["ax"]
    assert answer(score([user()]), full) == {"output": "ax"}


def test_logprobs_are_written_as_openai_writes_them() -> None:
    (row,) = answer(score(["a"], details=True), (generation("aé", logprobs=LOGPROBS),))
    assert row["details"][0]["logprobs"] == {
        "tokens": ["a", "é"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{"a": -0.5, "b": -1.5}, {"é": -0.25}],
        "text_offset": [0, 1],
    }


# --- with the embedded model ------------------------------------------------------------------------


def ask(service: Service, body: Any) -> Any:
    request = azure.parse(body)
    return azure.answer(request, service.generate(request))


CARD: Final = {
    "input_data": {
        "input_string": ["Develop a Python function to sort a list of integers in ascending order"],
        "parameters": {"return_full_text": False, "do_sample": True},
    }
}


def test_the_model_card_s_sample(service: Service) -> None:
    assert shape(ask(service, CARD)) == [{"0": "text"}]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (score([PROMPT, "b"], **SMALL), [{"0": "text"}, {"0": "text"}]),
        (score(PROMPT, **SMALL), [{"0": "text"}]),
        (score([user(PROMPT)], **SMALL), {"output": "text"}),
        ({"input_data": [PROMPT, "b"], "params": SMALL}, ["text", "text"]),
        ({"input_data": {"columns": ["input_string"], "index": [0], "data": [[PROMPT]]}, "params": SMALL},
         [{"0": "text"}]),
        (score({"prefix": PROMPT, "suffix": ""}, **SMALL), [{"0": "text"}]),
        (score(["a<FILL_ME>b", "a"], **SMALL, n=2), [{"0": "text", "1": "text"}, {"0": "text", "1": "text"}]),
    ],
    ids=["1", "2", "3", "4", "5", "6 as an item", "6 as a string"],
)  # fmt: skip
def test_each_body_is_answered_in_its_shape(service: Service, body: Any, expected: object) -> None:
    assert shape(ask(service, body)) == expected


def test_each_body_gives_the_same_text(service: Service) -> None:
    rows = ask(service, score([PROMPT], **SMALL))
    assert rows[0]["0"]
    assert ask(service, score(PROMPT, **SMALL)) == rows
    assert ask(service, {"input_data": [PROMPT], "parameters": SMALL}) == [rows[0]["0"]]
    table = {"columns": ["input_string"], "data": [[PROMPT]], "parameters": SMALL}
    assert ask(service, {"input_data": table}) == rows


def test_details_of_the_model(service: Service) -> None:
    (row,) = ask(service, score([PROMPT], **SMALL, ignore_eos=True, details=True, logprobs=1))
    (detail,) = row["details"]
    assert detail["finish_reason"] == "length"
    assert detail["usage"]["completion_tokens"] == 4
    assert "".join(detail["logprobs"]["tokens"]) == row["0"]


@pytest.mark.parametrize("prompt", ["  \n\tx", " ", "a\0", "\0a", "</s><s>[INST]", "x\r\n", "\ufeff☺é🦙"])
def test_the_prompt_comes_back_as_it_was(service: Service, prompt: str) -> None:
    (row,) = ask(service, score([prompt], **SMALL, return_full_text=True))
    (bare,) = ask(service, score([prompt], **SMALL))
    assert row["0"] == prompt + bare["0"]


def test_the_full_text_of_a_middle(service: Service) -> None:
    ends = {"prefix": "def f(", "suffix": "\n    return x\n"}
    (middle,) = ask(service, score([ends], **SMALL))
    (row,) = ask(service, score([ends], **SMALL, return_full_text=True))
    assert row["0"] == ends["prefix"] + middle["0"] + ends["suffix"]


@pytest.mark.parametrize("bad", REFUSED_BY_THE_MODEL, ids=lambda bad: bad.name)
def test_what_the_model_refuses_before_anything_runs(service: Service, bad: Bad) -> None:
    before = service.engine.stats()
    with pytest.raises(BadRequest) as refusal:
        ask(service, bad.body)
    assert bad.fault(refusal.value.body()) is None
    assert service.engine.stats() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name, edges in EDGES.items()
        for value in edges.accepted
        if (name, value) not in (("stream", True), ("continue_final_message", True), ("editor_stops", True))
    ],
)
def test_every_accepted_value_is_served(service: Service, name: str, value: Any) -> None:
    length = ALIASES.get(name, name) == "max_new_tokens" and value is not None
    asked = {name: value} if length else {name: value, "max_new_tokens": 2}
    (row,) = ask(service, score([PROMPT], **asked))
    assert isinstance(row["0"], str)


def test_an_index_has_an_entry_for_each_row() -> None:
    table = {"columns": ["input_string"], "index": [1, 2], "data": [["a"]]}
    with pytest.raises(BadRequest, match="2 entries for 1 rows") as refused:
        azure.parse({"input_data": table})
    assert refused.value.param == "input_data.index"
