"""Splits a text that comes in pieces into prose and blocks of code between ``` (CommonMark's fences)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

_OPEN: Final = re.compile(r" {0,3}(`{3,})([^`\n]*)\n?")
_MAYBE_OPEN: Final = re.compile(r" {0,3}(`{0,2}|`{3,}[^`]*)")
"""The beginning of a line that may still become a fence."""


class Kind(Enum):
    """What a part of the text is."""

    PROSE = "prose"
    FENCE = "fence"
    CODE = "code"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the text. All parts together are the text.

    Attributes:
        text: prose in pieces; a fence or code in whole lines.
        language: of the block, behind its first fence.
    """

    kind: Kind
    text: str
    language: str = ""


class FenceSplitter:
    """Takes pieces and yields parts. Prose is held back only where a line may become a fence, code until its line ends."""

    def __init__(self) -> None:
        self._line = ""  # what is held back, or the line's beginning that was yielded already
        self._yielded = False
        self._fence: str | None = None
        self._language = ""

    def feed(self, piece: str) -> Iterator[Part]:
        """Yield the parts that are complete with this piece."""
        for text in re.findall(r"[^\n]*\n|[^\n]+", piece):
            yield from self._feed_line(text)

    def finish(self) -> Iterator[Part]:
        """Yield what was held back."""
        if self._line and not self._yielded:
            yield self._whole(self._line)
        self._line, self._yielded = "", False

    def _feed_line(self, text: str) -> Iterator[Part]:
        self._line += text
        complete = text.endswith("\n")
        if self._yielded:
            yield Part(Kind.PROSE, text)
        elif complete:
            yield self._whole(self._line)
        elif self._fence is None and not _MAYBE_OPEN.fullmatch(self._line):
            yield Part(Kind.PROSE, self._line)
            self._yielded = True
        if complete:
            self._line, self._yielded = "", False

    def _whole(self, line: str) -> Part:
        """Return the part that a whole line is."""
        if self._fence is not None:
            if re.fullmatch(rf" {{0,3}}{self._fence}`*[ \t\r]*\n?", line):
                self._fence = None
                return Part(Kind.FENCE, line, self._language)
            return Part(Kind.CODE, line, self._language)
        if found := _OPEN.fullmatch(line):
            self._fence, self._language = found[1], found[2].strip()
            return Part(Kind.FENCE, line, self._language)
        return Part(Kind.PROSE, line)
