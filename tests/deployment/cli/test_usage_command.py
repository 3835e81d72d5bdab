"""`usage` and `audit verify`: what they print, and what they refuse."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_serving.server.accounts.audit import AuditWriter
from llama_serving.server.accounts.chain import Link, seal
from llama_serving.server.accounts.record import Record, timestamp
from tests.support import command

NAMES = ("team-a", "b", "anonymous")


def record(key: str = "b", *, day: int = 1, model: str | None = "nano", **fields: Any) -> Record:
    time = timestamp(1_700_000_000 + day * 86_400)
    return Record(time=time, request_id="r", key=key, model=model, route="/score", status=200, **fields)


def audit(path: Path, records: list[Record], *, max_bytes: int = 1 << 30) -> list[Path]:
    for one in records:
        writer = AuditWriter(path, fsync=False, max_bytes=max_bytes)
        writer.put(one.to_dict)
        writer.close()
    return sorted(path.parent.glob(f"{path.stem}*"))


def a_chain(records: list[Record], path: Path) -> None:
    link, raw = Link(), b""
    for one in records:
        line, link = seal(one.to_dict(), link)
        raw += line
    path.write_bytes(raw)


some_records = st.lists(
    st.builds(
        record,
        key=st.sampled_from(NAMES),
        day=st.integers(0, 2),
        model=st.sampled_from(["nano", "other/model", None]),
        error=st.sampled_from([None, "queue_full"]),
        block=st.sampled_from([None, "text"]),
        prompt_tokens=st.integers(0, 10**6),
        completion_tokens=st.integers(0, 10**6),
    ),
    max_size=12,
)


@settings(max_examples=20, deadline=None)
@given(some_records, some_records, st.sampled_from(["key", "model", "day"]))
def test_sums_are_those_of_the_records(
    tmp_path_factory: pytest.TempPathFactory, one: list[Record], other: list[Record], by: str
) -> None:
    """Over the audits of two servers, in every format."""
    folder = tmp_path_factory.mktemp("usage")
    a_chain(one, folder / "one.jsonl")
    a_chain(other, folder / "other.jsonl")
    files = (folder / "one.jsonl", folder / "other.jsonl")
    expected: dict[str, dict[str, int]] = {}
    for record in (*one, *other):
        name = {"key": record.key, "model": record.model or "-", "day": record.time[:10]}[by]
        sums = expected.setdefault(name, dict.fromkeys(COUNTED, 0))
        for column, value in zip(COUNTED, counted(record), strict=True):
            sums[column] += value
    as_json = command.run("usage", *files, "--by", by, "--json")
    assert as_json.returncode == 0
    found = {line.pop(by): line for line in map(json.loads, as_json.stdout.splitlines())}
    assert found == expected
    rows = list(csv.DictReader(io.StringIO(command.run("usage", *files, "--by", by, "--csv").stdout)))
    assert {row.pop(by): {name: int(value) for name, value in row.items()} for row in rows} == expected
    shown = command.run("usage", *files, "--by", by).stdout.splitlines()
    assert [line.split() for line in shown[1:]] == [
        [name, *map(str, sums.values())] for name, sums in sorted(expected.items())
    ]


COUNTED = ("requests", "errors", "blocks", "prompt_tokens", "completion_tokens")


def counted(record: Record) -> tuple[int, ...]:
    return 1, record.error is not None, record.block is not None, record.prompt_tokens, record.completion_tokens


def test_a_file_that_is_given_twice_counts_once(tmp_path: Path) -> None:
    (path,) = audit(tmp_path / "a.jsonl", [record(prompt_tokens=3)])
    done = command.run("usage", path, path, tmp_path / "." / "a.jsonl", "--json")
    assert json.loads(done.stdout)["prompt_tokens"] == 3


def test_usage_refuses_what_is_no_audit(tmp_path: Path) -> None:
    (path,) = audit(tmp_path / "a.jsonl", [record(), record()])
    path.write_bytes(path.read_bytes().replace(b'"prompt_tokens": 0', b'"prompt_tokens": 9', 1))
    done = command.run("usage", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{path}, line 1: its content does not have its hash" in done.stderr
    a_chain([], path)
    path.write_bytes(seal({"key": "a"}, Link())[0])
    assert "it is no record" in command.run("usage", path).stderr
    path.write_text('{"key": "a"}\n')
    assert "it does not end with a hash" in command.run("usage", path).stderr
    assert command.run("usage", tmp_path / "missing").returncode == 2
    assert command.run("usage", path, "--json", "--csv").returncode == 2


def test_verify_names_the_first_broken_line(tmp_path: Path) -> None:
    files = audit(tmp_path / "a.jsonl", [record(prompt_tokens=number) for number in range(6)], max_bytes=900)
    assert len(files) > 2
    done = command.run("audit", "verify", *reversed(files))
    assert done.returncode == 0
    assert "Lines 1 to 6 are as they were written" in done.stdout
    head = done.stdout.rsplit(" ", 1)[1].strip(".\n")
    assert command.run("audit", "verify", *files, "--contains", head).returncode == 0
    partly = command.run("audit", "verify", *files[1:])
    assert partly.returncode == 0
    assert "earlier lines are not checked" in partly.stdout
    gone = command.run("audit", "verify", files[0], *files[2:])
    assert gone.returncode == 1
    assert "line 1: it is line" in gone.stderr
    last = files[-1].read_bytes()
    files[-1].write_bytes(last[: last.rfind(b"\n", 0, -1) + 1])
    assert command.run("audit", "verify", *files).returncode == 0  # nothing shows that there was more,
    removed = command.run("audit", "verify", *files, "--contains", head)
    assert removed.returncode == 1  # but for a hash that was noted
    assert f"No line has the hash {head}" in removed.stderr
    files[-1].write_bytes(last[:-1])
    assert "is incomplete" in command.run("audit", "verify", *files).stdout


def test_an_audit_without_lines_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    done = command.run("audit", "verify", tmp_path / "a.jsonl")
    assert (done.returncode, done.stdout) == (0, "There are no lines.\n")
    assert command.run("usage", tmp_path / "a.jsonl", "--json").stdout == ""
