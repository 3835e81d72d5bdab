"""Lines of files: JSONL and CSV, packed or not, whole or damaged, and their numbers."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_serving.batch.reader import Line, lines
from llama_serving.contract.rows import RowKind

LIMIT = 1024
BOM = b"\xef\xbb\xbf"


def read(folder: Path, raw: bytes, name: str = "rows.jsonl", limit: int = LIMIT) -> list[Line]:
    path = folder / name
    path.write_bytes(raw)
    return list(lines(path, name, max_bytes=limit))


def told(found: list[Line]) -> list[tuple[int, Any]]:
    """The physical number of each line, and its prompt or the code of its error."""
    return [
        (line.place.line, line.error.code if line.row is None and line.error else line.row and prompt_of(line))
        for line in found
    ]


def prompt_of(line: Line) -> Any:
    assert line.row is not None
    return line.row.content["input_string"]


def row(prompt: object, **others: object) -> bytes:
    return json.dumps({"input_string": prompt, **others}, ensure_ascii=False).encode()


A, B, C = row("a"), row("b"), row("c")


class TestJsonLines:
    @pytest.mark.parametrize(
        ("raw", "expected"),
        [
            pytest.param(b"", [], id="nothing"),
            pytest.param(b"\n \n\t\r\n", [], id="nothing but blank lines"),
            pytest.param(A + b"\n" + B + b"\n", [(1, "a"), (2, "b")], id="two lines"),
            pytest.param(A + b"\n" + B, [(1, "a"), (2, "b")], id="no newline at the end"),
            pytest.param(A + b"\r\n" + B + b"\r\n", [(1, "a"), (2, "b")], id="CRLF"),
            pytest.param(b"\n" + A + b"\n \t\n\r\n" + B, [(2, "a"), (5, "b")], id="blank lines are counted"),
            pytest.param(BOM + A + b"\n" + B, [(1, "a"), (2, "b")], id="BOM"),
            pytest.param(BOM, [], id="nothing but a BOM"),
            pytest.param(BOM + b"\n" + A, [(2, "a")], id="a BOM on a blank line"),
            pytest.param(
                row("1\u2028 2\u2029 3\x85 4") + b"\n" + A,
                [(1, "1\u2028 2\u2029 3\x85 4"), (2, "a")],
                id="other line separators are text",
            ),
            pytest.param(A + b"\r" + B + b"\n" + C, [(1, "invalid_json"), (2, "c")], id="a bare CR ends no line"),
            pytest.param(A + b"\x0c\n" + B, [(1, "invalid_json"), (2, "b")], id="a form feed is no white space"),
            pytest.param(A[:-2] + b"\n" + B, [(1, "invalid_json"), (2, "b")], id="a line cut short"),
            pytest.param(b'"a"\n' + B, [(1, "invalid_json"), (2, "b")], id="no object"),
            pytest.param(row("é").decode().encode("latin-1") + b"\n" + B, [(1, "invalid_json"), (2, "b")], id="Latin-1"),
            pytest.param(b'{"input_string": "\\ud800"}\n' + B, [(1, "invalid_json"), (2, "b")], id="surrogate"),
            pytest.param(b'{"input_string": "a", "input_string": "b"}\n' + B, [(1, "invalid_json"), (2, "b")], id="twice"),
            pytest.param(b'{"input_string": "a", "x": NaN}\n' + B, [(1, "invalid_json"), (2, "b")], id="NaN"),
            pytest.param(b"[" * 900 + b"\n" + B, [(1, "invalid_json"), (2, "b")], id="depth"),
        ],
    )  # fmt: skip
    def test_lines_and_their_numbers(self, tmp_path: Path, raw: bytes, expected: list[tuple[int, Any]]) -> None:
        assert told(read(tmp_path, raw)) == expected
        assert told(read(tmp_path, gzip.compress(raw), "rows.jsonl.gz")) == expected
        assert told(read(tmp_path, gzip.compress(raw), "ROWS.JSONL.GZ")) == expected

    @pytest.mark.parametrize("ending", [b"\n", b"\r\n", b""])
    @pytest.mark.parametrize("bom", [b"", BOM])
    def test_the_limit_is_of_the_line_without_its_ending(
        self, tmp_path: Path, ending: bytes, bom: bytes
    ) -> None:
        fits = row("x" * (LIMIT - len(row("")) - len(bom)))
        raw = bom + fits + ending
        assert [line.error for line in read(tmp_path, raw)] == [None]
        raw = bom + fits[:-2] + b'y"}' + ending
        assert told(read(tmp_path, raw)) == [(1, "body_too_large")]

    @pytest.mark.parametrize("size", [LIMIT + 1, LIMIT + 2, LIMIT + 3, LIMIT + 4, 3 * LIMIT, 3 << 20])
    def test_a_line_that_is_too_long_is_one_error(self, tmp_path: Path, size: int) -> None:
        raw = A + b"\n" + b"x" * size + b"\r\n\n" + C
        assert told(read(tmp_path, raw)) == [(1, "a"), (2, "body_too_large"), (4, "c")]


class TestDamagedArchives:
    ROWS = b"".join(row(f"prompt {number}", noise=number**7 % 1_000_003) + b"\n" for number in range(5000))

    @pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
    def test_what_can_be_unpacked_is_kept(self, tmp_path: Path, kept: float) -> None:
        packed = gzip.compress(self.ROWS)
        found = read(tmp_path, packed[: int(len(packed) * kept)], "rows.jsonl.gz")
        assert len(found) > 4500 * kept
        assert told(found[:-1]) == [(number + 1, f"prompt {number}") for number in range(len(found) - 1)]
        assert told(found[-1:]) == [(len(found), "unreadable_file")]

    def test_the_place_of_the_damage_counts_blank_lines(self, tmp_path: Path) -> None:
        packed = gzip.compress(A + b"\n\n\n" + b"x" * 99)
        assert told(read(tmp_path, packed[:-9], "rows.jsonl.gz")) == [(1, "a"), (4, "unreadable_file")]

    @pytest.mark.parametrize(
        ("damage", "readable"),
        [
            pytest.param(lambda packed: b"", 0, id="empty"),
            pytest.param(lambda packed: packed[:5], 0, id="half a header"),
            pytest.param(lambda packed: TestDamagedArchives.ROWS[:200], 0, id="not packed at all"),
            pytest.param(lambda packed: packed[:20] + b"\xff" * 50 + packed[70:], 0, id="broken at the start"),
            pytest.param(lambda packed: packed[:-8] + bytes(8), 5000, id="wrong checksum"),
            pytest.param(lambda packed: packed + b"tail", 5000, id="something behind it"),
        ],
    )
    def test_other_damage_is_one_error(
        self, tmp_path: Path, damage: Callable[[bytes], bytes], readable: int
    ) -> None:
        found = read(tmp_path, damage(gzip.compress(self.ROWS)), "rows.jsonl.gz")
        errors = [line.error.code for line in found if line.error]
        assert errors == (["unreadable_file"] if damage(b"") or found else [])
        assert len(found) - len(errors) == readable

    def test_archives_one_behind_the_other_are_one_file(self, tmp_path: Path) -> None:
        raw = gzip.compress(A + b"\n") + gzip.compress(B)
        assert told(read(tmp_path, raw, "rows.gz")) == [(1, "a"), (2, "b")]

    def test_a_file_that_is_not_there_is_no_row(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            list(lines(tmp_path / "absent.jsonl", "absent.jsonl", max_bytes=LIMIT))


class TestCsv:
    @pytest.mark.parametrize(
        ("raw", "expected"),
        [
            pytest.param(b"", [], id="nothing"),
            pytest.param(b"input_string\n", [], id="nothing but a header"),
            pytest.param(b"input_string\na\nb\n", [(2, "a"), (3, "b")], id="two rows"),
            pytest.param(b"input_string\na\nb", [(2, "a"), (3, "b")], id="no newline at the end"),
            pytest.param(b"input_string\r\na\r\n\r\nb\r\n", [(2, "a"), (4, "b")], id="CRLF and blank lines"),
            pytest.param(BOM + b"input_string\na\n", [(2, "a")], id="BOM"),
            pytest.param(BOM + b'"input_string"\na\n', [(2, "a")], id="BOM before a quote"),
            pytest.param(b"\n\ninput_string\na\n", [(4, "a")], id="blank lines before the header"),
            pytest.param(b'input_string\n"a\n\nb"\nc\n', [(2, "a\n\nb"), (5, "c")], id="a prompt of three lines"),
            pytest.param(b'input_string\n"a\r\nb"\r\nc\n', [(2, "a\r\nb"), (4, "c")], id="CRLF inside a prompt"),
            pytest.param(b'input_string\n"a\rb"\nc\n', [(2, "a\rb"), (3, "c")], id="CR inside a prompt"),
            pytest.param(b'input_string\n"a ""b"" c"\n', [(2, 'a "b" c')], id="quotes"),
            pytest.param(
                "input_string\na\u2028b\x85c\nd\n".encode(),
                [(2, "a\u2028b\x85c"), (3, "d")],
                id="other line separators are text",
            ),
            pytest.param(b"input_string,x\na,1\nb\nc,3\n", [(2, "a"), (3, "invalid_csv"), (4, "c")], id="a cell short"),
            pytest.param(b"input_string\na,1\nb\n", [(2, "invalid_csv"), (3, "b")], id="a cell more"),
            pytest.param(b"prompt\na\nb\n", [(2, "missing_field"), (3, "missing_field")], id="no such column"),
            pytest.param(b"input_string,input_string\na,b\n", [(2, "missing_field")], id="the column twice"),
            pytest.param(b"input_string,x,x\na,b,c\n", [(2, "missing_field")], id="a name twice"),
            pytest.param(b"input_string\na\n\xff\nc\n", [(2, "a"), (3, "invalid_csv"), (4, "c")], id="not UTF-8"),
            pytest.param(b"input_string,\xe9\na,1\n", [(2, "invalid_csv")], id="a header that is not UTF-8"),
            pytest.param(
                b'input_string\na\n"b"x\nc\n', [(2, "a"), (3, "invalid_csv"), (4, "c")], id="text behind a quote"
            ),
            pytest.param(
                b'input_string\na\n"b\nc\nd\n',
                [(2, "a"), (3, "invalid_csv"), (4, "c"), (5, "d")],
                id="an open quote takes nobody along",
            ),
            pytest.param(
                b'input_string\n"a\nb\n"c"\nd\n',
                [(2, "invalid_csv"), (3, "b"), (4, "c"), (5, "d")],
                id="an open quote that the next one closes",
            ),
            pytest.param(
                b'input_string\n"a\n"b\n"c\nd',
                [(2, "invalid_csv"), (3, "invalid_csv"), (4, "invalid_csv"), (5, "d")],
                id="nothing but open quotes",
            ),
            pytest.param(
                b'"input_string\na\n\nb\n',
                [(1, "invalid_csv"), (2, "missing_field"), (4, "missing_field")],
                id="a header that can't be read",
            ),
            pytest.param(b"input_string\na\rb\nc\n", [(2, "invalid_csv"), (3, "c")], id="a bare CR"),
            pytest.param(
                b"input_string\n" + b"x" * (LIMIT + 1) + b"\nb\n", [(2, "body_too_large"), (3, "b")], id="too long"
            ),
            pytest.param(
                b'input_string\n"' + b"x" * LIMIT + b'\nb"\nc\n',
                [(2, "body_too_large"), (3, 'b"'), (4, "c")],
                id="too long inside a quote",
            ),
        ],
    )  # fmt: skip
    def test_rows_and_their_numbers(self, tmp_path: Path, raw: bytes, expected: list[tuple[int, Any]]) -> None:
        assert told(read(tmp_path, raw, "rows.csv")) == expected
        assert told(read(tmp_path, gzip.compress(raw), "rows.csv.gz")) == expected
        assert told(read(tmp_path, raw, "ROWS.CSV")) == expected

    def test_a_long_prompt_is_no_error(self, tmp_path: Path) -> None:
        prompt = "def f():\n    return 1\n" * 10_000
        (found,) = read(tmp_path, f'input_string\n"{prompt}"\n'.encode(), "rows.csv", limit=1 << 20)
        assert prompt_of(found) == prompt

    def test_ids_and_other_columns_are_carried(self, tmp_path: Path) -> None:
        (found,) = read(tmp_path, b"team,input_string,id\nsearch,a,7\n", "rows.csv")
        assert found.row is not None
        assert (found.row.kind, found.row.id, found.row.extra) == (RowKind.TABLE, "7", {"team": "search"})

    def test_a_cut_archive_keeps_its_first_rows(self, tmp_path: Path) -> None:
        raw = b"input_string\n" + b"".join(b"prompt %d\n" % number for number in range(9000))
        packed = gzip.compress(raw)
        found = read(tmp_path, packed[: len(packed) // 2], "rows.csv.gz")
        assert told(found[:-1]) == [(number + 2, f"prompt {number}") for number in range(len(found) - 1)]
        assert told(found[-1:]) == [(len(found) + 1, "unreadable_file")]
        assert len(found) > 1000
