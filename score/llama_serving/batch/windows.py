"""The order in which rows go to the engine: window by window, the longest first, common prefixes together.

So no long row is left to run alone at a window's end. A prefix that many rows share is computed once, while it is in
the cache.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from llama_serving.batch.reader import Line
from llama_serving.contract.request import Completion, Dialog, Infill, Input, Request, TokenIds
from llama_serving.errors import ServingError

WINDOW: Final = 1024
"""Rows in a window: enough to sort."""
CHARACTERS: Final = 1 << 25
"""Most characters of a window's prompts, which are held in memory, two windows at a time."""
COMMON: Final = 256
"""Characters of a common prefix that are compared: about 80 tokens, five blocks of the cache."""
COMMON_IDS: Final = 80
CHARACTERS_A_TOKEN: Final = 3
"""Roughly, of code; only used for ordering."""
EXPECTED_NEW: Final = 256
"""Tokens expected of a row without a limit."""


@dataclass(frozen=True, slots=True)
class Todo:
    """A row to do.

    Attributes:
        number: over all inputs, from 0.
        line: the row.
        request: its request; None if it is invalid, and `error` has the reason.
    """

    number: int
    line: Line
    request: Request | None
    error: ServingError | None = None


def windows(todos: Iterable[Todo], size: int = WINDOW, characters: int = CHARACTERS) -> Iterator[list[Todo]]:
    """Yield windows of at most so many rows or characters, each sorted."""
    window, held = list[Todo](), 0
    for todo in todos:
        window.append(todo)
        held += len(_text(todo.request.inputs[0])) if todo.request else 0
        if len(window) == size or held >= characters:
            yield ordered(window)
            window, held = [], 0
    if window:
        yield ordered(window)


def ordered(window: list[Todo]) -> list[Todo]:
    """Sort a window: the longest first; rows with a common prefix follow the longest of them."""
    longest: dict[object, int] = {}
    first: dict[object, int] = {}
    for todo in window:
        beginning = _beginning(todo)
        longest[beginning] = max(longest.get(beginning, 0), _length(todo))
        first.setdefault(beginning, todo.number)

    def key(todo: Todo) -> tuple[int, int, int, int]:
        beginning = _beginning(todo)
        return -longest[beginning], first[beginning], -_length(todo), todo.number

    return sorted(window, key=key)


def _beginning(todo: Todo) -> object:
    """Return the prefix that rows must share to be grouped; the row's number if it is too short."""
    given = todo.request.inputs[0] if todo.request else None
    if isinstance(given, TokenIds):
        return given.ids[:COMMON_IDS] if len(given.ids) >= COMMON_IDS else todo.number
    text = _text(given) if given else ""
    return text[:COMMON] if len(text) >= COMMON else todo.number


def _length(todo: Todo) -> int:
    if todo.request is None:
        return 0
    parameters = todo.request.parameters
    new = parameters.max_new_tokens or EXPECTED_NEW
    return _tokens(todo.request.inputs[0]) + new * (parameters.num_return_sequences or 1)


def _tokens(given: Input) -> int:
    return len(given.ids) if isinstance(given, TokenIds) else len(_text(given)) // CHARACTERS_A_TOKEN


def _text(given: Input) -> str:
    match given:
        case Completion(text):
            return text
        case Infill(prefix, suffix):
            return prefix + suffix
        case Dialog(messages):
            return "\n".join(message.content for message in messages)
        case TokenIds():
            return ""
