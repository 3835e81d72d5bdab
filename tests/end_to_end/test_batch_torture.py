"""A batch job that is killed again and again; `make batch-torture` is the same with many more rows."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from load_tests import batch_torture as torture

ROWS = 300
KILLS = 2


def test_killed_again_and_again_nothing_is_lost_or_twice(tmp_path: Path) -> None:
    rows, expected, output = (
        tmp_path / "rows.jsonl",
        tmp_path / "expected.jsonl",
        tmp_path / "killed" / "out.jsonl",
    )
    output.parent.mkdir()
    bad = torture.write(rows, ROWS)
    whole = torture.undisturbed(rows, expected)
    told = list[int]()
    ended = torture.killed(rows, output, KILLS, start_s=whole.seconds / 3, share=0.4, told=told.append)
    torture.check(output, expected, ROWS, bad)
    assert (whole.kills, ended.kills, told) == (0, KILLS, [*range(1, KILLS + 1)])
    assert json.loads(output.with_name("out.jsonl.manifest.json").read_text()) == json.loads(
        expected.with_name("expected.jsonl.manifest.json").read_text()
    )


def test_one_row_in_a_hundred_is_a_bad_one(tmp_path: Path) -> None:
    bad = torture.write(tmp_path / "rows.jsonl", 1000)
    assert len(bad) == 10
    assert [good for _, good in torture.lines(1000)].count(False) == 10
    assert len({row for row, good in torture.lines(1000) if good}) == 990


def record(line: int, *, error: bool = False) -> str:
    return json.dumps({"line": line, "error": {} if error else None})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: lines[:-1], "lost: 1"),
        (lambda lines: [*lines, lines[0]], "twice: 1"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "in another place"),
        (lambda lines: [record(1, error=True), *lines[1:]], "failed, and good: 1"),
        (lambda lines: [lines[0], record(2), *lines[2:]], "done, and bad: 1"),
        (lambda lines: [f"{lines[0]} ", *lines[1:]], "another text"),
    ],
)
def test_what_is_not_as_promised_is_found(
    tmp_path: Path, change: Callable[[list[str]], list[str]], says: str
) -> None:
    lines = [record(1), record(2, error=True), record(3)]
    output, expected = tmp_path / "out" / "out.jsonl", tmp_path / "expected.jsonl"
    output.parent.mkdir()
    for path, content in ((expected, lines), (output, lines)):
        path.write_text("\n".join(content) + "\n")
    torture.check(output, expected, 3, {2})
    output.write_text("\n".join(change(lines)) + "\n")
    with pytest.raises(torture.TortureError, match=says):
        torture.check(output, expected, 3, {2})


def test_memory_that_grows_with_the_rows_is_found() -> None:
    few = torture.Run(seconds=1, peak_mib=400)
    torture.check_memory(few, torture.Run(seconds=10, peak_mib=430))
    with pytest.raises(torture.TortureError, match="from 400 to 450 MiB"):
        torture.check_memory(few, torture.Run(seconds=10, peak_mib=450))
