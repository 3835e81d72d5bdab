"""Decides which part of a streamed text is checked next, and which part may leave. Pure: it knows no clock and no guard."""

from collections import deque
from dataclasses import dataclass
from math import inf

from llama_serving.service.guards.guard import Passage, Stage


@dataclass(frozen=True, slots=True)
class Windows:
    """How streams are held back.

    Attributes:
        window: characters that come together before they are checked.
        overlap: characters at the end of checked text that stay until they were checked with what follows them.
        max_delay_s: seconds that a character waits for its check at most, and then for a check with what follows it.
    """

    window: int = 400
    overlap: int = 200
    max_delay_s: float = 2.0


class HeldStream:
    """The text of one sequence: all of it has come, a part is checked, and a part of that has left.

    Times are seconds of any clock that only increases.
    """

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._text = ""
        self._checked = self._checked_twice = self._left = 0
        self._pending: float = inf
        self._arrivals: deque[tuple[int, float]] = deque()
        """Ends of the pieces that have not left, and when they came."""

    @property
    def left(self) -> int:
        """Characters that have left."""
        return self._left

    def see(self, text: str, now: float) -> None:
        """Take the whole text so far."""
        if len(text) > len(self._text):
            self._text = text
            self._arrivals.append((len(text), now))

    def due(self, now: float) -> Passage | None:
        """Return what is to be checked now; None if nothing is."""
        new = len(self._text) - self._checked
        if new and (new >= self._windows.window or self._has_waited(now)):
            return Passage(Stage.TEXT, self._text, self._checked, final=False)
        return None

    def last(self, whole: str) -> Passage:
        """Return what is to be checked at the end of the text.

        Args:
            whole: the text, and what else of the sequence an answer may show behind it.
        """
        return Passage(Stage.TEXT, whole, self._checked, final=True)

    def passed(self, passage: Passage, pending: int | None = None) -> None:
        """Note that nothing was found in a passage. From `pending` on the text stays until it was checked with more of it."""
        self._pending = inf if pending is None else max(pending, self._left)
        self._checked_twice = self._checked
        self._checked = max(self._checked, min(len(passage.text), len(self._text)))

    def take(self, now: float) -> str:
        """Return the text that leaves now: checked, and either `overlap` characters from its end or held for too long.

        While more has come, what was held for too long leaves only if it was checked with what follows it.
        """
        until = max(self._left, self._checked - self._windows.overlap)
        known = self._checked if self._checked == len(self._text) else self._checked_twice
        for end, came in self._arrivals:
            if now < came + self._windows.max_delay_s:
                break
            until = max(until, min(end, known))
        until = int(min(until, self._pending))
        text, self._left = self._text[self._left : until], until
        while self._arrivals and self._arrivals[0][0] <= until:
            self._arrivals.popleft()
        return text

    def take_all(self) -> str:
        """Return the rest, once the last passage has passed."""
        text, self._left = self._text[self._left :], len(self._text)
        self._arrivals.clear()
        return text

    def patience(self, now: float) -> float | None:
        """Return the seconds until something must be checked or must leave; None if nothing is held, or all of it is pending."""
        came = self._unchecked_since()
        if not self._arrivals or (came is None and self._left >= self._pending):
            return None
        came = self._arrivals[0][1] if came is None else came
        return max(0.0, came + self._windows.max_delay_s - now)

    def _has_waited(self, now: float) -> bool:
        came = self._unchecked_since()
        return came is not None and now >= came + self._windows.max_delay_s

    def _unchecked_since(self) -> float | None:
        """Return when the first unchecked piece came; the piece in front may be checked already."""
        return next((at for end, at in self._arrivals if end > self._checked), None)
