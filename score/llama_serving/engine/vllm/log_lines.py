"""Selects what may be shown of vLLM's log. Pure. After the first request, its lines may quote a prompt."""

import re
import threading
from collections import deque
from typing import Final

KEPT: Final = 400
"""Lines kept."""
LONGEST: Final = 300
"""Most characters of a line that are shown."""

_LINE: Final = re.compile(
    r"^(?:\([\w -]+ pid=\d+\) ?)?(?:(?P<level>[A-Z]+) \d\d-\d\d \d\d:\d\d:\d\d \[(?P<where>[\w./-]+:\d+)\] ?)?(?P<text>.*)$"
)
_PROGRESS: Final = re.compile(r"^[A-Z][\w ,()]*:\s+\d+%(?: Completed)? ?\|")
_EXCEPTION: Final = re.compile(r"^(?P<kind>[A-Za-z_][\w.]*(?:Error|Exception|Exit))(?:: (?P<what>.*))?$")
_USAGE: Final = re.compile(r"^[\w.]+: error: (?P<what>.*)$")
_DETAIL: Final = re.compile(r"^\s+(?:Value error|Assertion failed), (?P<what>.*?)(?: \[type=.*)?$")
_SECONDHAND: Final = ("root cause above", "Failed core proc", "initialization failed", "EngineDeadError")
"""Marks of errors that only report another process's error."""


class LogLines:
    """The end of a log. Thread-safe.

    Attributes:
        names_only: requests have been sent, so only names may be shown.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=KEPT)
        self._lock = threading.Lock()
        self.names_only = False

    def add(self, line: str) -> None:
        """Add a line."""
        with self._lock:
            self._lines.append(line.rstrip()[: 4 * LONGEST])

    def progress(self) -> str:
        """Return the last line about progress; empty if nothing may be shown."""
        for line in () if self.names_only else self._latest():
            match = _LINE.match(line)
            text = match["text"].strip() if match else ""
            if text and match and (match["level"] or _PROGRESS.match(text)) and any(map(str.isalpha, text)):
                return text[:LONGEST]
        return ""

    def cause(self) -> str:
        """Return the reason for vLLM's end; empty if unknown."""
        second = ""
        details: str | None = None
        for line in self._latest():
            match = _LINE.match(line)
            text = match["text"] if match else line
            if detail := _DETAIL.match(text):
                details = details or detail["what"]
                continue
            found = self._named(text, details)
            if found and not any(sign in found for sign in _SECONDHAND):
                return found[:LONGEST]
            second = second or found
        return second[:LONGEST]

    def _named(self, text: str, details: str | None) -> str:
        if usage := _USAGE.match(text):
            return usage["what"] if not self.names_only else "error"
        error = _EXCEPTION.match(text)
        if error is None:
            return ""
        if self.names_only:
            return error["kind"]
        return f"{error['kind']}: {details or error['what']}" if details or error["what"] else error["kind"]

    def _latest(self) -> list[str]:
        with self._lock:
            return list(reversed(self._lines))
