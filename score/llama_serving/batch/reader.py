"""Files of rows -> rows with their places: JSONL, CSV with a header, each also gzipped. Streams."""

import csv
import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from llama_serving.contract.rows import Place, Row, RowKind, read
from llama_serving.errors import BadRequest, BodyTooLarge, ServingError


@dataclass(frozen=True, slots=True)
class Line:
    """A non-blank line: a row, or why it is none."""

    place: Place
    row: Row | None
    error: ServingError | None = None


def lines(path: Path, name: str, *, max_bytes: int) -> Iterator[Line]:
    """The non-blank lines of a file, in order; a bad one is a `Line` with an error.

    Args:
        path: the file; `.gz` is unpacked, `.csv` (or `.csv.gz`) is CSV, all else is JSONL.
        name: what to call the file in the records.
        max_bytes: of one JSONL line.
    """
    number = 0
    try:
        with _open(path) as file:
            found = _csv(file, name) if _is_csv(path) else _jsonl(file, name, max_bytes)
            for line in found:
                number = line.place.line
                yield line
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError, csv.Error) as error:
        reason = BadRequest(f"The file can't be read behind line {number}: {error}.", code="unreadable_file")
        yield Line(Place(name, number + 1), None, reason)


def _open(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb"))


def _is_csv(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith(".csv")


def _jsonl(file: BinaryIO, name: str, max_bytes: int) -> Iterator[Line]:
    number = 0
    while raw := file.readline(max_bytes + 1):  # a binary file's lines end at \n bytes only
        number += 1
        place = Place(name, number)
        if len(raw) > max_bytes:
            _skip_line(file, raw)
            too_long = BodyTooLarge(f"The line has more than {max_bytes} bytes.")
            yield Line(place, None, too_long)
        elif raw.removeprefix(b"\xef\xbb\xbf").strip():
            yield _parsed(place, raw)


def _skip_line(file: BinaryIO, raw: bytes) -> None:
    while raw and not raw.endswith(b"\n"):
        raw = file.readline(1 << 20)


def _parsed(place: Place, raw: bytes) -> Line:
    try:
        return Line(place, read(raw))
    except ServingError as error:
        return Line(place, None, error)


def _csv(file: BinaryIO, name: str) -> Iterator[Line]:
    reader = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
    header = next(reader, [])
    last = reader.line_num
    for cells in reader:
        place, last = Place(name, last + 1), reader.line_num
        if cells:
            yield _csv_line(place, header, cells)


def _csv_line(place: Place, header: list[str], cells: list[str]) -> Line:
    if "input_string" not in header:
        return Line(place, None, BadRequest("The CSV has no column input_string.", code="missing_field"))
    if len(cells) != len(header):
        message = f"The CSV row has {len(cells)} cells; the header has {len(header)}."
        return Line(place, None, BadRequest(message, code="invalid_value"))
    row = dict(zip(header, cells, strict=True))
    content = {"input_string": row.pop("input_string")}
    return Line(place, Row(RowKind.SHORT, content, row.pop("id", None), row))
