"""Where the text of an infilling ends for an editor: at the end of its block, and where it meets the suffix again.

The rules look at lines, indentation and brackets alone, so they hold for most languages, and they read the text as it
arrives: the result does not depend on how it was divided. Lines below are counted from the one with the gap.

- Suffix: the text ends before the rest of the gap's line, wherever a line ends with it, unless its brackets are the text's own:
  `print(` + `f(x)` + `)`. And it ends before a line that equals the first one below the gap.
- Block: the text ends before a line that is indented less than the gap's line. Where that line is not indented at all, it
  ends before the line that follows an indented block, unless it goes on with the same statement (`else`, a closing bracket).
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

PAIRS: Final = ("()", "[]", "{}")
CLOSING: Final = ")]}"
_GOES_ON: Final = frozenset(
    ("else", "elif", "elsif", "except", "finally", "catch", "rescue", "ensure", "end", "fi", "done", "esac")
)
"""Words that a line begins with which goes on with the statement above it."""
LONGEST: Final = 512
"""Characters of a line of the suffix; a longer one is not looked for: it is no line that somebody wrote."""
NEAR: Final = 8_192
"""Characters on either side of the gap whose brackets are counted."""
_QUOTED: Final = re.compile(r"\"(?:[^\"\\\n]|\\.)*+(\"?)|'(?:[^'\\\n]|\\.)*+('?)")
"""A quote and what follows on its line, up to the quote that closes it if there is one. (No part is looked at twice.)"""
_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Gap:
    """What stands around the text.

    Attributes:
        before: the gap's line up to the gap.
        rest: the gap's line behind the gap, without white space at its end.
        below: the first line behind it that is not blank, likewise.
        joined: whether something follows the gap on its own line, so that the text must bring its line break.
        indent: indentation of the block, in characters; None if the text's first line tells.
        kinds: the brackets of `rest`, with their counterparts.
        open: how many more of these are opened than closed around the text and `rest`; 0 where the text has to close none.
    """

    before: str
    rest: str
    below: str
    joined: bool
    indent: int | None
    kinds: str = ""
    open: int = 0

    @classmethod
    @lru_cache(maxsize=8)  # (all sequences of a prompt have the same)
    def of(cls, prefix: str, suffix: str, min_indent: int = 0) -> "Gap":
        """Return the gap between two texts; `min_indent` is the block's indentation if the client knows it."""
        before = prefix.rpartition("\n")[2]
        first, *others = suffix.split("\n")
        below = next((line for line in others if line.strip()), "")
        indent = min_indent or (_indent(before) if before.strip() else None)
        rest, below = (line.rstrip() if len(line) <= LONGEST else "" for line in (first, below))
        kinds = "".join(pair for pair in PAIRS if not set(pair).isdisjoint(rest))
        around = f"{prefix[-NEAR:]}\n{suffix[len(first) :][:NEAR]}"
        return cls(before, rest, below, bool(first), indent, kinds, _balance(around, kinds))


class EditorStops:
    """Passes text through up to where it ends, and holds back what may be behind that. It is used like `StopFinder`."""

    def __init__(self, gap: Gap) -> None:
        self._gap = gap
        self.found = False
        self._line = ""
        """The last line so far; `_shown` characters of it were passed on."""
        self._shown = 0
        self._breaks = ""
        """The line break behind the last line that was shown, and blank lines behind it: not passed on yet."""
        self._first = True
        self._depth = 0
        """Brackets that the text has opened and not closed."""
        self._open = gap.open
        """As `gap.open`, with what was written."""
        self._indent = gap.indent
        self._in_block = False
        self._out: list[str] = []

    def push(self, text: str) -> str:
        """Return the text that can be shown now. Once `found`, there is no more."""
        *whole, rest = text.split("\n")
        for part in whole:
            if not self.found:
                self._line += part
                self._end_line()
        if not self.found:
            self._line += rest
            self._look_ahead()
        return self._taken()

    def finish(self, *, cut_off: bool = False) -> str:
        """Return the text that was held back, at the end.

        Args:
            cut_off: the text would have gone on: what may be the beginning of the suffix is left out.
        """
        if not self.found:
            self._last_line(cut_off=cut_off)
        return self._taken()

    def _taken(self) -> str:
        out, self._out = "".join(self._out), []
        return out

    def _end_line(self) -> None:
        """Decide on a line whose line break has come."""
        line, at = self._line, self._meets_rest(self._line)
        if at is not None:
            self._stop_inside(at)
        elif self._is_below(line) or self._leaves_block(line, done=True):
            self._stop_before()
        elif line.strip():
            self._show(len(line))
            self._count(line)
            self._line, self._shown, self._first, self._breaks = "", 0, False, "\n"
        else:
            self._breaks += line + "\n"
            self._line, self._first = "", False

    def _look_ahead(self) -> None:
        """Show of an unfinished line what is certain."""
        line = self._line
        if not line.strip() or self._may_leave_block(line) or self._may_be_below(line):
            return
        if self._leaves_block(line, done=False):
            self._stop_before()
        else:
            self._show(len(line) - self._may_meet_rest(line))

    def _last_line(self, *, cut_off: bool) -> None:
        line, at = self._line, self._meets_rest(self._line)
        if at is None and cut_off and line.strip() and (held := self._may_meet_rest(line)):
            at = len(line) - held
        if at is not None:
            self._stop_inside(at)
        elif (
            self._is_below(line)
            or self._leaves_block(line, done=True)
            or (cut_off and line.strip() and self._may_be_below(line))
        ):
            self._end_block()
        elif line.strip():
            self._show(len(line))
        else:
            self._out.append(self._breaks + line)

    def _show(self, end: int) -> None:
        """Pass the line on up to a character, behind the blank lines in front of it."""
        if end > self._shown:
            self._out.append(self._breaks + self._line[self._shown : end])
            self._breaks, self._shown = "", end

    def _stop_inside(self, at: int) -> None:
        """End inside a line, where the rest of the gap's line follows."""
        self._show(at)
        if not at:
            self._out.append(self._breaks)
        self.found = True

    def _stop_before(self) -> None:
        self._end_block()
        self.found = True

    def _end_block(self) -> None:
        """End behind the last line that was shown, with its line break if nothing else brings one."""
        if self._gap.joined and self._breaks:
            self._out.append("\n")
        self._breaks = ""

    def _count(self, line: str) -> None:
        """Take note of a finished line that is not blank."""
        indent = _indent(self._whole(line))
        if self._indent is None:
            self._indent = indent
        elif indent > self._indent:
            self._in_block = True
        self._depth = max(0, self._depth + _balance(line))
        self._open += _balance(line, self._gap.kinds)

    def _whole(self, line: str) -> str:
        return self._gap.before + line if self._first else line

    def _leaves_block(self, line: str, *, done: bool) -> bool:
        """Return whether a line belongs to what is around the block; `done` if all of it is there."""
        if self._first or self._indent is None or self._depth or not line.strip():
            return False
        indent = _indent(line)
        if indent < self._indent:
            return True
        if indent or self._indent or not self._in_block or line[0] in CLOSING:
            return False
        word = _WORD.match(line)
        return word is None or (word[0] not in _GOES_ON and (done or not self._may_leave_block(line)))

    def _may_leave_block(self, line: str) -> bool:
        """Return whether an unfinished line may still become one that goes on with the statement, or not."""
        at_edge = self._in_block and not self._indent and not self._depth and not self._first
        word = _WORD.fullmatch(line) if at_edge else None
        return word is not None and any(one.startswith(word[0]) for one in _GOES_ON)

    def _is_below(self, line: str) -> bool:
        below = self._gap.below
        return bool(below) and self._whole(line).rstrip() == below and self._is_outside(below)

    def _may_be_below(self, line: str) -> bool:
        whole, below = self._whole(line), self._gap.below
        begun = below.startswith(whole) or (whole.startswith(below) and not whole[len(below) :].strip())
        return bool(below) and begun and self._is_outside(below)

    def _is_outside(self, text: str) -> bool:
        """Return whether closing brackets at the beginning of a text close none that this one has opened."""
        return text.lstrip()[:1] not in CLOSING or self._depth == 0

    def _meets_rest(self, line: str) -> int | None:
        """Return where a finished line goes on as the gap's line does behind the gap."""
        end, rest = line.rstrip(), self._gap.rest
        if not rest.strip() or not end.endswith(rest):
            return None
        at = len(end) - len(rest)
        return at if self._is_apart(line, at) else None

    def _may_meet_rest(self, line: str) -> int:
        """Return the length of the end of an unfinished line that may become the rest of the gap's line."""
        at = self._meets_rest(line)
        if at is not None:
            return len(line) - at
        longest = min(len(self._gap.rest) - 1, len(line))
        return next((n for n in range(longest, 0, -1) if self._gap.rest.startswith(line[-n:])), 0)

    def _is_apart(self, line: str, at: int) -> bool:
        """Return whether the rest at this place is no part of a deeper line, nor of brackets that were opened here."""
        before, rest = self._gap.before, self._gap.rest
        if not before.strip() and not line[:at].strip() and rest.lstrip()[0] not in CLOSING:
            return line[:at] == ("" if self._first else before)
        still_open, closed = self._open + _balance(line, self._gap.kinds), _balance(rest, self._gap.kinds)
        if not closed or not still_open:
            return True
        return still_open + closed != 0 and self._depth + _balance(line[:at]) <= 0


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _balance(text: str, kinds: str = "".join(PAIRS)) -> int:
    """Return how many more brackets of these kinds a text opens than it closes, outside of quoted text."""
    code = _QUOTED.sub(lambda found: "" if found[1] or found[2] else found[0], text)
    return sum(code.count(bracket) * (-1 if bracket in CLOSING else 1) for bracket in kinds)
