"""Data files of tasks: JSONL, optionally gzipped, each line checked against a JSON schema."""

import gzip
import hashlib
import importlib.util
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

from llama_serving.contract.json_lines import json_line
from llama_serving.errors import SetupError

_SCHEMAS: Final = Path(__file__).parent / "schemas"
_AT_ONCE: Final = 1 << 20
_SURROGATE: Final = rb"\ud"
_LONE: Final = re.compile("[\ud800-\udfff]")
_LONGEST: Final = 200
"""Characters of an error that quotes a value."""


def find(given: Path | None, package: str, names: Sequence[str], *, where: str) -> Path:
    """Return a task's data file: the one that is given, else the one of an installed package.

    Args:
        given: from the command line.
        package: that has the file.
        names: its paths, relative to the package's folder.
        where: where the data can be had, for the error.

    Raises:
        SetupError: there is none.
    """
    if given is not None:
        if not given.is_file():
            raise SetupError(f"{given} is not a file. Give the data file as --data.")
        return given
    try:
        found = importlib.util.find_spec(package) if package else None
    except (ImportError, ValueError):
        found = None
    folders = [Path(folder) for folder in (found.submodule_search_locations or ())] if found else []
    for path in (folder / name for folder in folders for name in names):
        if path.is_file():
            return path.resolve()
    raise SetupError(f"No data: give the file as --data FILE. {where}")


def read(path: Path, schema: str, *, key: str) -> list[dict[str, Any]]:
    """Return the objects of a data file.

    Args:
        path: of the file.
        schema: name of the schema that each line must fulfil.
        key: of the value that identifies a line.

    Raises:
        SetupError: a line is invalid; the message has its number.
    """
    checker, found = _validator(schema), list[dict[str, Any]]()
    seen: dict[Any, int] = {}
    for number, raw in lines(path):
        at = f"{path}, line {number}"
        value = decoded(raw, at)
        check(checker, value, at)
        if value[key] in seen:
            raise SetupError(f"{at}: {key} {value[key]!r} is that of line {seen[value[key]]}, too.")
        seen[value[key]] = number
        found.append(value)
    if not found:
        raise SetupError(f"{path} has no problem.")
    return found


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's files and their names.

    Raises:
        SetupError: it cannot be read.
    """
    sha = hashlib.sha256()
    if path.is_dir():
        for one in sorted(path.rglob("*")):
            if one.is_file():
                sha.update(f"{digest(one)} {one.relative_to(path).as_posix()}\n".encode())
        return sha.hexdigest()
    with reading(path), path.open("rb") as file:
        while piece := file.read(_AT_ONCE):
            sha.update(piece)
    return sha.hexdigest()


def check(checker: Any, value: Any, at: str) -> None:
    """Hold a value to a schema.

    Raises:
        SetupError: it is invalid; the message begins with `at`.
    """
    if error := next(iter(sorted(checker.iter_errors(value), key=_depth)), None):
        raise SetupError(f"{at}: {_said(error)}")


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the bytes of each line that is not blank.

    Raises:
        SetupError: the file cannot be read.
    """
    with reading(path), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if raw.strip():
                yield number, raw


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what can go wrong with a file into one sentence.

    Raises:
        SetupError: the file cannot be read.
    """
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise SetupError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}.") from error


def decoded(raw: bytes, at: str) -> Any:
    """Return the JSON value of a line.

    Raises:
        SetupError: it is not JSON, or has a surrogate alone, which no file in UTF-8 can hold; the message begins with `at`.
    """
    try:
        value = json.loads(raw)
        text = json_line(value) if _SURROGATE in raw.lower() else ""
    except (ValueError, RecursionError) as error:
        raise SetupError(f"{at} is not JSON: {error}.") from error
    if found := _LONE.search(text):
        raise SetupError(
            f"{at} has \\u{ord(found[0]):04x}, half of a surrogate pair, which is no character. Write the whole pair, or remove it."
        )
    return value


def _depth(error: Any) -> int:
    return len(error.absolute_path)


def _said(error: Any) -> str:
    at = ".".join(map(str, error.absolute_path))
    if error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        return f"{at + ': ' if at else ''}{', '.join(missing)} missing; each line needs {', '.join(error.validator_value)}."
    if error.validator == "type":
        return f"{at or 'the line'} must be of type {error.validator_value}."
    if len(error.message) > _LONGEST:  # (it quotes the value)
        return f"{at or 'the line'} must satisfy {error.validator}: {error.validator_value}."
    return f"{at or 'the line'}: {error.message}."


@cache
def _validator(name: str) -> Any:
    import jsonschema

    return jsonschema.Draft202012Validator(json.loads((_SCHEMAS / f"{name}.json").read_text(encoding="utf-8")))
