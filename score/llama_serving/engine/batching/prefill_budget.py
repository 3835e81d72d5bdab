"""How many prompt rows a step may have, and how many layers of them, learned from the duration of earlier steps.

Behind thousands of tokens even a few rows take longer than a step may. A part of their layers then makes the step, and later steps
go on with them: each reads the keys and values of its own layers alone, so that nothing is read twice.
"""

from collections import deque
from statistics import median
from typing import Final

STALL: Final = 2.5
"""Most duration of a step with prompt rows, as a multiple of a step without."""
WINDOW: Final = 7
"""Steps without prompt rows, whose median is their typical duration."""
REFRESH: Final = 8
"""Consecutive steps with prompt rows after which one has none, since the typical duration changes as sequences join."""
OUTLIER: Final = 4
"""Times the duration that is expected of prompt rows above which a step was interrupted."""
GROWTH: Final = 2
"""Most growth from one step's prompt rows to the next's, since costs measured on small parts may not hold for large ones."""
SLICED: Final = 64
"""Most rows that go through a few layers in each step: as many as attention computes together."""


class PrefillBudget:
    """Limits the prompt rows of a step by the duration that each of them adds.

    Args:
        largest: most prompt rows, and their number when nothing is generating.
        smallest: least prompt rows, however slow; limits are multiples of it.
        layers: of the model, where rows can be computed in a few of them at a time; 1 is only in all.
    """

    def __init__(self, *, largest: int, smallest: int, layers: int = 1) -> None:
        self.largest, self.smallest, self._layers = largest, smallest, layers
        self._plain: deque[float] = deque(maxlen=WINDOW)
        self._row: float | None = None
        self._added = self._rows = 0.0
        self._last: float = smallest
        self._since_plain = 0

    def observe(self, seconds: float, *, generating: int, prompt: float) -> None:
        """Record the duration of one step.

        Args:
            seconds: its duration.
            generating: its rows that generate.
            prompt: its prompt rows, times the share of the layers that they went through.
        """
        if not prompt:
            self._plain.append(seconds)
            self._since_plain = 0
            return
        self._since_plain += bool(generating)
        if generating and self._plain:
            self._last = prompt
            added = max(seconds - median(self._plain), 0.0)
            if self._row:
                added = min(added, OUTLIER * self._row * prompt)
            # Rows get slower as the prompt gets longer, so the last step has half of the weight or, with few rows, less.
            self._added, self._rows = self._added / 2 + added, self._rows / 2 + prompt
            self._row = self._added / self._rows

    def prefill_rows(self, generating: int) -> int:
        """Return the prompt rows for a step with `generating` other rows; 0 if that duration must be measured again."""
        if not generating:
            return self.largest
        if self._since_plain >= REFRESH:
            return 0
        if self._row is None or not self._plain:
            return self.smallest
        most = int(min(self.largest, GROWTH * max(self._last, self.smallest)))
        rows = most if self._row * most <= self._left() else int(self._left() / self._row)
        if rows < self.smallest:
            rows = min(self.largest, SLICED, int(self._left() * self._layers / self._row))
        return max(self.smallest, rows // self.smallest * self.smallest)

    def prefill_layers(self, generating: int, rows: int) -> int:
        """Return the layers that `rows` prompt rows may go through in a step with `generating` other rows; at least one."""
        if not generating or self._row is None or not self._plain or self._row * rows <= self._left():
            return self._layers
        return max(1, int(self._layers * self._left() / (self._row * rows)))

    def _left(self) -> float:
        """Return the seconds that a step has for prompt rows."""
        return (STALL - 1) * median(self._plain)
