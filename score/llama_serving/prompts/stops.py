"""Finds stop strings in streamed text."""

from collections.abc import Sequence


class StopFinder:
    """Passes text through up to the first stop string, and holds back what may become one.

    The stop string that is complete first wins; of those that end at the same character, the longest. So the result does
    not depend on how the text was divided.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False
        self.by = ""
        """The stop string that was found."""

    def push(self, text: str) -> str:
        """Return the text that can be shown now. Once `found`, there is no more."""
        if self.found:
            return ""
        text = self._held + text
        match = self._first_match(text)
        if match is not None:
            end, cut = match
            self.by = text[cut:end]
            self.found, self._held = True, ""
            return text[:cut]
        cut = len(text) - self._may_begin(text)
        self._held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """Return the text that was held back, at the end."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, int] | None:
        """Return the end and the beginning of the first match."""
        return min(((at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0), default=None)

    def _may_begin(self, text: str) -> int:
        """Return the length of the longest end of `text` that begins a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        return next(
            (n for n in range(min(longest, len(text)), 0, -1) if self._begins(text[-n:])),
            0,
        )

    def _begins(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._stops)
