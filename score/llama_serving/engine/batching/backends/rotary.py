"""Cosines and sines of positions, each computed once.

If they were computed for each step, their last bits would depend on a row's index, since vectorized code and its remainder
loop round differently.
"""

from typing import Final

import torch
from torch import Tensor

CHUNK: Final = 1024
"""Positions computed at a time, always in this one shape."""


class RotaryTable:
    """The angles of rotary position embeddings, in float32, up to the largest position so far.

    Args:
        head_dim: size of a head.
        theta: base of the frequencies.
    """

    def __init__(self, head_dim: int, theta: float) -> None:
        half = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self._frequencies = 1.0 / (theta**half)
        self._cosines = self._sines = torch.empty(0, len(half))

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, each (rows, head_dim / 2), of (rows,) positions."""
        if len(positions) and (last := int(positions.max())) >= len(self._cosines):
            self._extend(last + 1)
        return self._cosines[positions], self._sines[positions]

    def _extend(self, positions: int) -> None:
        starts = range(len(self._cosines), positions, CHUNK)
        angles = [
            torch.outer(torch.arange(s, s + CHUNK, dtype=torch.float32), self._frequencies) for s in starts
        ]
        self._cosines = torch.cat([self._cosines, *(part.cos() for part in angles)])
        self._sines = torch.cat([self._sines, *(part.sin() for part in angles)])
