"""Stop strings, found in text that comes in pieces."""

from collections.abc import Sequence


class StopFinder:
    """Lets text through up to the first stop string, and holds back what may become one.

    The stop string that is complete first wins; of those that end at the same character, the longest. So
    the result does not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that can be shown now. Once `found`, nothing more comes."""
        if self.found:
            return ""
        text = self._held + text
        cut = self._first_match(text)
        if cut is not None:
            self.found, self._held = True, ""
            return text[:cut]
        keep = self._may_begin(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> int | None:
        matches = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(matches)[1] if matches else None

    def _may_begin(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        return next(
            (n for n in range(min(longest, len(text)), 0, -1) if self._begins(text[-n:])),
            0,
        )

    def _begins(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._stops)
