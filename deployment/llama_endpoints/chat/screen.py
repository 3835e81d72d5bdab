"""What is shown: answers on standard output, everything else on standard error."""

import re
import sys
from typing import Final, Protocol

from rich.console import Console
from rich.segment import Segments
from rich.syntax import Syntax
from rich.text import Span, Text

from llama_endpoints.chat.fences import FenceSplitter, Kind, Part

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
THEME: Final = "ansi_dark"
"""The terminal's own colours, so that code is legible on a light ground too."""


class Screen(Protocol):
    """Where a conversation is shown."""

    def begin(self, before: str) -> None:
        """Begin an answer; `before` is the text that it continues."""

    def piece(self, text: str) -> None:
        """Show a piece of the answer."""

    def end(self, after: str) -> None:
        """End the answer; `after` is the text behind it."""

    def note(self, text: str) -> None:
        """Say something about the conversation."""

    def error(self, text: str) -> None:
        """Say what went wrong."""


class PlainScreen:
    """For pipes and files: the answer's exact text and a newline; notes and errors on standard error."""

    def begin(self, before: str) -> None:
        """See `Screen.begin`."""

    def piece(self, text: str) -> None:
        """See `Screen.piece`."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def end(self, after: str) -> None:
        """See `Screen.end`."""
        del after
        self.piece("\n")

    def note(self, text: str) -> None:
        """See `Screen.note`."""
        sys.stderr.write(f"{text}\n")

    def error(self, text: str) -> None:
        """See `Screen.error`."""
        sys.stderr.write(f"Error: {text}\n")


class TerminalScreen:
    """For people: code is highlighted, and control characters of the model are shown instead of obeyed."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._fences = FenceSplitter()
        self._block = ""
        self._at_line_start = True

    def begin(self, before: str) -> None:
        """See `Screen.begin`."""
        self._fences, self._block = FenceSplitter(), ""
        if before:
            self._write(before, "dim")

    def piece(self, text: str) -> None:
        """See `Screen.piece`."""
        for part in self._fences.feed(text):
            self._show(part)

    def end(self, after: str) -> None:
        """See `Screen.end`."""
        for part in self._fences.finish():
            self._show(part)
        if after:
            self._write(after, "dim")
        if not self._at_line_start:
            self._console.print()
        self._at_line_start = True

    def note(self, text: str) -> None:
        """See `Screen.note`."""
        self._line(text, "dim")

    def error(self, text: str) -> None:
        """See `Screen.error`."""
        self._line(text, "red")

    def _line(self, text: str, style: str) -> None:
        if not self._at_line_start:
            self._console.print()
        self._at_line_start = True
        self._console.print(Text(visible(text), style))

    def _show(self, part: Part) -> None:
        if part.kind is Kind.CODE:
            self._block += visible(part.text)
            self._print(_last_line(self._block, part.language))
            return
        self._block = ""
        self._write(part.text, "dim" if part.kind is Kind.FENCE else "")

    def _write(self, text: str, style: str) -> None:
        self._print(Text(visible(text), spans=[Span(0, len(text), style)]))

    def _print(self, text: Text) -> None:
        self._console.print(
            Segments(text.render(self._console)), end=""
        )  # (a Text of its own would lose its tabs)
        self._console.file.flush()
        self._at_line_start = text.plain.endswith("\n")


def visible(text: str) -> str:
    """Return text without control characters: a terminal would obey them. Newline and tab stay."""
    return _CONTROL.sub(lambda sign: _picture(ord(sign[0])), text)


def _picture(code: int) -> str:
    """Return Unicode's picture of a control character."""
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


def _last_line(block: str, language: str) -> Text:
    """Return the last line of a block highlighted: what precedes it decides what it is."""
    highlighted = Syntax("", language or "text", theme=THEME).highlight(block)
    lines = highlighted.split("\n", include_separator=True, allow_blank=False)
    return lines[-1]
