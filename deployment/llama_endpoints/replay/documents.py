"""Reads an answer with its receipts from a file: a JSON value, or a stream as it was sent."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from llama_endpoints.replay.claims import Claim, claims
from llama_serving.contract.strict_json import decode_value
from llama_serving.errors import ServingError, SetupError

_DATA: Final = b"data:"
_DONE: Final = b"[DONE]"


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
        lines = [line for line in (_json_of(one) for one in raw.splitlines()) if line]
        if len(lines) > 1 and all(line.startswith(b"{") and line.endswith(b"}") for line in lines):
            return _of_stream([decode_value(line) for line in lines])
        return claims(decode_value(lines[0] if raw.lstrip().startswith(_DATA) else raw))
    except ServingError as error:
        raise SetupError(f"{path} can't be read as JSON. {error.message}") from error


def _json_of(line: bytes) -> bytes:
    """Return the JSON in a line of a stream; nothing if it has none."""
    line = line.strip().removeprefix(_DATA).strip()
    return b"" if line == _DONE else line


def _of_stream(events: Sequence[Any]) -> tuple[Claim, ...]:
    """Return the receipts of a stream, each with the text of its sequence's events."""
    texts: dict[int, str] = defaultdict(str)
    for event in events:
        for index, piece in _pieces(event):
            texts[index] += piece
    found = claims(list(events))
    return tuple(replace(one, text=texts.get(one.receipt["index"]), token_ids=None) for one in found)


def _pieces(event: Any) -> Iterator[tuple[int, str]]:
    """Yield the pieces of text in an event of any protocol, with the index of their sequence."""
    if not isinstance(event, Mapping):
        return
    for choice in event.get("choices", ()):
        piece = choice["text"] if "text" in choice else choice.get("delta", {}).get("content")
        if isinstance(piece, str):
            yield choice["index"], piece
    message = event.get("message")
    for piece in (event.get("response"), event.get("content"), message and message.get("content")):
        if isinstance(piece, str):
            yield 0, piece
    for name, piece in event.items():
        if name.isdecimal() and isinstance(piece, str):
            yield int(name), piece
