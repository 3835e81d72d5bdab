"""Regular expressions on a text that may go on: a match counts once nothing that follows can undo it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import regex

_PADDING: Final = "\0\0"
"""Stands behind a text that goes on, so that `$` and `\\Z` do not take its end for the end."""
_SETTLED: Final = r"(?=[\s\S]{3})"
"""Behind a match that counts: one character of the text, and the padding."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is searched.

    Attributes:
        text: as far as it has come.
        complete: nothing follows.
    """

    text: str
    complete: bool


class GrowingPattern:
    """A pattern that finds the same in a text that comes in pieces as in the whole of it.

    In a text that goes on, a match needs one character behind it: a word could become a longer one, and `\\b`, `(?!…)` or `$` look at
    what follows. If a longer match reaches the end, a shorter one counts. (An assertion that looks further ahead than one
    character may still change its mind.)

    Args:
        pattern: in the syntax of the package `regex`.
        flags: of that package.

    Raises:
        regex.error: the pattern is invalid.
    """

    def __init__(self, pattern: str, flags: int = 0) -> None:
        self.whole = regex.compile(pattern, flags)
        self._settled = _with_a_character_behind(pattern, flags)

    def search(
        self, subject: Subject, start: int, timeout_s: float, *, settled: bool
    ) -> "regex.Match[str] | None":
        """Return the first match that begins at `start` or behind it. What stands before is seen by `^`, `\\b` and the like.

        Args:
            settled: what follows must not undo it; otherwise the text is taken as it stands, which finds all that is settled, too.

        Raises:
            TimeoutError: it takes longer.
        """
        pattern, text = self._on(subject, settled=settled)
        return pattern.search(text, start, timeout=_left(timeout_s), concurrent=True)

    def of_lines(
        self, subject: Subject, start: int, timeout_s: float, *, settled: bool
    ) -> Iterator["regex.Match[str]"]:
        """Yield the matches within one line each, from `start` on. Each search may take `timeout_s`.

        Raises:
            TimeoutError: one takes longer.
        """
        pattern, text = self._on(subject, settled=settled)
        last = text.rfind("\n", start) + 1 or start
        while start < last:
            end = text.index("\n", start)
            yield from self.whole.finditer(text, start, end, timeout=_left(timeout_s), concurrent=True)
            start = end + 1
        yield from pattern.finditer(text, start, timeout=_left(timeout_s), concurrent=True)

    def _on(self, subject: Subject, *, settled: bool) -> tuple["regex.Pattern[str]", str]:
        if subject.complete or not settled:
            return self.whole, subject.text
        return self._settled, subject.text + _PADDING


def _with_a_character_behind(pattern: str, flags: int) -> "regex.Pattern[str]":
    try:
        return regex.compile(f"(?:{pattern}){_SETTLED}", flags)
    except regex.error:  # a verbose pattern ends with a comment
        return regex.compile(f"(?:{pattern}\n){_SETTLED}", flags)


def _left(seconds: float) -> float:
    """Return a time limit as `regex` takes it.

    Raises:
        TimeoutError: there is no time left.
    """
    if seconds <= 0:
        raise TimeoutError
    return seconds
