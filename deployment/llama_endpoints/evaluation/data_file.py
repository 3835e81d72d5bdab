"""Data files whose columns the task's options name: JSON Lines (also `.gz`) and CSV, each row held to a schema made for them."""

import csv
import gzip
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llama_endpoints.evaluation import dataset
from llama_serving.errors import SetupError

_BOM = b"\xef\xbb\xbf"


def rows(path: Path, schema: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the line number and the content of each row. Blank lines are skipped; values of a CSV are strings.

    Args:
        path: the file.
        schema: what each row must be.

    Raises:
        SetupError: the file is missing or empty, or a line is not such a row.
    """
    from jsonschema import Draft202012Validator

    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    checker, found = Draft202012Validator(schema), []
    for line, row in _csv_rows(path) if kind.lower() == ".csv" else _json_rows(path):
        dataset.check(checker, row, f"{path}, line {line}")
        found.append((line, row))
    if not found:
        raise SetupError(f"{path} has no row.")
    return found


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    for line, raw in dataset.lines(path):
        text = raw.removeprefix(_BOM) if line == 1 else raw
        yield line, dataset.decoded(text, f"{path}, line {line}")


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with (
        dataset.reading(path),
        gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file,
        io.TextIOWrapper(file, "utf-8-sig", newline="") as text,
    ):
        reader = csv.DictReader(text, strict=True)
        try:
            before = reader.line_num if reader.fieldnames else 0  # (reading the names moves it)
            for row in reader:
                line, before = before + 1, reader.line_num
                yield (
                    line,
                    {name: value for name, value in row.items() if name is not None and value is not None},
                )
        except (csv.Error, UnicodeDecodeError) as error:
            raise SetupError(f"{path}, line {reader.line_num}: not CSV ({error}).") from error
