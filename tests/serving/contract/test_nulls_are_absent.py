"""A key that is null is as if it were not there, at every endpoint and depth: exports write all columns."""

from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_serving.contract import rows
from llama_serving.contract.request import Parameters
from llama_serving.service.service import Service
from tests.support.bad_bodies import user
from tests.support.endpoints import ENDPOINTS, Endpoint, path, settled


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "x", "messages": None, "max_tokens": 2},
        {"prefix": None, "suffix": None, "prompt": "x"},
        {"input_string": "x", "temperature": None},
        {"input_data": None, "prompt": "x"},
    ],
)
def test_nulls_of_a_row_are_absent(row: dict[str, Any]) -> None:
    given = {key: value for key, value in row.items() if value is not None}
    assert rows.request(rows.split(row), Parameters()) == rows.request(rows.split(given), Parameters())


NULLS: Final = st.dictionaries(
    st.sampled_from(
        ("input_data", "inputs", "instances", "dataframe_split", "dataframe_records", "params", "parameters", "prompt",
         "messages", "suffix", "prefix", "input_string", "columns", "index", "data", "role", "content", "name", "type",
         "max_tokens", "max_new_tokens", "temperature", "stop", "logprobs", "top_logprobs", "n", "seed", "details", "tools",
         "tool_calls", "tool_call_id", "response_format", "best_of", "num_beams", "stream", "stream_options", "logit_bias",
         "user", "metadata", "model", "id", "custom_id", "method", "url", "body", "x-y")
    ),
    st.none(),
)  # fmt: skip
MORE_SHAPES: Final = (
    Endpoint("/score list", lambda p, g: {"input_data": [p], "params": g}, path("/score")),
    Endpoint("/score table", lambda p, g: {"input_data": {"columns": ["input_string"], "data": [[p]]}, "params": g},
             path("/score")),
    Endpoint("/score infill", lambda p, g: {"input_data": [{"prefix": p, "suffix": "x"}], "params": g}, path("/score")),
    Endpoint("/invocations split", lambda p, g: {"dataframe_split": {"columns": ["input_string"], "data": [[p]]}, "params": g},
             path("/invocations")),
    Endpoint("/invocations records", lambda p, g: {"dataframe_records": [{"input_string": p}], "params": g},
             path("/invocations")),
    Endpoint("/invocations instances", lambda p, g: {"instances": [{"prefix": p, "suffix": ""}], "parameters": g},
             path("/invocations")),
    Endpoint("/completions", lambda p, g: {"prompt": [p], **g}, path("/completions")),
)  # fmt: skip


def with_nulls(value: Any, nulls: dict[str, None]) -> Any:
    """The value with keys that are null in every object of it."""
    if isinstance(value, dict):
        return {**nulls, **{key: with_nulls(item, nulls) for key, item in value.items()}}
    if isinstance(value, tuple):
        return tuple(with_nulls(item, nulls) for item in value)
    return [with_nulls(item, nulls) for item in value] if isinstance(value, list) else value


def seen(endpoint: Endpoint, service: Service, body: Any) -> Any:
    """What the client sees, without what differs each time, and without the keys that a record carries along."""
    with pytest.MonkeyPatch.context() as patched:
        answer = settled(endpoint.send(service, body, patched))
    return {**answer, "extra": None} if isinstance(answer, dict) and "extra" in answer else answer


@settings(max_examples=12, deadline=None)
@given(nulls=NULLS)
@pytest.mark.parametrize("endpoint", [*ENDPOINTS, *MORE_SHAPES], ids=lambda one: one.name)
def test_nulls_are_absent_at_every_endpoint_and_depth(
    service: Service, endpoint: Endpoint, nulls: dict[str, None]
) -> None:
    body = endpoint.body([user("a")] if endpoint.chat else "def f(", {"max_tokens": 1, "temperature": 0})
    assert seen(endpoint, service, with_nulls(body, nulls)) == seen(endpoint, service, body)
