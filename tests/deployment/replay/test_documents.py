"""Files that `replay` is given: an answer as it was sent, in each way that one is kept, and anything else, which is refused."""

import json
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llama_endpoints.replay.claims import Claim, claims
from llama_endpoints.replay.documents import claims_in
from llama_endpoints.replay.replay import Replayer
from llama_endpoints.replay.requests import of_body
from llama_serving.errors import SetupError
from llama_serving.service.service import Service
from tests.support.receipts import BODIES, answered, with_receipt

_NAMES: Final = st.sampled_from(
    ["choices", "index", "text", "message", "delta", "content", "tool_calls", "function", "arguments", "response", "body",
     "output", "details", "receipt", "predictions", "token_ids", "format", "0", "1", "9" * 5000, "extra", "custom_id"]
)  # fmt: skip
_VALUES: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=3),
    lambda some: st.lists(some, max_size=2) | st.dictionaries(_NAMES, some, max_size=4),
    max_leaves=12,
)
_LINES: Final = st.sampled_from(
    ["data:", "data", "data: [DONE]", "", ": ping", "event: x", "id: 1", "retry", "{", '"', "\ufeff", " "]
)
_STREAMED: Final = {"prompt": "def f(x):", "max_tokens": 5, "temperature": 0, "stream": True}


def refusal(folder: Path, raw: bytes) -> str:
    """What is said of a file that is no answer."""
    path = folder / "answer"
    path.write_bytes(raw)
    with pytest.raises(SetupError) as refused:
        claims_in(path)
    return str(refused.value)


@given(
    values=st.lists(_VALUES, max_size=4),
    end=st.sampled_from(["", "\n"]),
    before=st.sampled_from(["", "data: "]),
)
@example(values=[{"choices": None}, {}], end="\n", before="")
@example(values=[{"choices": [1]}, {}], end="\n", before="")
@example(values=[{"choices": [{"text": "a"}]}] * 2, end="\n", before="")
@example(values=[{"choices": [{"index": 0, "delta": None}]}] * 2, end="\n", before="data: ")
@example(values=[{"message": "boom"}, {}], end="\n", before="")
@example(values=[{"9" * 5000: "x"}, {}], end="\n", before="")
@example(
    values=[{"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0}]}}]}] * 2, end="", before="data: "
)
def test_any_json_is_refused_and_no_error(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], end: str, before: str
) -> None:
    text = "".join(f"{before}{json.dumps(one)}{end}\n" for one in values)
    assert refusal(tmp_path_factory.getbasetemp(), text.encode())


@given(
    lines=st.lists(_LINES | _VALUES.map(json.dumps), max_size=6) | st.lists(st.binary(max_size=9), max_size=4)
)
@example(lines=["data: [DONE]"])
@example(lines=["data:"])
def test_any_lines_are_refused_and_no_error(tmp_path_factory: pytest.TempPathFactory, lines: list[Any]) -> None:
    raw = b"\n".join(one if isinstance(one, bytes) else one.encode() for one in lines)
    assert refusal(tmp_path_factory.getbasetemp(), raw)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"data: [DONE]\n\n", "Its server-sent events have no data."),
        (b": ping\n\nevent: x\n\n", "Its server-sent events have no data."),
        (b'{"choices": null}\n{}', "`choices` of the answer must be a list, not null."),
        (b'{"choices": [{"text": "a"}]}\n{}', "`choices[].index` of the answer must be an integer, not null."),
        (b'{"message": "boom"}\n{}', "`message` of the answer must be an object, not a string."),
        (b"data: 5\n\n", "`event` of the answer must be an object, not a number."),
    ],
)
def test_a_refusal_says_what_is_wrong_and_what_is_taken(tmp_path: Path, raw: bytes, says: str) -> None:
    told = refusal(tmp_path, raw)
    assert says in told
    assert told.endswith("server-sent events, or lines of JSON.")


@pytest.fixture(scope="module")
def events(service: Service) -> list[Any]:
    """The events of a streamed completion."""
    made: list[Any] = answered(service, "/v1/completions", _STREAMED)
    assert len(made) > 2
    return made


def _folded(event: Any) -> str:
    """An event with each member in a data line of its own."""
    return "".join(f"data: {line}\n" for line in json.dumps(event, indent=1).splitlines()) + "\n"


KEPT: Final = {
    "as sent": lambda events: "".join(f"data: {json.dumps(one)}\n\n" for one in events) + "data: [DONE]\n\n",
    "cut at the end": lambda events: "\n\n".join(f"data:{json.dumps(one)}" for one in events),
    "with CRLF and a BOM": lambda events: "\ufeff" + "".join(f"data: {json.dumps(one)}\r\n\r\n" for one in events),
    "through a proxy": lambda events: ": open\n\n" + "".join(
        f"id: {i}\nevent: message\nretry: 5\n: ping\ndata: {json.dumps(one)}\n\n" for i, one in enumerate(events)),
    "in several data lines": lambda events: "".join(map(_folded, events)) + "data: [DONE]\n\n",
    "without empty lines": lambda events: "".join(f"data: {json.dumps(one)}\n" for one in events) + "data: [DONE]\n",
    "lines of JSON": lambda events: "".join(f"{json.dumps(one)}\n" for one in events),
}  # fmt: skip
"""How clients and proxies keep a stream."""


@pytest.mark.parametrize("way", KEPT)
def test_a_stream_is_read_however_it_was_kept(
    service: Service, events: list[Any], tmp_path: Path, way: str
) -> None:
    path = tmp_path / "stream"
    path.write_bytes(KEPT[way](events).encode())
    (claim,) = claims_in(path)
    assert claim.text == "".join(one["choices"][0]["text"] for one in events)
    request = of_body(with_receipt(_STREAMED), "openai")
    assert Replayer(service).replay(request, claim).identical


def test_a_stream_of_one_event_has_its_text(service: Service, tmp_path: Path) -> None:
    body = {**_STREAMED, "max_tokens": 1}
    path = tmp_path / "stream"
    path.write_text(KEPT["as sent"](answered(service, "/v1/completions", body)), encoding="utf-8")
    (claim,) = claims_in(path)
    assert claim.text


@pytest.mark.parametrize("name", BODIES)
def test_an_answer_without_its_text_is_not_believed(service: Service, name: str) -> None:
    """The text in another type is refused; only where a receipt is alone is nothing checked."""
    path, body = BODIES[name]
    answer = answered(service, path, body)
    for claim in claims(answer):
        assert claim.text is not None or claim.calls, claim
        assert claims(dict(claim.receipt)) == (Claim(claim.receipt),)
    changed = _with_other_types(answer)
    assert changed
    for forged in changed:
        with pytest.raises(SetupError, match="of the answer must be"):
            claims(forged)


def _with_other_types(answer: Any) -> list[Any]:
    """The answer with each of its texts as a number."""
    texts = ("text", "content", "response", "output", "0", "arguments")
    return [forged for name in texts if (forged := _numbered(answer, name)) != answer]


def _numbered(value: Any, name: str) -> Any:
    if isinstance(value, list):
        return [_numbered(one, name) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: 5
        if key == name and isinstance(one, (str, list))
        else one
        if key == "receipt"
        else _numbered(one, name)
        for key, one in value.items()
    }
