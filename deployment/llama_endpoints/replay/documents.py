"""Reads an answer with its receipts from a file: a JSON value, or a stream as it was sent."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from llama_endpoints.replay.claims import Claim, claims
from llama_endpoints.replay.streams import claims_of_stream
from llama_serving.contract.strict_json import decode_value
from llama_serving.errors import ServingError, SetupError

_BOM: Final = b"\xef\xbb\xbf"
_DONE: Final = b"[DONE]"
_FIELD: Final = re.compile(rb"(data|event|id|retry|)(:|$)")
"""How a line of server-sent events begins: with a field's name, or with the colon of a comment."""
TAKEN: Final = (
    "Taken are a receipt, an answer in JSON, and a stream as it was sent: server-sent events, or lines of JSON."
)


def claims_in(path: Path) -> tuple[Claim, ...]:
    """Return the receipts in a file.

    Raises:
        SetupError: it can't be read, has no receipt, or has one that is not valid.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SetupError(f"{path} can't be read: {error.strerror}.") from error
    try:
        return _claims(raw.removeprefix(_BOM))
    except ServingError as error:
        raise SetupError(f"{path} can't be read as JSON. {error.message} {TAKEN}") from error
    except SetupError as error:
        raise SetupError(f"{path} can't be replayed. {error} {TAKEN}") from error


def _claims(raw: bytes) -> tuple[Claim, ...]:
    lines = [line for line in raw.splitlines() if line.strip()]
    if lines and _FIELD.match(lines[0]):
        events = [decode_value(data) for data in _data(raw.splitlines())]
        if not events:
            raise SetupError("Its server-sent events have no data.")
        return claims_of_stream(events)
    if len(lines) > 1 and all(_is_object(line.strip()) for line in lines):
        values = [decode_value(line) for line in lines]
        return claims(values) if all(map(_is_record, values)) else claims_of_stream(values)
    return claims(decode_value(raw))


def _data(lines: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the data of each server-sent event: its `data:` lines joined, without comments and other fields.

    Lines that are objects each are events each: some clients save a stream without the empty lines between events.
    """
    held: list[bytes] = []
    for line in (*lines, b""):
        name, _, value = line.partition(b":")
        if name == b"data" and value.strip() != _DONE:
            held.append(value.removeprefix(b" "))
        elif not line:
            if any(held):
                yield from held if all(_is_object(one.strip()) for one in held) else [b"\n".join(held)]
            held = []


def _is_object(line: bytes) -> bool:
    return line.startswith(b"{") and line.endswith(b"}")


def _is_record(value: Any) -> bool:
    """Return whether a line is a batch record; streams have no such keys."""
    return isinstance(value, dict) and ("output" in value or "custom_id" in value)
