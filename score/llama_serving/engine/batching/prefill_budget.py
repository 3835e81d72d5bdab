"""How much of a prompt a step can carry, learned from the steps themselves."""

from collections import deque
from statistics import median
from typing import Final

STALL: Final = 2.5
"""How many times a plain step a step with a part of a prompt may take."""
WINDOW: Final = 7
"""Plain steps whose median is what one takes: an odd one out does not count."""
REFRESH: Final = 8
"""Steps with a part of a prompt, in a row, after which one goes without: who has joined meanwhile makes it dearer."""
GROWTH: Final = 2
"""How many times the last part the next may be: what was cheap a while ago may not be so any more."""


class PrefillBudget:
    """A plain step's seconds, and the seconds that a prompt's row adds to it.

    Args:
        largest: rows of prompts when nobody waits for the step, and the most ever.
        smallest: rows of prompts however slow they are; what is allowed is a multiple of it.
    """

    def __init__(self, *, largest: int, smallest: int) -> None:
        self.largest, self.smallest = largest, smallest
        self._plain: deque[float] = deque(maxlen=WINDOW)
        self._row: float | None = None
        self._last = smallest
        self._since_plain = 0

    def observe(self, seconds: float, *, generating: int, prompt: int) -> None:
        """One step was seen.

        Args:
            seconds: what it took.
            generating: its rows that generate.
            prompt: its rows of prompts.
        """
        if not prompt:
            self._plain.append(seconds)
            self._since_plain = 0
            return
        self._since_plain += bool(generating)
        if generating and self._plain:
            self._last = prompt
            added = max(seconds - median(self._plain), 0.0) / prompt
            # Rows grow dearer as the prompt grows longer: half of what is known is from the last step.
            self._row = added if self._row is None else (self._row + added) / 2

    def prefill_rows(self, generating: int) -> int:
        """Rows of prompts that may join a step with so many rows that generate; none where it is to be seen what those take."""
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
