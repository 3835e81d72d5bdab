"""In which order rows go to the engine: a window at a time, the longest first, what begins alike together.

At a window's end no long row is left to run alone; a prompt's beginning that many rows share is computed once, while it
is in the cache. Windows go one after the other, so that no row is ever far from its place.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from llama_serving.batch.reader import Line
from llama_serving.contract.request import Completion, Dialog, Infill, Input, Request
from llama_serving.errors import ServingError

WINDOW: Final = 1024
"""Rows: enough to sort, and few enough to hold."""
COMMON: Final = 256
"""Characters that prompts must share to be put together: some 80 tokens, five blocks of the cache."""
CHARACTERS_A_TOKEN: Final = 3
"""Of code, roughly; it only orders."""
EXPECTED_NEW: Final = 256
"""Tokens of an answer that has no limit of its own."""


@dataclass(frozen=True, slots=True)
class Todo:
    """A row that is still to be done.

    Attributes:
        number: over all inputs, from 0.
        line: the row itself.
        asked: what it asks for; None where it is no request, and `error` says why.
    """

    number: int
    line: Line
    asked: Request | None
    error: ServingError | None = None


def windows(todos: Iterable[Todo], size: int = WINDOW) -> Iterator[list[Todo]]:
    """Windows of so many rows, each in the order in which its rows should go."""
    remaining = iter(todos)
    while window := list(islice(remaining, size)):
        yield ordered(window)


def ordered(window: list[Todo]) -> list[Todo]:
    """The longest first; rows that begin alike follow the longest of them."""
    longest: dict[str, int] = {}
    for todo in window:
        longest[_beginning(todo)] = max(longest.get(_beginning(todo), 0), _length(todo))
    return sorted(
        window, key=lambda todo: (-longest[_beginning(todo)], _beginning(todo), -_length(todo), todo.number)
    )


def _beginning(todo: Todo) -> str:
    """What a row must share with others; its own number where it is too short to share anything."""
    text = _text(todo.asked.inputs[0]) if todo.asked else ""
    return text[:COMMON] if len(text) >= COMMON else f"\0{todo.number}"


def _length(todo: Todo) -> int:
    if todo.asked is None:
        return 0
    asked = todo.asked.parameters
    new = asked.max_new_tokens or EXPECTED_NEW
    return _tokens(todo.asked.inputs[0]) + new * (asked.num_return_sequences or 1)


def _tokens(given: Input) -> int:
    return len(_text(given)) // CHARACTERS_A_TOKEN


def _text(given: Input) -> str:
    match given:
        case Completion(text):
            return text
        case Infill(prefix, suffix):
            return prefix + suffix
        case Dialog(messages):
            return "\n".join(message.content for message in messages)
        case _:  # token ids
            return "".join(map(chr, given.ids))
