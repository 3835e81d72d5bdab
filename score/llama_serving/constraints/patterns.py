r"""Regular expressions -> expressions for the whole text, without anchors, classes and flags, which every engine reads alike.

A pattern is read by the rules that Python and ECMAScript share, and where both read it differently (`\d`, `\w`, `\s`, `.`) the result
matches what both match. What is not regular (lookaround, back-references) or read in one of them only is an error.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

Ranges = tuple[tuple[int, int], ...]
"""Code points, as sorted ranges that do not touch; both ends belong to them."""

MOST_REPEATS: Final = 20_000
"""Of a character, repetitions inside of repetitions multiplied."""
MOST_DEPTH: Final = 50
MOST_LENGTH: Final = 8192
MOST_BRANCHES: Final = 100
"""Alternatives at the ends of a pattern that are written apart, each with its own anchors."""
_LAST: Final = 0x10FFFF
_SURROGATES: Final = (0xD800, 0xDFFF)


class PatternError(ValueError):
    """A pattern that can't be held; the message says why, and begins in the middle of a sentence."""


@dataclass(frozen=True, slots=True)
class Chars:
    """One character of a set."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Edge:
    """The start or the end of the text."""

    end: bool


@dataclass(frozen=True, slots=True)
class Cat:
    """Nodes, one after another."""

    items: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Alt:
    """One of several nodes."""

    branches: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Repeat:
    """A node, `least` to `most` times; `most` None is without an end."""

    item: "Node"
    least: int
    most: int | None


Node = Chars | Edge | Cat | Alt | Repeat


def whole(pattern: str) -> str:
    """Return an expression for the texts that match the pattern as a whole (Python's `re.fullmatch`).

    Raises:
        PatternError: the pattern can't be held.
    """
    return _rewritten(pattern, open_ended=False)


def found(pattern: str) -> str:
    """Return an expression for the texts in which the pattern is found (`re.search`, JSON Schema's `pattern`).

    Raises:
        PatternError: the pattern can't be held.
    """
    return _rewritten(pattern, open_ended=True)


def _rewritten(pattern: str, *, open_ended: bool) -> str:
    node = _Reader(pattern).read()
    try:
        return _written(_placed(node, _Branches(), before=open_ended, behind=open_ended))
    except RecursionError:
        raise PatternError("the pattern is nested too deeply") from None


def other_than(texts: Iterable[str]) -> str:
    """Return an expression for all texts but these."""
    return _written(_but(sorted(set(texts))))


def literal(text: str) -> str:
    """Return an expression for one text."""
    return _written(Cat(tuple(Chars(((ord(c), ord(c)),)) for c in text)))


# --- sets of characters ---------------------------------------------------------------------------


def _union(*sets: Iterable[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(pair for one in sets for pair in one):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def _complement(ranges: Ranges) -> Ranges:
    """Return all other characters; surrogates are none."""
    free, at = [], 0
    for low, high in (*_union(ranges, (_SURROGATES,)), (_LAST + 1, _LAST + 1)):
        if at < low:
            free.append((at, low - 1))
        at = high + 1
    return tuple(free)


def _set(characters: str) -> Ranges:
    return _union([(ord(c), ord(c)) for c in characters])


ALL: Final = _complement(())
_DIGITS: Final = ((0x30, 0x39),)
_WORD: Final = _union(_DIGITS, ((0x41, 0x5A), (0x61, 0x7A)), _set("_"))
_SPACE: Final = _set(" \t\n\r\f\v")
_NO_WORD: Final = _union(((0, 0x2F), (0x3A, 0x40), (0x5B, 0x5E), (0x60, 0x60), (0x7B, 0xA9), (0x2010, 0x206F)))
r"""A part of `\W`: ASCII's, Latin-1's and the general punctuation. All of it would be hundreds of ranges."""
_LINE_ENDS: Final = _set("\n\r\u2028\u2029")
_DOT: Final = _complement(_LINE_ENDS)
_ANYTHING: Final = Repeat(Chars(ALL), 0, None)


@cache
def _in_python(name: str) -> Ranges:
    r"""Return all that Python's `\d` or `\s` matches."""
    gap = _SURROGATES[1] - _SURROGATES[0] + 1
    text = "".join(map(chr, (*range(_SURROGATES[0]), *range(_SURROGATES[1] + 1, _LAST + 1))))
    points = [
        m.start() if m.start() < _SURROGATES[0] else m.start() + gap for m in re.finditer(rf"\{name}", text)
    ]
    return _union([(point, point) for point in points])


def _class(letter: str, *, negated: bool) -> Ranges:
    r"""Return the set of `\d`, `\D`, …: what every reading matches, or, for a negated set, what any reading matches."""
    return _complement(_NARROW[letter.swapcase()]()) if negated else _NARROW[letter]()


_NARROW: Final[Mapping[str, Callable[[], Ranges]]] = {
    "d": lambda: _DIGITS,
    "w": lambda: _WORD,
    "s": lambda: _SPACE,
    "D": lambda: _complement(_in_python("d")),
    "W": lambda: _NO_WORD,
    "S": lambda: _complement(_union(_in_python("s"), _set("\ufeff"))),  # (ECMAScript's space)
}


# --- reading --------------------------------------------------------------------------------------

_CONTROLS: Final = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v"}
_QUANTIFIER: Final = re.compile(r"\{(?P<least>[0-9]{1,6})(?P<comma>,(?P<most>[0-9]{0,6}))?\}")
_HEX: Final = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})")
_GROUP: Final = re.compile(r"\?(?::|P?<[A-Za-z_][A-Za-z0-9_]*>)")


class _Reader:
    """Reads one pattern."""

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MOST_LENGTH:
            raise PatternError(f"a pattern has at most {MOST_LENGTH} characters")
        self._text, self._at, self._depth = pattern, 0, 0

    def read(self) -> Node:
        node = self._alternatives()
        if self._at < len(self._text):
            raise self._error("a `)` without its `(`")
        return node

    @property
    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _error(self, what: str) -> PatternError:
        return PatternError(f"the pattern has {what} at character {self._at}")

    def _taken(self, expected: str) -> bool:
        if not self._text.startswith(expected, self._at):
            return False
        self._at += len(expected)
        return True

    def _alternatives(self) -> Node:
        branches = [self._sequence()]
        while self._taken("|"):
            branches.append(self._sequence())
        return branches[0] if len(branches) == 1 else Alt(tuple(branches))

    def _sequence(self) -> Node:
        items: list[Node] = []
        while self._next not in ("", "|", ")"):
            items.append(self._repeated(self._atom()))
        return Cat(tuple(items))

    def _repeated(self, item: Node) -> Node:
        bounds = self._bounds()
        if bounds is None:
            return item
        if isinstance(item, Edge):
            raise self._error("a repeated anchor")
        least, most = bounds
        if most is not None and least > most:
            raise self._error("a repetition whose limits are exchanged")
        if self._next == "+":
            raise self._error("a possessive repetition, which is not supported,")
        self._taken("?")  # a lazy repetition matches the same texts
        if self._next in ("*", "+", "?") or self._bounds() is not None:
            raise self._error("a repetition of a repetition")
        return Repeat(item, least, most)

    def _bounds(self) -> tuple[int, int | None] | None:
        simple = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(self._next)
        if simple is not None:
            self._at += 1
            return simple
        if self._text.startswith("{,", self._at):
            raise self._error("a repetition without a lower limit")
        match = _QUANTIFIER.match(self._text, self._at)
        if match is None:
            return None
        self._at = match.end()
        least = int(match["least"])
        if match["comma"] is None:
            return least, least
        return least, int(match["most"]) if match["most"] else None

    def _atom(self) -> Node:
        character = self._next
        self._at += 1
        match character:
            case "(":
                return self._group()
            case "[":
                return Chars(self._brackets())
            case ".":
                return Chars(_DOT)
            case "^" | "$":
                return Edge(end=character == "$")
            case "\\":
                return self._escape()
            case "*" | "+" | "?":
                raise self._error("nothing to repeat")
        return Chars(_set(character))

    def _group(self) -> Node:
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise PatternError(f"the pattern is nested deeper than {MOST_DEPTH} groups")
        if self._next == "?":
            opened = _GROUP.match(self._text, self._at)
            if opened is None:
                raise self._error("lookaround, flags or another group that is not supported")
            self._at = opened.end()
        node = self._alternatives()
        if not self._taken(")"):
            raise self._error("a `(` without its `)`")
        self._depth -= 1
        return node

    def _escape(self) -> Node:
        letter = self._next
        if letter and letter in "dDwWsS":
            self._at += 1
            return Chars(_class(letter, negated=False))
        if letter and letter in "AZ":
            self._at += 1
            return Edge(end=letter == "Z")
        return Chars(_set(self._escaped()))

    def _escaped(self) -> str:
        r"""Return the character behind a `\`."""
        letter = self._next
        if letter in _CONTROLS:
            self._at += 1
            return _CONTROLS[letter]
        digits = _HEX.match(self._text, self._at)
        if digits is not None:
            self._at = digits.end()
            point = int(digits[1] or digits[2], 16)
            if _SURROGATES[0] <= point <= _SURROGATES[1]:
                raise self._error("half a character")
            return chr(point)
        if letter == "0" and not self._text[self._at + 1 : self._at + 2].isdigit():
            self._at += 1
            return "\0"
        if not letter or letter.isalnum():
            raise self._error(f"`\\{letter}`, which is not supported,")
        self._at += 1
        return letter

    def _brackets(self) -> Ranges:
        negated = self._taken("^")
        if self._next == "]":
            raise self._error("a set that begins with `]`")
        parts: list[Ranges] = []
        while not self._taken("]"):
            parts.append(self._member(negated=negated))
        ranges = _union(*parts)
        return _complement(ranges) if negated else _union(_complement(_complement(ranges)))

    def _member(self, *, negated: bool) -> Ranges:
        low = self._one(negated=negated)
        if self._next != "-" or self._text[self._at + 1 : self._at + 2] == "]":
            return low if isinstance(low, tuple) else _set(low)
        self._at += 1
        high = self._one(negated=negated)
        if isinstance(low, tuple) or isinstance(high, tuple) or low > high:
            raise self._error("a range without two ends in their order")
        return ((ord(low), ord(high)),)

    def _one(self, *, negated: bool) -> str | Ranges:
        """Return a character of a set, or the set of a class in it."""
        character = self._next
        if not character:
            raise self._error("a `[` without its `]`")
        if self._text[self._at : self._at + 2] in ("[[", "--", "&&", "~~", "||"):
            raise self._error("what is an operation on sets elsewhere: escape it with `\\`")
        self._at += 1
        if character != "\\":
            return character
        if self._next and self._next in "dDwWsS":
            self._at += 1
            return _class(self._text[self._at - 1], negated=negated)
        if self._taken("b"):
            return "\b"
        return self._escaped()


# --- anchors --------------------------------------------------------------------------------------


class _Branches:
    """Counts the alternatives that are written apart."""

    def __init__(self) -> None:
        self._left = MOST_BRANCHES

    def take(self, number: int) -> None:
        """Take note of some more.

        Raises:
            PatternError: they are too many.
        """
        self._left -= number
        if self._left < 0:
            raise PatternError(f"the pattern has more than {MOST_BRANCHES} alternatives with anchors")


def _placed(node: Node, taken: _Branches, *, before: bool, behind: bool) -> Node:
    """Return a node for the whole text, without anchors.

    Args:
        node: as read.
        taken: counts alternatives.
        before: whether other text may stand before what matches, if no anchor forbids it.
        behind: whether other text may stand behind it.
    """
    if isinstance(node, Alt):
        taken.take(sum(map(_anchored, node.branches)))
        return Alt(tuple(_placed(one, taken, before=before, behind=behind) for one in node.branches))
    items = list(_flat(node))
    while items and items[0] == Edge(end=False):
        del items[0]
        before = False
    while items and items[-1] == Edge(end=True):
        del items[-1]
        behind = False
    for at in (0, len(items) - 1):
        if items and isinstance(items[at], Alt) and _anchored(items[at]):
            return _spread(items, at, taken, before=before, behind=behind)
    if any(map(_anchored, items)):
        raise PatternError("the pattern has an anchor in the middle of a text")
    head, tail = (_ANYTHING,) if before else (), (_ANYTHING,) if behind else ()
    return Cat((*head, *items, *tail))


def _spread(items: Sequence[Node], at: int, taken: _Branches, *, before: bool, behind: bool) -> Node:
    """Return one branch for each alternative at an end of the sequence, since each has its own anchors."""
    chosen = items[at]
    branches = chosen.branches if isinstance(chosen, Alt) else ()
    taken.take(len(branches))
    whole = [Cat((*items[:at], one, *items[at + 1 :])) for one in branches]
    return Alt(tuple(_placed(one, taken, before=before, behind=behind) for one in whole))


def _flat(node: Node) -> Iterable[Node]:
    if isinstance(node, Cat):
        for item in node.items:
            yield from _flat(item)
    else:
        yield node


def _anchored(node: Node) -> bool:
    match node:
        case Edge():
            return True
        case Cat(items) | Alt(items):
            return any(map(_anchored, items))
        case Repeat(item, _, _):
            return _anchored(item)
    return False


# --- writing --------------------------------------------------------------------------------------


def _written(node: Node) -> str:
    _check_repeats(node, 1)
    return _write(node)


def _check_repeats(node: Node, times: int) -> None:
    if times > MOST_REPEATS:
        raise PatternError(f"the pattern repeats a character more than {MOST_REPEATS} times")
    match node:
        case Cat(items) | Alt(items):
            for item in items:
                _check_repeats(item, times)
        case Repeat(item, least, most):
            _check_repeats(item, times * max(1, least, most or 0))


def _write(node: Node) -> str:
    match node:
        case Chars(ranges):
            return _write_set(ranges)
        case Cat(items):
            return "".join(map(_write, items))
        case Alt(branches):
            return f"(?:{'|'.join(map(_write, branches))})"
        case Repeat(item, least, most):
            inner = _write(item)
            return f"(?:{inner}){{{least},{'' if most is None else most}}}"
    raise PatternError("the pattern has an anchor in the middle of a text")


def _write_set(ranges: Ranges) -> str:
    if not ranges:
        raise PatternError("the pattern has a set without characters")
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _write_point(ranges[0][0])
    return "[" + "".join(f"{_write_point(low)}-{_write_point(high)}" for low, high in ranges) + "]"


def _write_point(point: int) -> str:
    character = chr(point)
    if character.isascii() and character.isalnum():
        return character
    if point > 0xFFFF:
        return character
    return f"\\u{point:04x}" if point > 0xFF else f"\\x{point:02x}"


def _but(texts: Sequence[str]) -> Node:
    """Return a node for all texts but these, which are sorted: a branch where one ends or leaves each of them."""
    by_first: dict[str, list[str]] = {}
    for text in texts:
        if text:
            by_first.setdefault(text[0], []).append(text[1:])
    branches: list[Node] = [] if "" in texts else [Cat(())]
    others = _complement(_set("".join(by_first)))
    branches.append(Cat((Chars(others), _ANYTHING)))
    branches += [Cat((Chars(_set(first)), _but(rest))) for first, rest in by_first.items()]
    return Alt(tuple(branches))
