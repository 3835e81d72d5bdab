"""Files of rows -> rows with their locations: JSONL, CSV with a header, each also gzipped. Streaming."""

import csv
import gzip
import re
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, cast

from llama_serving.contract.rows import InputRow, RowKind, RowLocation, read
from llama_serving.errors import BadRequest, BodyTooLarge, ServingError

_BOM: Final = b"\xef\xbb\xbf"
_SKIPPED_AT_ONCE: Final = 1 << 20
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Line:
    """A non-blank line: a row, or the reason why it is invalid."""

    place: RowLocation
    row: InputRow | None
    error: ServingError | None = None


def lines(path: Path, name: str, *, max_bytes: int) -> Iterator[Line]:
    """Yield the non-blank lines of a file, in order; an invalid one has an error.

    Args:
        path: the file; `.gz` is decompressed, `.csv` (or `.csv.gz`) is CSV, everything else JSONL.
        name: of the file in the records.
        max_bytes: of one physical line, and of one CSV cell.
    """
    if not is_csv(path):
        yield from (line(place, raw) for place, raw in raw_lines(path, name, max_bytes=max_bytes))
        return
    with _open(path) as file:
        yield from _csv(_PhysicalLines(file, max_bytes), name, max_bytes)


def raw_lines(path: Path, name: str, *, max_bytes: int) -> Iterator[tuple[RowLocation, bytes | ServingError]]:
    """Yield the non-blank lines of a JSONL file, in order, as bytes or as the reason why they cannot be read."""
    with _open(path) as file:
        physical = _PhysicalLines(file, max_bytes)
        while True:
            raw: bytes | ServingError | None
            try:
                raw = next(physical, None)
            except ServingError as error:
                raw = error
            if raw is None:
                return
            if isinstance(raw, ServingError) or raw.strip():
                yield RowLocation(name, physical.number), raw


def is_csv(path: Path) -> bool:
    """Return whether a file is CSV, by its name."""
    return path.name.lower().removesuffix(".gz").endswith(".csv")


def _open(path: Path) -> BinaryIO:
    packed = path.suffix.lower() == ".gz"
    return cast("BinaryIO", gzip.open(path, "rb") if packed else path.open("rb"))


class _PhysicalLines:
    r"""The text between `\n` bytes. After an error the iteration can continue with the next line.

    Attributes:
        number: of the last line, readable or not, from 1.
    """

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self.number = 0
        self._file = file
        self._max_bytes = max_bytes
        self._damaged = False

    def __iter__(self) -> "_PhysicalLines":
        return self

    def __next__(self) -> bytes:
        if self._damaged:
            raise StopIteration
        self.number += 1
        try:
            raw = self._file.readline(self._max_bytes + len(b"\r\n") + 1)
            too_long = len(raw.rstrip(b"\r\n")) > self._max_bytes
            if too_long:
                self._skip_rest(raw)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            self._damaged = True
            message = f"The file can't be read from this line on: {error}."
            raise BadRequest(message, code="unreadable_file") from error
        if not raw:
            self.number -= 1
            raise StopIteration
        if too_long:
            raise BodyTooLarge(f"The line has more than {self._max_bytes} bytes.")
        return raw.removeprefix(_BOM) if self.number == 1 else raw

    def _skip_rest(self, raw: bytes) -> None:
        while raw and not raw.endswith(b"\n"):
            raw = self._file.readline(_SKIPPED_AT_ONCE)


def line(place: RowLocation, raw: bytes | ServingError) -> Line:
    """Take a line of JSONL apart."""
    if isinstance(raw, ServingError):
        return Line(place, None, raw)
    try:
        return Line(place, read(raw))
    except ServingError as error:
        return Line(place, None, error)


class _CsvText:
    """Physical lines for `csv.reader`; the lines of an invalid row can be read again."""

    def __init__(self, physical: _PhysicalLines) -> None:
        self._physical = physical
        self._row: list[str] = []
        self._again: deque[str] = deque()

    def __iter__(self) -> "_CsvText":
        return self

    def __next__(self) -> str:
        # Invalid UTF-8 becomes surrogates, which make only their own row invalid.
        text = self._again.popleft() if self._again else next(self._physical).decode("utf-8", "surrogateescape")
        self._row.append(text)
        return text

    def start_row(self) -> int:
        """Start a row, and return the number of its first line."""
        self._row.clear()
        return self._physical.number - len(self._again) + 1

    def give_back(self) -> None:
        """Return all lines of this row but the first, so that an unclosed quote costs one row only."""
        self._again.extendleft(reversed(self._row[1:]))


def _csv(physical: _PhysicalLines, name: str, max_bytes: int) -> Iterator[Line]:
    # This limit applies to all readers of the process; its default is shorter than a prompt may be.
    csv.field_size_limit(max(csv.field_size_limit(), max_bytes))
    text = _CsvText(physical)
    reader = csv.reader(text, strict=True)
    header: list[str] | None = None
    while True:
        place = RowLocation(name, text.start_row())
        try:
            cells = next(reader, None)
            if cells is None:
                return
            if not cells:
                continue
            if header is None:
                header = cells
                continue
            line = Line(place, _csv_row(header, cells))
        except csv.Error as error:
            text.give_back()
            line = Line(place, None, BadRequest(f"The row is not valid CSV: {error}.", code="invalid_csv"))
        except ServingError as error:
            line = Line(place, None, error)
        header = header or []  # an invalid header is not searched for further down
        yield line


def _csv_row(header: list[str], cells: list[str]) -> InputRow:
    if header.count("input_string") != 1 or len(set(header)) != len(header):
        message = "The header of a CSV must have one column input_string, and no name twice."
        raise BadRequest(message, code="missing_field")
    if len(cells) != len(header):
        message = f"The CSV row has {len(cells)} cells; the header has {len(header)}."
        raise BadRequest(message, code="invalid_csv")
    if any(_SURROGATE.search(text) for text in (*header, *cells)):
        raise BadRequest("The CSV row is not UTF-8. Save the file as UTF-8.", code="invalid_csv")
    row = dict(zip(header, cells, strict=True))
    content = {"input_string": row.pop("input_string")}
    return InputRow(RowKind.TABLE, content, row.pop("id", None), row)
