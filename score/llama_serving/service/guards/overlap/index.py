"""Looks lines up in an overlap index."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from llama_serving.service.guards.overlap import index_file
from llama_serving.service.guards.overlap.index_file import Arrays
from llama_serving.service.guards.overlap.lines import Hashes, grams, hashed

MOST_PLACES: Final = 64
"""Places of one n-gram that are compared. What stands in more places, such as a licence's text, is found at the first ones."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A run of lines that stands in the corpus, too.

    Attributes:
        first, last: its lines in the text, from 1.
        count: how many lines of it are not blank.
        file, licence: of the source.
        source_first, source_last: its lines there, from 1.
    """

    first: int
    last: int
    count: int
    file: str
    licence: str
    source_first: int
    source_last: int


class OverlapIndex:
    """An index in its file. Immutable, and safe to share between threads."""

    def __init__(self, files: list[tuple[str, str]], arrays: Arrays) -> None:
        self._files = files
        self._grams, self._positions = arrays["grams"], arrays["positions"]
        self._hashes, self._numbers, self._starts = arrays["hashes"], arrays["numbers"], arrays["starts"]

    @classmethod
    def open(cls, path: Path) -> "OverlapIndex":
        """Return the index of a file.

        Raises:
            SetupError: as in `index_file.read`.
        """
        return cls(*index_file.read(path))

    def copies(self, lines: Iterable[str], least: int) -> list[Copy]:
        """Return the runs of at least `least` lines that stand in the corpus, blank ones not counted.

        Of runs in the same lines the longest is returned, and of equally long ones the first in the corpus.
        """
        hashes, numbers = hashed(lines)
        found = [(at, source, length) for at, source, length in self._runs(hashes) if length >= least]
        copies: list[Copy] = []
        taken = np.zeros(len(hashes), bool)
        for at, source, length in sorted(found, key=lambda run: (-run[2], run[1])):
            if not taken[at : at + length].all():
                taken[at : at + length] = True
                copies.append(self._copy(numbers, at, source, length))
        return sorted(copies, key=lambda copy: copy.first)

    def _runs(self, hashes: Hashes) -> Iterator[tuple[int, int, int]]:
        """Yield each longest run: its place in `hashes`, in the corpus, and its length."""
        wanted = grams(hashes)
        lows = np.searchsorted(self._grams, wanted, "left")
        highs = np.searchsorted(self._grams, wanted, "right")
        seen: dict[int, int] = {}
        for at in np.flatnonzero(highs > lows).tolist():
            for source in self._positions[lows[at] : min(highs[at], lows[at] + MOST_PLACES)].tolist():
                diagonal = source - at
                if seen.get(diagonal, -1) > at:
                    continue  # inside of a run that was found already
                first, end = self._extended(hashes, at, source)
                if end > first:
                    seen[diagonal] = end
                    yield first, first + diagonal, end - first

    def _extended(self, hashes: Hashes, at: int, source: int) -> tuple[int, int]:
        """Return where the run around two equal places begins and ends in `hashes`; nothing if they only have the same hash."""
        file = int(np.searchsorted(self._starts, source, "right")) - 1
        low = int(self._starts[file])
        high = int(self._starts[file + 1]) if file + 1 < len(self._starts) else len(self._hashes)
        before = min(at, source - low)
        same = hashes[at - before : at] == self._hashes[source - before : source]
        first = at - (before if same.all() else int(np.argmin(same[::-1])))
        behind = min(len(hashes) - at, high - source)
        same = hashes[at : at + behind] == self._hashes[source : source + behind]
        return first, at + (behind if same.all() else int(np.argmin(same)))

    def _copy(
        self, numbers: "np.ndarray[tuple[int], np.dtype[np.uint32]]", at: int, source: int, length: int
    ) -> Copy:
        name, licence = self._files[int(np.searchsorted(self._starts, source, "right")) - 1]
        last = source + length - 1
        return Copy(
            int(numbers[at]),
            int(numbers[at + length - 1]),
            length,
            name,
            licence,
            int(self._numbers[source]),
            int(self._numbers[last]),
        )
