"""Data files of tasks: JSON Lines (also `.gz`) and CSV, each row held to a JSON schema. An error names the line."""

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from llama_serving.errors import SetupError

_CSV: Final = ".csv"
_SHOWN: Final = 200
"""Characters of an error that quotes a value."""


def rows(path: Path, schema: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the line number and the content of each row. Blank lines are skipped; values of a CSV are strings.

    Args:
        path: the file.
        schema: what each row must be.

    Raises:
        SetupError: the file is missing or empty, or a line is not such a row.
    """
    from jsonschema import Draft202012Validator

    check, found = Draft202012Validator(schema), []
    for line, row in _rows(path):
        error = next(
            iter(sorted(check.iter_errors(row), key=lambda one: list(map(str, one.absolute_path)))), None
        )
        if error is not None:
            where = "".join(f"[{key!r}]" for key in error.absolute_path)
            raise SetupError(f"{path}, line {line}{where and f', {where}'}: {_reason(error)}.")
        found.append((line, row))
    if not found:
        raise SetupError(f"{path} has no row.")
    return found


def sha256(path: Path) -> str:
    """Return the digest of a file as it is on the disk.

    Raises:
        SetupError: it cannot be read.
    """
    with _reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Any) -> str:
    """Return what was wrong, without a long value."""
    if len(error.message) <= _SHOWN:
        return str(error.message)
    return f"the value must satisfy {error.validator}: {error.validator_value}"


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    packed = path.suffix == ".gz"
    kind = Path(path.stem).suffix if packed else path.suffix
    with _reading(path), gzip.open(path, "rb") if packed else path.open("rb") as file:
        yield from _csv_rows(file, path) if kind.lower() == _CSV else _json_rows(file, path)


def _json_rows(file: Any, path: Path) -> Iterator[tuple[int, Any]]:
    for line, raw in enumerate(file, 1):
        text = raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw
        if text.strip():
            try:
                yield line, json.loads(text)
            except (ValueError, RecursionError) as error:
                raise SetupError(f"{path}, line {line}: not JSON ({error}).") from error


def _csv_rows(file: BinaryIO | Any, path: Path) -> Iterator[tuple[int, Any]]:
    with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
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


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SetupError(f"{path} can't be read: {reason}. Give a data file with --data.") from error
