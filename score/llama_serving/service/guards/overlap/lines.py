"""Normalises code to lines, and lines to numbers. A copy is found whatever its indentation, spaces and blank lines are."""

import hashlib
from array import array
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
GRAM: Final = 6
"""Lines of one n-gram."""
WINNOW: Final = 4
"""Of so many n-grams in a row one is in the index, so a copy of `GRAM + WINNOW - 1` lines is always found."""
_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)
_SHIFT: Final = np.uint64(29)


def hashed(lines: Iterable[str]) -> tuple[Hashes, NDArray[np.uint32]]:
    """Return a number for each line that is not blank, and the numbers of those lines, from 1."""
    hashes, numbers = array("Q"), array("L")
    blake, from_bytes = hashlib.blake2b, int.from_bytes
    for number, line in enumerate(lines, 1):
        content = "".join(line.split())
        if content:
            hashes.append(
                from_bytes(blake(content.encode("utf-8", "replace"), digest_size=8).digest(), "little")
            )
            numbers.append(number)
    return np.array(hashes, np.uint64), np.array(numbers, np.uint32)


def grams(hashes: Hashes) -> Hashes:
    """Return the hash of each `GRAM` lines in a row."""
    count = max(0, len(hashes) - GRAM + 1)
    mixed = np.zeros(count, np.uint64)
    for offset in range(GRAM):
        mixed = (mixed ^ hashes[offset : offset + count]) * _FACTOR
        mixed ^= mixed >> _SHIFT
    return mixed


def winnowed(hashed_grams: Hashes) -> NDArray[np.intp]:
    """Return the positions of the n-grams that are kept: the least of each `WINNOW` in a row (all, if there are fewer).

    Source: Schleimer, Wilkerson and Aiken, "Winnowing: local algorithms for document fingerprinting", 2003.
    """
    if len(hashed_grams) <= WINNOW:
        return np.arange(len(hashed_grams))
    windows = np.lib.stride_tricks.sliding_window_view(hashed_grams, WINNOW)
    return np.unique(np.argmin(windows, axis=1) + np.arange(len(windows)))
