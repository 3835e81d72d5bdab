"""The overlap index as a guard."""

from typing import Final

from llama_serving.contract.content_filter import Finding
from llama_serving.service.guards.guard import Passage
from llama_serving.service.guards.overlap.index import Copy, OverlapIndex

MOST_SHOWN: Final = 16
"""Copies in one finding."""


class OverlapGuard:
    """Blocks, or annotates, runs of lines from the corpus.

    Args:
        name: of the guard; its finding has it.
        index: of the corpus.
        min_lines: how many lines in a row, blank ones not counted, are a copy.
        filtered: whether a copy blocks.
    """

    def __init__(self, name: str, index: OverlapIndex, *, min_lines: int, filtered: bool = True) -> None:
        self._name, self._index = name, index
        self._least, self._filtered = min_lines, filtered

    def check(self, passage: Passage) -> list[Finding]:
        """See `Guard.check`. An annotation comes once, with the whole text."""
        if not self._filtered and not passage.final:
            return []
        first = 1 if passage.final else self._first(passage)
        lines = passage.text.splitlines()[first - 1 :]
        copies = self._index.copies(lines, self._least)
        if not copies:
            return []
        shown = [_shown(copy, first - 1) for copy in copies[:MOST_SHOWN]]
        return [Finding(self._name, self._filtered, {"copies": shown})]

    def _first(self, passage: Passage) -> int:
        """Return the first line that a copy which reaches the unchecked part may begin in, if it was not found before."""
        lines = passage.text[: passage.start].splitlines()
        left = self._least + 1
        for number in range(len(lines), 0, -1):
            left -= bool(lines[number - 1].strip())
            if left <= 0:
                return number
        return 1


def _shown(copy: Copy, skipped: int) -> dict[str, object]:
    return {
        "lines": [copy.first + skipped, copy.last + skipped],
        "source": {"file": copy.file, "lines": [copy.source_first, copy.source_last], "licence": copy.licence},
    }
