"""Rows of a batch: a line's request and its record. Files are in test_batch.py."""

import json
import re
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_serving.contract import rows
from llama_serving.contract.request import (
    Completion,
    Dialog,
    Infill,
    Input,
    Message,
    Parameters,
    Request,
    TokenIds,
)
from llama_serving.contract.rows import InputRow, RowKind, RowLocation
from llama_serving.errors import BadRequest, ServingError
from tests.support.bad_bodies import NOT_JSON, SECRET, Bad, assistant, score, user
from tests.support.shapes import generation

PLACE: Final = RowLocation("in.jsonl", 7)
DIALOG: Final = Dialog((Message("user", SECRET),))
UNFOLDED: Final = Dialog((Message("user", SECRET),), unfold=True)
ENDS: Final = {"prefix": "a", "suffix": ""}


def read(row: Any) -> InputRow:
    return rows.read(json.dumps(row).encode())


def request(row: Any, **defaults: Any) -> Request:
    return rows.request(read(row), Parameters(**defaults))


def batch_line(body: Any, **changes: Any) -> dict[str, Any]:
    url = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    return {"custom_id": "c-1", "method": "POST", "url": url, "body": body, **changes}


# --- row -> request ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "kind", "prompt"),
    [
        ({"input_string": "a"}, RowKind.SHORT, Completion("a")),
        ({"input_string": "a<FILL_ME>b"}, RowKind.SHORT, Infill("a", "b")),
        ({"input_string": [user()]}, RowKind.SHORT, DIALOG),
        ({"input_string": ENDS}, RowKind.SHORT, Infill("a", "")),
        ({"prompt": "a"}, RowKind.BODY, Completion("a")),
        ({"prompt": [1, 2]}, RowKind.BODY, TokenIds((1, 2))),
        ({"prompt": "a", "parameters": {}}, RowKind.SHORT, Completion("a")),
        ({"messages": [user()]}, RowKind.BODY, UNFOLDED),
        ({"messages": [user()], "parameters": {}}, RowKind.SHORT, DIALOG),
        (ENDS, RowKind.SHORT, Infill("a", "")),
        ({"prompt": "a", "user": "u", "metadata": {}}, RowKind.BODY, Completion("a")),
        (score("a"), RowKind.BODY, Completion("a")),
        ({"input_data": ["a"], "params": {}}, RowKind.BODY, Completion("a")),
        ({"inputs": ["a"], "params": {}}, RowKind.BODY, Completion("a")),
        ({"dataframe_records": [{"input_string": "a"}]}, RowKind.BODY, Completion("a")),
        ({"prompt": "a", "max_tokens": 5}, RowKind.BODY, Completion("a")),
        ({"prompt": [1, 2], "model": "m"}, RowKind.BODY, TokenIds((1, 2))),
        ({"prompt": "a", "suffix": "b"}, RowKind.BODY, Infill("a", "b")),
        ({"messages": [user()], "model": "m"}, RowKind.BODY, UNFOLDED),
        (batch_line({"prompt": "a"}), RowKind.OPENAI_BATCH, Completion("a")),
        (batch_line({"messages": [user()]}), RowKind.OPENAI_BATCH, UNFOLDED),
        ({"url": "/v1/completions", "body": {"prompt": "a"}}, RowKind.OPENAI_BATCH, Completion("a")),
    ],
)
def test_rows_are_understood(row: Any, kind: RowKind, prompt: Input) -> None:
    assert read(row).kind is kind
    assert request(row).inputs == (prompt,)


@pytest.mark.parametrize(
    ("row", "extra"),
    [
        ({"input_string": "a", "id": 5, "label": [1], "body": "b"}, {"label": [1], "body": "b"}),
        ({"prompt": "a", "id": None, "name": None}, {"name": None}),
        ({"input_data": ["a"], "id": "x", "label": 1}, {"label": 1}),
        ({"prompt": "a", "seed": 1, "id": {"k": 1}, "label": 1}, {"label": 1}),
        ({"input_string": "a", "custom_id": "c", "url": "u"}, {"custom_id": "c", "url": "u"}),
        (batch_line({"prompt": "a"}), {}),
    ],
)
def test_unknown_keys_are_carried_and_ids_kept(row: Any, extra: dict[str, Any]) -> None:
    taken = read(row)
    assert taken.extra == extra
    assert taken.id == (row.get("id") if "id" in row or taken.kind is not RowKind.OPENAI_BATCH else "c-1")


@pytest.mark.parametrize("bad", NOT_JSON, ids=lambda bad: bad.name)
def test_a_line_is_read_as_strictly_as_a_body(bad: Bad) -> None:
    with pytest.raises(BadRequest) as refusal:
        rows.read(bad.raw)
    assert bad.fault(refusal.value.body()) is None


@pytest.mark.parametrize(
    "bad",
    [
        Bad("nothing", {}, "missing_field", says="no prompt"),
        Bad("no prompt key", {"id": 1, "text": SECRET, "parameters": {}}, "missing_field", says="no prompt"),
        Bad("a batch line without a body", {"custom_id": "c", "url": "/v1/completions"}, "missing_field"),
        Bad("two short prompts", {"input_string": SECRET, "prompt": SECRET}, "competing_fields",
            says="input_string and prompt"),
        Bad("a prompt and ends", {"input_string": SECRET, **ENDS}, "competing_fields",
            says="input_string and prefix"),
        Bad("a body and a short prompt", {"input_data": [SECRET], "input_string": SECRET}, "unknown_field",
            "input_string"),
        Bad("a body and a prompt", {"input_data": [SECRET], "prompt": SECRET}, "unknown_field", "input_data"),
        Bad("an OpenAI body and a short prompt", {"prompt": SECRET, "seed": 1, "input_string": SECRET},
            "competing_fields", says="input_string and prompt"),
        Bad("an OpenAI body and a prefix", {"prompt": SECRET, **ENDS}, "competing_fields", says="prompt and prefix"),
        Bad("two OpenAI prompts", {"prompt": SECRET, "messages": [user()], "seed": 1}, "competing_fields",
            says="prompt and messages"),
        Bad("a prefix alone", {"prefix": SECRET}, "missing_field", "suffix", says="both a prefix and a suffix"),
        Bad("empty ends", {"prefix": "", "suffix": ""}, "empty_prompt", "prefix"),
        Bad("an empty prompt", {"input_string": ""}, "empty_prompt", "input_string"),
        Bad("a null prompt", {"prompt": None}, "missing_field", says="no prompt"),
        Bad("a list of prompts", {"input_string": [SECRET]}, "invalid_value", "input_string[0]", 0),
        Bad("token ids with parameters", {"prompt": [1], "parameters": {}}, "invalid_value", "prompt"),
        Bad("a dialog that ends with the assistant", {"messages": [user(), assistant()]}, "invalid_dialog",
            "messages[1]"),
        Bad("two prompts in a body", {"input_data": [SECRET, SECRET]}, "too_many_prompts", says="2 prompts"),
        Bad("two prompts in an OpenAI body", {"prompt": [SECRET, SECRET], "seed": 1}, "too_many_prompts"),
        Bad("two prompts in a batch line", batch_line({"prompt": [SECRET, SECRET]}), "too_many_prompts"),
        Bad("a bad parameter", {"prompt": SECRET, "parameters": {"top_p": 2}}, "invalid_value",
            "parameters.top_p"),
        Bad("an unknown parameter", {"prompt": SECRET, "parameters": {"x": 2}}, "unknown_field", "parameters.x"),
        Bad("parameters that are a list", {"prompt": SECRET, "parameters": []}, "invalid_value", "parameters"),
        Bad("another url", batch_line({"prompt": SECRET}, url="/v1/embeddings"), "invalid_value", "url"),
        Bad("a url that is no string", batch_line({"prompt": SECRET}, url=5), "invalid_value", "url"),
        Bad("another method", batch_line({"prompt": SECRET}, method="GET"), "invalid_value", "method"),
        Bad("a body of the other route", batch_line({"prompt": SECRET}, url="/v1/chat/completions"),
            "missing_field", "body.messages"),
        Bad("a body that is no object", batch_line([], url="/v1/completions"), "missing_field", "body.prompt"),
        Bad("an unsupported field", batch_line({"prompt": SECRET, "tools": [{}]}), "unsupported_field", "tools"),
    ],
    ids=lambda bad: bad.name,
)  # fmt: skip
def test_what_is_refused(bad: Bad) -> None:
    with pytest.raises(BadRequest) as refusal:
        request(bad.body)
    assert bad.fault(refusal.value.body()) is None


@pytest.mark.parametrize(
    ("row", "seed", "max_new_tokens"),
    [
        ({"prompt": "a"}, 1, 64),
        ({"prompt": "a", "parameters": None}, 1, 64),
        ({"prompt": "a", "parameters": {"seed": None}}, 1, 64),
        ({"prompt": "a", "parameters": {"seed": 2, "max_tokens": 3}}, 2, 3),
        (score("a", seed=0), 0, 64),
        ({"prompt": "a", "max_tokens": 3}, 1, 3),
        (batch_line({"prompt": "a", "seed": 2}), 2, 64),
    ],
)
def test_a_row_s_own_parameters_win(row: Any, seed: int, max_new_tokens: int) -> None:
    asked = request(row, seed=1, max_new_tokens=64).parameters
    assert asked == Parameters(seed=seed, max_new_tokens=max_new_tokens)


ZERO_ROWS = {
    "short": {"prompt": "a", "parameters": {"max_new_tokens": 0}},
    "another spelling": {"input_string": "a", "parameters": {"max_tokens": 0}},
    "a whole body": score("a", max_new_tokens=0),
    "mlflow": {"inputs": ["a"], "params": {"max_new_tokens": 0}},
    "openai": {"prompt": "a", "max_tokens": 0},
    "a batch line": batch_line({"prompt": "a", "max_tokens": 0}),
}


@pytest.mark.parametrize("kind", ZERO_ROWS)
@pytest.mark.parametrize("given", [{"prompt_logprobs": 0}, {"return_full_text": True}])
def test_a_row_that_reads_the_prompt_alone_may_have_the_other_half_from_the_job(
    kind: str, given: dict[str, Any]
) -> None:
    assert request(ZERO_ROWS[kind], **given).parameters == Parameters(max_new_tokens=0, **given)
    with pytest.raises(BadRequest, match="must be an integer from 1, not 0"):
        request(ZERO_ROWS[kind])


def test_a_row_may_not_take_the_other_half_away() -> None:
    row = {"prompt": "a", "parameters": {"return_full_text": False}}
    with pytest.raises(BadRequest, match=r"`parameters\.max_new_tokens` must be an integer from 1"):
        request(row, max_new_tokens=0, return_full_text=True)
    asked = request({"prompt": "a", "parameters": {"prompt_logprobs": 1}}, max_new_tokens=0).parameters
    assert asked == Parameters(max_new_tokens=0, prompt_logprobs=1)


@settings(deadline=None)
@given(prompt=st.text(min_size=1).filter(lambda text: "<FILL_ME>" not in text))
@pytest.mark.parametrize("key", ["input_string", "prompt"])
def test_no_prompt_is_changed(key: str, prompt: str) -> None:
    assert request({key: prompt}).inputs == (Completion(prompt),)


# --- what became of it -> record ----------------------------------------------------------------------


USAGE: Final = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def record(row: Any, *texts: str) -> dict[str, Any]:
    sequences = tuple(generation(text) for text in texts)
    return rows.record(PLACE, read(row), request(row), (sequences,), "nano")


@pytest.mark.parametrize(
    "row", [{"prompt": "a"}, {"input_string": [user()]}, score("a"), {"prompt": "a", "seed": 1}]
)
def test_a_record(row: Any) -> None:
    assert record({**row, "id": 5, "label": "l"}, "x") == {
        "file": "in.jsonl",
        "line": 7,
        "id": 5,
        "output": "x",
        "finish_reason": "stop",
        "usage": USAGE,
        "error": None,
        "extra": {"label": "l"},
    }


def test_several_sequences_are_lists() -> None:
    made = record({"prompt": "a", "parameters": {"n": 2}}, "x", "y")
    assert (made["output"], made["finish_reason"]) == (["x", "y"], ["stop", "stop"])
    assert made["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_details_are_added_where_asked_for() -> None:
    made = record({"prompt": "a", "parameters": {"details": True}}, "x")
    assert made["details"] == [{"finish_reason": "stop", "usage": USAGE, "logprobs": None}]


@pytest.mark.parametrize(
    ("row", "kind"), [({"prompt": "a"}, "text_completion"), ({"messages": [user()]}, "chat.completion")]
)
def test_a_batch_line_is_answered_in_openai_s_shape(row: Any, kind: str) -> None:
    made = record(batch_line(row), "x")
    assert made.keys() == {"id", "custom_id", "response", "error"}
    assert re.fullmatch(r"batch_req_[0-9a-f]{32}", made["id"])
    assert (made["custom_id"], made["error"]) == ("c-1", None)
    assert made["response"].keys() == {"status_code", "request_id", "body"}
    assert made["response"]["status_code"] == 200
    assert made["response"]["body"]["object"] == kind


ERROR: Final = BadRequest("Why.", code="c", param="prompt", index=0)


def test_an_error_is_a_record_of_the_same_keys() -> None:
    made = rows.error_record(PLACE, read({"prompt": "a", "id": 5, "label": "l"}), ERROR)
    assert made.keys() == record({"prompt": "a"}, "x").keys()
    assert made["error"] == ERROR.body()["error"]
    assert (made["id"], made["extra"], made["output"]) == (5, {"label": "l"}, None)
    unread = rows.error_record(PLACE, None, ERROR)
    assert unread == {**made, "id": None, "extra": {}}


@pytest.mark.parametrize("error", [ERROR, ServingError("Why.")])
def test_an_error_of_a_batch_line(error: ServingError) -> None:
    made = rows.error_record(PLACE, read(batch_line({"prompt": "a"})), error)
    assert made["custom_id"] == "c-1"
    assert made["response"]["status_code"] == error.status
    assert made["response"]["body"] == error.body(openai=True)


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_a_record_is_one_line_of_json(text: str) -> None:
    """Lines end at \\n bytes only: other separators may stand in it, no \\n may."""
    made = record({"prompt": "a", "id": text, f"key {text}": text}, text)
    line = rows.dumps(made)
    assert b"\n" not in line.encode()
    assert json.loads(line) == made
