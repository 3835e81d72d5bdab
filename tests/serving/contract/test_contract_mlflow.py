"""`/invocations`: body 7 is `/score`'s bodies under MLflow's names. What its server does is in the contract tests."""

from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_serving.contract import azure, mlflow, protocol
from llama_serving.contract.request import (
    Completion,
    Dialog,
    Generations,
    Infill,
    Input,
    Message,
    Parameters,
    ReplyShape,
)
from llama_serving.errors import BadRequest
from llama_serving.service.service import Service
from tests.support.bad_bodies import REFUSED, SECRET, Bad, Stock, assistant, score, user
from tests.support.shapes import generation, shape

SMALL: Final = {"max_new_tokens": 4, "seed": 7}
DIALOG: Final = Dialog((Message("user", SECRET),))
ENDS: Final = {"prefix": "a", "suffix": ""}


@pytest.mark.parametrize(
    ("key", "value", "inputs", "reply", "paths"),
    [
        ("dataframe_split", {"columns": ["input_string"], "index": [0, 1], "data": [["a"], [[user()]]]},
         (Completion("a"), DIALOG), ReplyShape.ROWS, (".data[0]", ".data[1]")),
        ("dataframe_split", {"columns": ["prefix", "suffix"], "data": [["a", ""]]},
         (Infill("a", ""),), ReplyShape.ROWS, (".data[0]",)),
        ("dataframe_records", [{"input_string": "a"}, ENDS, {"input_string": [user()]}],
         (Completion("a"), Infill("a", ""), DIALOG), ReplyShape.ROWS, ("[0]", "[1]", "[2]")),
        ("instances", ["a", ENDS], (Completion("a"), Infill("a", "")), ReplyShape.TEXTS, ("[0]", "[1]")),
        ("instances", [ENDS, "a"], (Infill("a", ""), Completion("a")), ReplyShape.TEXTS, ("[0]", "[1]")),
        ("instances", [ENDS, ENDS], (Infill("a", ""), Infill("a", "")), ReplyShape.ROWS, ("[0]", "[1]")),
        ("instances", [{"input_string": "a"}, ENDS], (Completion("a"), Infill("a", "")), ReplyShape.ROWS,
         ("[0]", "[1]")),
    ],
)  # fmt: skip
def test_bodies_are_understood(
    key: str, value: Any, inputs: tuple[Input, ...], reply: ReplyShape, paths: tuple[str, ...]
) -> None:
    request = mlflow.parse({key: value, "params": {"seed": 1}})
    assert (request.inputs, request.reply, request.parameters) == (inputs, reply, Parameters(seed=1))
    assert request.paths == tuple(key + path for path in paths)


@pytest.mark.parametrize(
    "input_data",
    [
        {"input_string": ["a", "b"], "parameters": {"n": 2}},
        {"input_string": "a"},
        {"input_string": [user()]},
        {"input_string": ENDS},
        ["a", "b"],
        [ENDS, "a<FILL_ME>b"],
        {"columns": ["input_string"], "index": [0], "data": [["a"]]},
    ],
)
def test_inputs_are_what_input_data_is(input_data: Any) -> None:
    ours, theirs = azure.parse({"input_data": input_data}), mlflow.parse({"inputs": input_data})
    assert (theirs.inputs, theirs.parameters, theirs.reply) == (ours.inputs, ours.parameters, ours.reply)
    assert theirs.paths == tuple(path.replace("input_data", "inputs") for path in ours.paths)


@settings(deadline=None)
@given(prompts=st.lists(st.text(min_size=1).filter(lambda text: "<FILL_ME>" not in text), min_size=1))
@pytest.mark.parametrize("key", ["inputs", "instances", "dataframe_records"])
def test_no_prompt_is_changed(key: str, prompts: list[str]) -> None:
    value = [{"input_string": prompt} for prompt in prompts] if key == "dataframe_records" else prompts
    assert mlflow.parse({key: value}).inputs == tuple(map(Completion, prompts))


@pytest.mark.parametrize("bad", [bad for bad in REFUSED if bad.stock is Stock.OURS], ids=lambda bad: bad.name)
def test_what_score_refuses_in_input_data_is_refused_in_inputs(bad: Bad) -> None:
    same = bad.for_mlflow()
    with pytest.raises(BadRequest) as refusal:
        mlflow.parse(same.body)
    assert same.fault(refusal.value.body()) is None


RECORD: Final = {"input_string": SECRET}


@pytest.mark.parametrize(
    "bad",
    [
        Bad("nothing", {}, "missing_field", says="none of them"),
        Bad("nulls", {"inputs": None, "instances": None}, "missing_field", says="none of them"),
        Bad("two inputs", {"inputs": [SECRET], "instances": [SECRET]}, "competing_fields",
            says="inputs and instances"),
        Bad("an unknown key", {"inputs": [SECRET], "parameter": {}}, "unknown_field", "parameter",
            says="Did you mean `parameters`?"),
        Bad("no records", {"dataframe_records": []}, "empty_prompt", "dataframe_records"),
        Bad("no instances", {"instances": []}, "empty_prompt", "instances"),
        Bad("records that are an object", {"dataframe_records": {}}, "invalid_value", "dataframe_records"),
        Bad("a table that is a list", {"dataframe_split": []}, "invalid_value", "dataframe_split"),
        Bad("a string as a record", {"dataframe_records": [RECORD, SECRET]}, "invalid_value",
            "dataframe_records[1]", 1),
        Bad("another column", {"dataframe_records": [RECORD, {"text": SECRET}]}, "missing_field",
            "dataframe_records[1].input_string", 1),
        Bad("one column more", {"dataframe_records": [RECORD | {"text": SECRET}]}, "unknown_field",
            "dataframe_records[0].text", 0),
        Bad("an empty cell", {"dataframe_records": [RECORD, {"input_string": ""}]}, "empty_prompt",
            "dataframe_records[1].input_string", 1),
        Bad("two gaps in a record", {"dataframe_records": [RECORD, {"input_string": "<FILL_ME><FILL_ME>"}]},
            "invalid_value", "dataframe_records[1]", 1),
        Bad("empty ends", {"instances": [SECRET, {"prefix": "", "suffix": ""}]}, "empty_prompt",
            "instances[1]", 1),
        Bad("a record among prompts", {"instances": [SECRET, RECORD]}, "missing_field",
            "instances[1].prefix", 1),
        Bad("a prompt among records", {"instances": [RECORD, SECRET]}, "invalid_value", "instances[1]", 1),
        Bad("a bad dialog in a record", {"dataframe_records": [RECORD, {"input_string": [user(), assistant()]}]},
            "invalid_dialog", "dataframe_records[1][1]", 1),
        Bad("parameters twice", {"inputs": {"input_string": SECRET, "parameters": {"seed": 1}}, "params": {"seed": 1}},
            "competing_fields", "params"),
        Bad("an unknown parameter", {"inputs": [SECRET], "params": {"x": 1}}, "unknown_field", "params.x"),
    ],
    ids=lambda bad: bad.name,
)  # fmt: skip
def test_what_is_refused(bad: Bad) -> None:
    with pytest.raises(BadRequest) as refusal:
        mlflow.parse(bad.body)
    assert bad.fault(refusal.value.body()) is None


# --- answers ----------------------------------------------------------------------------------------


def wrapped(body: Any, generations: Generations) -> Any:
    return mlflow.wrap(protocol.answer(protocol.parse(body), generations, "m"))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"inputs": {"input_string": ["a"]}}, [{"0": "x"}]),
        ({"inputs": {"input_string": [user()]}}, {"output": "x"}),
        ({"inputs": ["a"]}, ["x"]),
        ({"instances": ["a"]}, ["x"]),
        ({"instances": [{"input_string": "a"}]}, [{"0": "x"}]),
        ({"dataframe_split": {"columns": ["input_string"], "data": [["a"]]}}, [{"0": "x"}]),
        ({"dataframe_records": [{"input_string": "a"}]}, [{"0": "x"}]),
    ],
)
def test_predictions_are_the_same_answer(body: Any, expected: object) -> None:
    assert wrapped(body, ((generation("x"),),)) == {"predictions": expected}


@pytest.mark.parametrize(
    ("body", "key"),
    [
        (score("a"), "input_data"),
        ({"inputs": ["a"]}, "inputs"),
        ({"prompt": "a"}, "prompt"),
        ({"messages": [user()]}, "messages"),
        ({}, "input_data"),
    ],
)
def test_an_endpoint_for_all_tells_protocols_apart_by_their_keys(body: Any, key: str) -> None:
    try:
        request = protocol.parse(body)
    except BadRequest as refusal:
        assert (refusal.param, body) == (key, {})  # noqa: PT017  (an empty body is read as `/score`'s)
    else:
        assert all(path.startswith(key) for path in request.paths)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"inputs": {"input_string": ["a", "b"], "parameters": SMALL}}, [{"0": "text"}, {"0": "text"}]),
        ({"inputs": {"input_string": [user()], "parameters": SMALL}}, {"output": "text"}),
        ({"inputs": ["a", "b"], "params": SMALL}, ["text", "text"]),
        ({"dataframe_split": {"columns": ["prefix", "suffix"], "data": [["a", "b"]]}, "params": SMALL},
         [{"0": "text"}]),
        ({"dataframe_records": [{"input_string": "a"}], "params": SMALL}, [{"0": "text"}]),
        ({"instances": ["a<FILL_ME>b"], "params": SMALL | {"details": True}},
         [{"0": "text", "details": [{"finish_reason": "text", "usage": {"prompt_tokens": 0,
           "completion_tokens": 0, "total_tokens": 0}, "logprobs": None}]}]),
    ],
)  # fmt: skip
def test_the_embedded_model_s_answers(service: Service, body: Any, expected: object) -> None:
    request = mlflow.parse(body)
    assert shape(mlflow.wrap(protocol.answer(request, service.generate(request), "m"))) == {
        "predictions": expected
    }
