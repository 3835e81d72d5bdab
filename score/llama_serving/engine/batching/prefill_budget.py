"""How many prompt rows a step may have, learned from the duration of earlier steps."""

from collections import deque
from statistics import median
from typing import Final

STALL: Final = 2.5
"""Most duration of a step with prompt rows, as a multiple of a step without."""
WINDOW: Final = 7
"""Steps without prompt rows, whose median is their typical duration."""
REFRESH: Final = 8
"""Consecutive steps with prompt rows after which one has none, since the typical duration changes as sequences join."""
GROWTH: Final = 2
"""Most growth from one step's prompt rows to the next's, since costs measured on small parts may not hold for large ones."""


class PrefillBudget:
    """Limits the prompt rows of a step by the duration that each of them adds.

    Args:
        largest: most prompt rows, and their number when nothing is generating.
        smallest: least prompt rows, however slow; limits are multiples of it.
    """

    def __init__(self, *, largest: int, smallest: int) -> None:
        self.largest, self.smallest = largest, smallest
        self._plain: deque[float] = deque(maxlen=WINDOW)
        self._row: float | None = None
        self._last = smallest
        self._since_plain = 0

    def observe(self, seconds: float, *, generating: int, prompt: int) -> None:
        """Record the duration of one step.

        Args:
            seconds: its duration.
            generating: its rows that generate.
            prompt: its prompt rows.
        """
        if not prompt:
            self._plain.append(seconds)
            self._since_plain = 0
            return
        self._since_plain += bool(generating)
        if generating and self._plain:
            self._last = prompt
            added = max(seconds - median(self._plain), 0.0) / prompt
            # Rows get slower as the prompt gets longer, so the last step has half of the weight.
            self._row = added if self._row is None else (self._row + added) / 2

    def prefill_rows(self, generating: int) -> int:
        """Return the prompt rows for a step with `generating` other rows; 0 if that duration must be measured again."""
        if not generating:
            return self.largest
        if self._since_plain >= REFRESH:
            return 0
        if self._row is None or not self._plain:
            return self.smallest
        left = (STALL - 1) * median(self._plain)
        most = min(self.largest, GROWTH * max(self._last, self.smallest))
        rows = most if self._row * most <= left else int(left / self._row)
        return max(self.smallest, rows // self.smallest * self.smallest)
