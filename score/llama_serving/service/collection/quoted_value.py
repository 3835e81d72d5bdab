"""Values in quotes behind names such as `password`: where one begins, and where it ends. Pure."""

from typing import Final

import regex

NAMES: Final = (
    r"(?:api[_-]?key|access[_-]?key|account[_-]?key|subscription[_-]?key|client[_-]?secret|secret|token(?!s)|passw(?:or)?d|pwd|"
    r"connection[_-]?string|credentials?)"
)
LEAST: Final = 4
"""Characters of a value that has an end."""
_TYPE: Final = r"[\w.]{1,64}(?:\[[\w., |]{1,64}\])?(?:\s?\|\s?[\w.]{1,32}){0,2}"
_NO_DOCSTRING: Final = r"(?![ \t]{0,8}\n\s{0,16}+(?:\"{3}|'{3}))"
"""A docstring may follow the colon of a class with such a name."""
BEGIN: Final = (
    rf"(?i:{NAMES})\w{{0,32}}(?:\\{{0,7}}[\"'`\])*]{{0,3}}|\[\d{{0,4}}\])\s{{0,8}}"  # the name, in quotes or as an index
    rf"(?::\s{{0,8}}{_TYPE}\s{{0,8}}=|:{_NO_DOCSTRING}={{0,2}}|={{1,3}}|!={{1,2}}|=>)\s{{0,8}}"  # what assigns or compares it
    r"[bBrRuUfF@]{0,2}(?P<escapes>\\{0,7})(?P<quote>\"{3}|'{3}|[\"'`])"
)
_ENDS: Final = {
    quote: regex.compile(rf"(?<!\\)(?P<escapes>\\*+)(?:(?P<quote>{quote})|{stop})")
    for quote, stop in (('"""', r"\Z"), ("'''", r"\Z"), ('"', r"(?=\n)|\Z"), ("'", r"(?=\n)|\Z"), ("`", r"\Z"))
}


def end_of_value(text: str, start: int, escapes: int, quote: str, timeout: float) -> int | None:
    """Return where the value ends that begins at `start`; None if it is too short, or its line has no end of it.

    A value that the text ends in is as long as the text.

    Args:
        text: the whole of it.
        start: behind the opening quote.
        escapes: number of backslashes in front of that: JSON in JSON has one.
        quote: `"`, `'`, a backtick, or three of the first two.
        timeout: seconds.

    Raises:
        TimeoutError: it takes longer.
    """
    for end in _ENDS[quote].finditer(text, start, timeout=timeout, concurrent=True):
        if end["quote"] is None:
            at_end = end.end() == len(text)
            return end.end() if end.end() > start and (at_end or escapes) else None
        run = len(end["escapes"])
        if run < escapes or run % (2 * (escapes + 1)) == escapes:  # (others are quotes in the value)
            at = end.start("quote") - min(run, escapes)
            return at if at - start >= LEAST else None
    return None
