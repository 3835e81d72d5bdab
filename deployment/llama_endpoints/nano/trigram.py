"""The baseline for nano: a trigram model over the same tokens, trained on the same documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from llama_serving.catalog import NANO

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Ids = npt.NDArray[np.int64]

VOCAB: Final = NANO.shape.vocab
DISCOUNT: Final = 0.75


class _NgramCounts:
    """How often each id follows each context; contexts and continuations are packed into one number."""

    def __init__(self, packed: Ids) -> None:
        self._packed, self._counts = np.unique(packed, return_counts=True)
        self._contexts, first, self._kinds = np.unique(
            self._packed // VOCAB, return_index=True, return_counts=True
        )
        self._totals = np.add.reduceat(self._counts, first)

    def discounted(self, packed: Ids, below: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return probabilities with absolute discounting, interpolated with the shorter context's (Chen and Goodman 1998, 2.7)."""
        count = _found(self._packed, self._counts, packed)
        total = _found(self._contexts, self._totals, packed // VOCAB)
        kinds = _found(self._contexts, self._kinds, packed // VOCAB)
        with np.errstate(invalid="ignore"):
            mixed = (np.maximum(count - DISCOUNT, 0) + DISCOUNT * kinds * below) / total
        return np.where(total > 0, mixed, below)

    def likeliest(self, context: int) -> int | None:
        """Return the most frequent id after a context; None if it was never seen."""
        low, high = np.searchsorted(self._packed, [context * VOCAB, (context + 1) * VOCAB])
        return None if low == high else int(self._packed[low + self._counts[low:high].argmax()] % VOCAB)


class Trigram:
    """A trigram model trained on one row of ids."""

    def __init__(self, row: Ids) -> None:
        self._one = np.bincount(row, minlength=VOCAB)
        self._two = _NgramCounts(row[:-1] * VOCAB + row[1:])
        self._three = _NgramCounts((row[:-2] * VOCAB + row[1:-1]) * VOCAB + row[2:])

    def bits(self, ids: Ids) -> float:
        """Return the bits of all ids but the first."""
        one = (self._one[ids[1:]] + 1) / (self._one.sum() + VOCAB)
        probabilities = self._two.discounted(ids[:-1] * VOCAB + ids[1:], one)
        packed = (ids[:-2] * VOCAB + ids[1:-1]) * VOCAB + ids[2:]
        probabilities[1:] = self._three.discounted(packed, probabilities[1:])
        return float(-np.log2(probabilities).sum())

    def continuation(self, ids: Ids) -> Iterator[int]:
        """Yield the likeliest ids after a prompt, without end."""
        last = int(ids[-1])
        before = int(ids[-2]) if len(ids) > 1 else last
        while True:
            following = self._three.likeliest(before * VOCAB + last)
            following = self._two.likeliest(last) if following is None else following
            following = int(self._one.argmax()) if following is None else following
            yield following
            before, last = last, following


def _found(keys: Ids, values: Ids, queries: Ids) -> Ids:
    """Return the value of each query; 0 if the query is not among the keys, which are sorted."""
    at = np.minimum(np.searchsorted(keys, queries), len(keys) - 1)
    return np.where(keys[at] == queries, values[at], 0)
