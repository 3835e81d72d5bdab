"""Inputs, and the order in which rows go."""

import gzip
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from llama_serving.batch.inputs import digest, find
from llama_serving.batch.reader import Line
from llama_serving.batch.windows import Todo, ordered, windows
from llama_serving.contract.request import (
    Completion,
    Dialog,
    Infill,
    Input,
    Message,
    Parameters,
    ReplyShape,
    Request,
    TokenIds,
)  # fmt: skip
from llama_serving.contract.rows import RowLocation
from llama_serving.errors import SetupError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "b.jsonl",
        "a.csv",
        "sub/c.jsonl.gz",
        "sub/b.jsonl",
        "notes.md",
        ".hidden.jsonl",
        ".git/x.jsonl",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x\n")
    return tmp_path


def names(*given: Path | str) -> list[str]:
    return [source.name for source in find([str(one) for one in given])]


def test_a_folder_gives_its_files_of_rows_by_name(tree: Path) -> None:
    assert names(tree) == ["a.csv", "b.jsonl", "sub/b.jsonl", "sub/c.jsonl.gz"]


def test_names_are_below_what_is_common(tree: Path) -> None:
    assert names(tree / "b.jsonl") == ["b.jsonl"]
    assert names(tree / "sub" / "b.jsonl", tree / "b.jsonl") == ["sub/b.jsonl", "b.jsonl"]
    assert names(tree / "sub", tree / "notes.md") == ["sub/b.jsonl", "sub/c.jsonl.gz", "notes.md"]
    assert names(tree / "*.jsonl", tree / "**" / "*.gz") == ["b.jsonl", "sub/c.jsonl.gz"]


@pytest.mark.parametrize(
    ("given", "says"),
    [((), "No input"), (("nowhere",), "no file matches"), (("*.nothing",), "no file matches"), (("empty",), "no file that ends"),
     (("b.jsonl", "./b.jsonl"), "given twice"), ((".", "b.jsonl"), "given twice")],
)  # fmt: skip
def test_what_is_no_input_is_a_sentence(
    tree: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], says: str
) -> None:
    (tree / "empty").mkdir()
    monkeypatch.chdir(tree)
    with pytest.raises(SetupError, match=says):
        find(given)


@pytest.mark.parametrize(
    ("raw", "lines"), [(b"", 0), (b"a", 1), (b"a\n", 1), (b"a\nb", 2), (b"\n" * 3_000_000, 3_000_000)]
)
def test_a_digest(tmp_path: Path, raw: bytes, lines: int) -> None:
    told: list[int] = []
    (tmp_path / "a.jsonl").write_bytes(raw)
    (found,) = find([str(tmp_path / "a.jsonl")])
    result = digest(found, told.append)
    assert (result.bytes, sum(told), result.lines) == (len(raw), len(raw), lines)
    assert result.sha256 == hashlib.sha256(raw).hexdigest()


def test_lines_of_a_packed_file_are_not_counted_and_one_that_cant_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"a\n"))
    (found,) = find([str(tmp_path / "a.jsonl.gz")])
    assert digest(found, lambda _: None).lines is None
    found.path.unlink()
    with pytest.raises(SetupError, match="can't be read"):
        digest(found, lambda _: None)


def todo(number: int, given: Input | None, **parameters: Any) -> Todo:
    asked = (
        None
        if given is None
        else Request((given,), Parameters(**parameters), ReplyShape.ROWS, ("p",), "parameters")
    )
    return Todo(number, Line(RowLocation("f", number), None), asked)


def test_the_longest_go_first() -> None:
    rows = [
        todo(0, Completion("a")), todo(1, Completion("a"), max_new_tokens=500), todo(2, None),
        todo(3, Infill("a" * 50, "b" * 500), max_new_tokens=100), todo(4, Dialog((Message("user", "x" * 9000),))),
        todo(5, TokenIds((1,) * 1200), max_new_tokens=1), todo(6, Completion("a"), max_new_tokens=5, num_return_sequences=16),
    ]  # fmt: skip
    assert [row.number for row in ordered(rows)] == [4, 5, 1, 3, 0, 6, 2]


def test_rows_that_begin_alike_go_together() -> None:
    common = "x" * 300
    rows = [
        todo(n, Completion((common if n % 3 else f"{n}" * 300) + "y" * 3 * n), max_new_tokens=10)
        for n in range(9)
    ]
    rows[4] = todo(4, Completion(common + "y" * 900), max_new_tokens=10)
    order = [row.number for row in ordered(rows)]
    assert order[:6] == [4, 8, 7, 5, 2, 1]
    assert sorted(order) == list(range(9))


def test_windows_go_one_after_the_other() -> None:
    rows = [todo(n, Completion("a" * (n + 1))) for n in range(10)]
    assert [sorted(row.number for row in window) for window in windows(iter(rows), 4)] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]  # fmt: skip


@pytest.mark.parametrize("ids", [(1, 2_000_000), (10**11,) * 90, (-5,)])
def test_ids_that_no_model_has_are_put_in_order_too(ids: tuple[int, ...]) -> None:
    rows = [todo(0, TokenIds(ids)), todo(1, TokenIds(ids)), todo(2, Completion("a"))]
    assert sorted(row.number for row in ordered(rows)) == [0, 1, 2]


def test_a_window_holds_no_more_characters_than_it_may() -> None:
    rows = [todo(n, Completion("a" * 100)) for n in range(10)]
    assert [len(window) for window in windows(iter(rows), 1000, characters=250)] == [3, 3, 3, 1]


def test_links_have_the_names_that_they_have(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.jsonl").write_text("{}\n")
    for folder in ("a", "b"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        (tmp_path / "in" / folder / "x.jsonl").symlink_to(tmp_path / "data" / "x.jsonl")
    assert names(tmp_path / "in") == ["a/x.jsonl", "b/x.jsonl"]


def test_what_is_no_regular_file_or_has_no_name_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SetupError, match="pipe is not a regular file"):
        find([str(tmp_path / "pipe")])
    odd = os.fsencode(tmp_path) + b"/\xff.jsonl"
    with open(odd, "wb"):  # noqa: PTH123
        pass
    with pytest.raises(SetupError, match="is not UTF-8"):
        find([str(tmp_path / "*.jsonl")])


def test_a_jobs_own_files_are_no_inputs(tree: Path) -> None:
    ours = [tree / "b.jsonl", tree / "nothing.jsonl"]
    assert [source.name for source in find([str(tree)], but=ours)] == ["a.csv", "sub/b.jsonl", "sub/c.jsonl.gz"]
    with pytest.raises(SetupError, match="no file matches"):  # (there is no other)
        find([str(tree / "*.jsonl")], but=ours)
    with pytest.raises(SetupError, match="--output would overwrite it"):
        find([str(tree / "b.jsonl")], but=ours)
