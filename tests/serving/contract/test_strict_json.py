"""Strict JSON: what two parsers could read differently is refused, and every hostile body quickly."""

import cProfile
import json
from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llama_serving.contract import protocol
from llama_serving.contract.strict_json import (
    MAX_CONTAINERS,
    MAX_DEPTH,
    check_value,
    decode,
    decode_value,
    kind_of,
)
from llama_serving.errors import BadRequest
from llama_serving.settings import Settings
from tests.support.bad_bodies import NOT_JSON, SECRET, Bad, nested

characters = st.characters(exclude_categories=["Cs"])
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**19), 10**19)
    | st.floats(allow_nan=False)
    | st.text(characters)
)
values = st.recursive(
    scalars.filter(lambda value: value not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(characters), inner),
    max_leaves=8,
)
objects = st.dictionaries(st.text(characters), values)


def outcome(parse: Callable[[bytes], Any], raw: bytes) -> Any:
    """What `parse` returns, or its refusal."""
    try:
        return parse(raw)
    except BadRequest as refusal:
        return refusal


@pytest.mark.parametrize("bad", NOT_JSON, ids=lambda bad: bad.name)
def test_what_is_not_json_is_refused(bad: Bad) -> None:
    with pytest.raises(BadRequest) as refusal:
        decode(bad.raw)
    assert bad.fault(refusal.value.body()) is None


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b' \r\n\t{"a": 1}\n', {"a": 1}),
        (b'{"a": "\\u0000 \\ud83d\\ude00"}', {"a": "\0 😀"}),
        ('{"a": "😀é\u2028"}'.encode(), {"a": "😀é\u2028"}),
        (b'{"a": 99999999999999999999}', {"a": 10**20 - 1}),
        (b'{"a": -99999999999999999999}', {"a": -(10**20) + 1}),
        (b'{"a": 1e308, "b": -0.0, "c": 1e-999}', {"a": 1e308, "b": -0.0, "c": 0.0}),
        (b'{"a": {"b": 1}, "b": {"a": 1}}', {"a": {"b": 1}, "b": {"a": 1}}),
        (b'{"a": 1, "A": 2}', {"a": 1, "A": 2}),
    ],
)
def test_what_is_json_is_read(raw: bytes, value: object) -> None:
    assert decode(raw) == value


def test_the_deepest_body_that_is_read() -> None:
    assert decode_value(nested(MAX_DEPTH).encode()) == json.loads(nested(MAX_DEPTH))


def test_the_most_lists_that_are_read() -> None:
    many: list[list[int]] = [[]] * (MAX_CONTAINERS - 1)
    assert decode_value(json.dumps(many).encode()) == many


@settings(deadline=None)
@given(value=values)
def test_every_json_value_survives(value: Any) -> None:
    assert decode_value(json.dumps(value).encode()) == value
    assert decode_value(json.dumps(value, ensure_ascii=False).encode()) == value


@settings(deadline=None)
@given(raw=st.binary() | st.text(st.sampled_from('{}[]",:0123eE.-truefalsn \\u"')).map(str.encode))
def test_any_bytes_are_read_as_json_reads_them_or_refused(raw: bytes) -> None:
    value = outcome(decode, raw)
    if isinstance(value, BadRequest):
        assert value.code == "invalid_json"
    else:
        assert value == json.loads(raw.removeprefix(b"\xef\xbb\xbf"))


@settings(deadline=None)
@given(value=objects, cut=st.integers(1, 1000))
def test_a_truncated_body_is_refused(value: dict[str, Any], cut: int) -> None:
    raw = json.dumps(value).encode()
    with pytest.raises(BadRequest):
        decode(raw[:-cut])


@settings(deadline=None)
@given(value=objects, data=st.data())
def test_a_key_twice_is_refused(value: dict[str, Any], data: st.DataObject) -> None:
    assume(value)
    key = data.draw(st.sampled_from(sorted(value)))
    twice = json.dumps(value)[:-1] + f", {json.dumps(key)}: null}}"
    with pytest.raises(BadRequest, match="twice"):
        decode(b'{"inner": [' + twice.encode() + b"]}")


@settings(deadline=None)
@given(before=st.text(characters), after=st.text(characters), half=st.characters(categories=["Cs"]))
def test_a_lone_surrogate_is_refused(before: str, after: str, half: str) -> None:
    with pytest.raises(BadRequest, match="lone surrogate"):
        decode(json.dumps({"a": before + half + after}).encode())


@settings(deadline=None)
@given(value=values)
def test_what_another_parser_read_well_passes(value: Any) -> None:
    check_value(value)


@pytest.mark.parametrize(
    "value",
    [
        *(float("nan"), float("inf"), float("-inf"), 10**20, -(10**20), "\ud800", {"\udfff": 1}, 10**5000),
        json.loads(nested(MAX_DEPTH + 1)),
        [[]] * MAX_CONTAINERS,
        [{"a": 1}] * MAX_CONTAINERS,
    ],
    ids=lambda value: str(kind_of(value)),
)
def test_what_another_parser_let_through_is_refused(value: Any) -> None:
    with pytest.raises(BadRequest) as refusal:
        check_value({"a": [value]} if not isinstance(value, list) else value)
    assert refusal.value.code == "invalid_json"


# --- hostile bodies, as large as they may be --------------------------------------------------------

LARGEST: Final = Settings().max_body // 4  # (calls are counted, which takes its time)
MESSAGE: Final = '{"role":"user","content":"a"}'
LONG_DIALOG: Final = f"[[{','.join([MESSAGE] * 1000)}]]"
PART: Final = '{"type":"text","text":"a"}'


def filled(head: str, unit: str, tail: str) -> bytes:
    """`head`, as many of `unit` with commas between them as fit, and `tail`."""
    count = (LARGEST - len(head) - len(tail)) // (len(unit) + 1)
    return f"{head}{','.join([unit] * count)}{tail}".encode()


def many_keys(head: str, tail: str) -> bytes:
    names = ",".join(f'"k{number}":1' for number in range(75_000))
    return f"{head}{names}{tail}".encode()


HOSTILE: Final[dict[str, Callable[[], bytes]]] = {
    "two million token ids": lambda: filled('{"prompt":[', "1", "]}"),
    "as many token ids as are taken": lambda: json.dumps({"prompt": [1] * 131_072}).encode(),
    "as many token ids, written as floats": lambda: json.dumps({"prompt": [1.0] * 131_072}).encode(),
    "as many token ids, the last one negative": lambda: json.dumps({"prompt": [1] * 131_071 + [-1]}).encode(),
    "lists of token ids": lambda: filled('{"prompt":[', "[1,1,1,1,1,1]", "]}"),
    "a million prompts": lambda: filled('{"input_data":[', '"a"', "]}"),
    "a million prompts inside": lambda: filled('{"input_data":{"input_string":[', '"a"', "]}}"),
    "a million stop strings": lambda: filled('{"prompt":"a","stop":[', '"a"', "]}"),
    "a million empty prompts": lambda: filled('{"input_data":[', "[]", "]}"),
    "dialogs": lambda: filled('{"input_data":{"columns":["input_string"],"data":[', LONG_DIALOG, "]}}"),
    "messages": lambda: filled('{"messages":[', MESSAGE, "]}"),
    "parts of a message": lambda: filled('{"messages":[{"role":"user","content":[', PART, "]}]}"),
    "unknown keys": lambda: many_keys('{"input_data":["a"],', "}"),
    "unknown parameters": lambda: many_keys('{"input_data":{"input_string":"a","parameters":{', "}}}"),
    "one long key": lambda: b'{"input_data":["a"],"' + b"input_data" * (LARGEST // 10 - 4) + b'":1}',
    "metadata": lambda: filled('{"prompt":"a","metadata":[', "{}", "]}"),
    "an index": lambda: filled(
        '{"input_data":{"columns":["input_string"],"data":[["a"]],"index":[', "[]", "]}}"
    ),
    "two million brackets": lambda: nested(LARGEST // 2).encode(),
    "digits": lambda: b'{"input_data":' + b"1" * (LARGEST - 15) + b"}",
    "digits behind the point": lambda: b'{"input_data":0.' + b"1" * (LARGEST - 17) + b"}",
    "gaps": lambda: b'{"input_data":["' + b"<FILL_ME>" * (LARGEST // 9 - 3) + b'"]}',
    "backslashes": lambda: b'{"input_data":["' + b"\\\\" * (LARGEST // 2 - 10) + b'"]}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies_cost_little(name: str) -> None:
    """Work is counted, not timed: two calls for each byte, and as many as a request of any size needs."""
    raw = HOSTILE[name]()
    assert len(raw) <= LARGEST
    profile = cProfile.Profile(builtins=False)
    profile.enable()
    result = outcome(lambda raw: protocol.parse(decode(raw)), raw)
    profile.disable()
    assert sum(entry.callcount for entry in profile.getstats()) <= 2 * len(raw) + 100_000
    assert not isinstance(result, BadRequest) or len(result.message) < 1000


def test_the_secret_is_a_prompt() -> None:
    """Otherwise the tests for leaks would look for something that was never sent."""
    assert decode(NOT_JSON[3].raw + b"}")["input_data"]["input_string"] == [SECRET]
