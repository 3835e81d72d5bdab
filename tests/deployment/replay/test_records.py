"""Records of batches: receipts are read where a record has its own, whatever the row carries along."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.replay.claims import claims
from llama_endpoints.replay.records import RecordedRow, manifest_of, recorded
from llama_endpoints.replay.replay import Replayer
from llama_endpoints.replay.verdict import Verdict
from llama_serving.batch import inputs as sources
from llama_serving.contract import rows
from llama_serving.contract.request import Parameters
from llama_serving.contract.rows import RowLocation
from llama_serving.errors import SetupError
from llama_serving.service.service import Service
from tests.support.receipts import CHAT

GREEDY: Final = {"do_sample": False, "max_new_tokens": 2}
_CHATS: Final = {"method": "POST", "url": "/v1/chat/completions"}
ROWS: Final[dict[str, dict[str, Any]]] = {
    "short": {"input_string": "x", "parameters": {**GREEDY}},
    "several": {"input_string": "x", "parameters": {"max_new_tokens": 2, "n": 2, "seed": 3}},
    "body": {"prompt": "x", "temperature": 0, "max_tokens": 2},
    "line": {"custom_id": "a", **_CHATS, "body": {"messages": CHAT, "temperature": 0, "max_tokens": 2}},
}
Make = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="module")
def made(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Writes some rows and their records into files."""
    folder = tmp_path_factory.mktemp("records")

    def make(given: list[dict[str, Any]], *, receipt: bool) -> tuple[Path, Path]:
        source, target = folder / "rows.jsonl", folder / "out.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
        lines = []
        for number, row in enumerate(given, 1):
            split = rows.split(row)
            request = rows.request(split, Parameters(receipt=receipt))
            place, found = RowLocation("rows.jsonl", number), service.generate(request)
            lines.append(rows.dumps(rows.record(place, split, request, found, "nano")) + "\n")
        target.write_text("".join(lines), encoding="utf-8")
        return source, target

    return make


def read(source: Path, target: Path) -> list[RecordedRow]:
    return list(recorded(target, sources.find([str(source)]), Parameters(), 10**6))


def verdicts(service: Service, row: RecordedRow) -> list[Verdict]:
    return Replayer(service).replay_all((row.request, claim) for claim in row.claims)


@given(
    note=st.recursive(
        st.none() | st.text(max_size=5),
        lambda some: st.dictionaries(
            st.sampled_from(["receipt", "a", "choices", "details", "format", "output"]), some
        ),
        max_leaves=5,
    ),
    kind=st.sampled_from([name for name in ROWS if name != "line"]),
    receipt=st.booleans(),
)
def test_what_a_row_carries_is_no_receipt(made: Make, note: Any, kind: str, *, receipt: bool) -> None:
    row = {**ROWS[kind], "note": note, "id": note, "choices": [{"receipt": note}], "predictions": note}
    (found,) = read(*made([row], receipt=receipt))
    assert len(found.claims) == (len(found.texts) if receipt else 0)
    assert [one.text for one in found.claims] == list(found.texts) * receipt


@pytest.mark.parametrize("kind", ROWS)
def test_an_earlier_record_in_a_row_is_not_compared(service: Service, made: Make, kind: str) -> None:
    _, earlier = made([ROWS["short"] | {"input_string": "another"}], receipt=True)
    held = json.loads(earlier.read_text(encoding="utf-8"))
    row = {**ROWS[kind], **({} if kind == "line" else {"earlier": held, "id": held})}
    source, target = made([row], receipt=True)
    (found,) = read(source, target)
    assert len(found.claims) == (2 if kind == "several" else 1)
    assert all(one.identical for one in verdicts(service, found))
    assert claims(json.loads(target.read_text(encoding="utf-8"))) == found.claims, "a record alone"


def _own(record: dict[str, Any]) -> dict[str, Any]:
    """What a record's receipt stands in."""
    holder: dict[str, Any] = record["response"]["body"]["choices"][0] if "response" in record else record
    return holder


FORGED: Final[dict[str, Callable[[dict[str, Any]], object]]] = {
    "no receipt at all": lambda record: _own(record).update(receipt={"format": 1}),
    "a text": lambda record: _own(record).update(receipt="R-123"),
    "too many": lambda record: record.update(receipt=[record.get("receipt")] * 3, output=record.get("output", "x")),
    "an empty list": lambda record: _own(record).update(receipt=[]),
    "another output": lambda record: record.update(output=5),
    "no text": lambda record: record.update(output=None),
    "no choices": lambda record: (record.pop("output", None), record.update(response={"body": {"choices": None}})),
    "no body": lambda record: (record.pop("output", None), record.update(response={"body": []})),
    "no response": lambda record: (record.pop("output", None), record.update(response="x")),
    "another place": lambda record: record.update(line=[{}], custom_id={"a": []}),
}  # fmt: skip


@pytest.mark.parametrize("kind", ROWS)
def test_a_record_that_is_none_is_refused(made: Make, kind: str) -> None:
    source, target = made([ROWS[kind]], receipt=True)
    record = target.read_text(encoding="utf-8")
    for name, change in FORGED.items():
        forged = json.loads(record)
        change(forged)
        target.write_text(json.dumps(forged) + "\n", encoding="utf-8")
        with pytest.raises(SetupError) as refused:
            read(source, target)
        assert "line 1 of" in str(refused.value).lower(), name


def test_a_choice_without_its_receipt_is_refused(made: Make) -> None:
    body = {"messages": CHAT, "n": 2, "seed": 1, "max_tokens": 2}
    source, target = made([{"custom_id": "a", **_CHATS, "body": body}], receipt=True)
    forged = json.loads(target.read_text(encoding="utf-8"))
    del forged["response"]["body"]["choices"][1]["receipt"]
    target.write_text(json.dumps(forged) + "\n", encoding="utf-8")
    with pytest.raises(SetupError, match="has 1 receipts for 2 outputs"):
        read(source, target)


@pytest.mark.parametrize(
    "about",
    [[], {"job": 5}, {"job": {"settings": 5}}, {"job": {"inputs": []}}, {"job": {"inputs": {"rows.jsonl": 5}}},
     {"job": {"parameters": "x"}}, {"job": {}, "receipt": 5}, {"job": {}, "receipt": {"model": {}}}],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, about: Any) -> None:
    path = tmp_path / "out.jsonl.manifest.json"
    path.write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(SetupError, match="can't be read"):
        manifest_of(path)
