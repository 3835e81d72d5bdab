"""The audit's lines: each holds the hash of the one before it, so that a change, gap or swap shows.

    {"line": 7, "previous": "<hash of line 6>", "time": …, …, "hash": "<SHA-256>"}

The hash is of the line's bytes without its last field. `previous` of line 1 is 64 zeros.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from llama_serving.contract.json_lines import json_line

_HASH: Final = re.compile(rb', "hash": "([0-9a-f]{64})"\}\n')
_END: Final = len(', "hash": ""}\n') + 64
"""Bytes of that field, with the brace and the line feed."""


@dataclass(frozen=True, slots=True)
class Link:
    """A line's number and hash, which the next line continues."""

    line: int = 0
    hash: str = "0" * 64


class BrokenChain(Exception):
    """A line is not what was written, or not where it was.

    Args:
        path, number: the file and its physical line.
        why: what is wrong.
    """

    def __init__(self, path: Path, number: int, why: str) -> None:
        super().__init__(f"{path}, line {number}: {why}")
        self.path, self.number, self.why = path, number, why


class _Damaged(Exception):
    """A line alone shows that it was changed."""


def seal(record: Mapping[str, Any], previous: Link) -> tuple[bytes, Link]:
    """Return the line of a record after another line, and its link."""
    body = json_line({"line": previous.line + 1, "previous": previous.hash, **record}).encode()
    link = Link(previous.line + 1, hashlib.sha256(body).hexdigest())
    return b'%s, "hash": "%s"}\n' % (body[:-1], link.hash.encode()), link


def unseal(raw: bytes) -> tuple[dict[str, Any], Link]:
    """Return the record of a line, with its fields `line` and `previous`, and its link.

    Raises:
        ValueError: it was changed, or is no line of an audit. The message says how that shows.
    """
    try:
        return _unsealed(raw)
    except _Damaged as error:
        raise ValueError(str(error)) from None


def _unsealed(raw: bytes) -> tuple[dict[str, Any], Link]:
    found = _HASH.fullmatch(raw[-_END:])
    if found is None:
        raise _Damaged("it does not end with a hash")
    body, said = raw[:-_END] + b"}", found[1].decode()
    if hashlib.sha256(body).hexdigest() != said:
        raise _Damaged("its content does not have its hash")
    try:
        record = json.loads(body)
        line, previous = record["line"], record["previous"]
    except (ValueError, KeyError, TypeError):
        raise _Damaged("it is no record") from None
    if type(line) is not int or not isinstance(previous, str):
        raise _Damaged("it is no record")
    return record, Link(line, said)


def records(path: Path) -> Iterator[tuple[int, dict[str, Any], Link]]:
    """Yield physical line, record and link of each line of a file. An incomplete last line, of a killed server, is left out.

    Raises:
        BrokenChain: a line is not what was written.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.endswith(b"\n"):
                return
            try:
                yield number, *unseal(raw)
            except ValueError as error:
                raise BrokenChain(path, number, str(error)) from None


def links(paths: Iterable[Path]) -> Iterator[Link]:
    """Yield the links of an audit's files, in the order of the chain, whatever the order of the files.

    Raises:
        BrokenChain: a line is not what was written, or not where it was.
        OSError: a file cannot be read.
    """
    last: Link | None = None
    for path in sorted(paths, key=_first_line):
        for number, record, link in records(path):
            _check_place(path, number, record, last or Link(link.line - 1, _start(record)))
            last = link
            yield link


def _start(record: Mapping[str, Any]) -> str:
    """Return what the first line that is given must continue: nothing known, unless it is line 1."""
    return Link().hash if record["line"] == 1 else str(record["previous"])


def _check_place(path: Path, number: int, record: Mapping[str, Any], before: Link) -> None:
    if record["line"] != before.line + 1:
        raise BrokenChain(
            path, number, f"it is line {record['line']} of the audit, where {before.line + 1} follows"
        )
    if record["previous"] != before.hash:
        raise BrokenChain(
            path, number, "it does not continue the line before it, which was changed or replaced"
        )


def _first_line(path: Path) -> int:
    with path.open("rb") as file:
        try:
            return unseal(file.readline())[1].line
        except ValueError:
            return 0  # (reading it says what is wrong)


def torn(path: Path) -> bool:
    """Return whether a file's last line is incomplete.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1))
        return file.read() not in (b"", b"\n")


def last_link(file: BinaryIO) -> tuple[Link | None, int]:
    """Return the link of a file's last complete line, and the size of the file up to there.

    Returns:
        None and 0 if there is no complete line.

    Raises:
        ValueError: that line was changed.
    """
    size = file.seek(0, 2)
    block, tail = 1 << 16, b""
    while True:
        start = max(0, size - block)
        file.seek(start)
        tail = file.read(size - start)
        complete = tail[: tail.rfind(b"\n") + 1]
        before = complete[:-1].rfind(b"\n") + 1
        if start == 0 or before:
            break
        block *= 4
    if not complete:
        return None, 0
    return unseal(complete[before:])[1], start + len(complete)
