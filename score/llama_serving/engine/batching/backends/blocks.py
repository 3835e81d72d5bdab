"""The memory of keys and values: blocks of tokens, separate for each layer."""

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return zeros in large pages, which take no memory until written (those of `torch.zeros` do)."""
    count = math.prod(shape)
    if not count:  # (a length of 0 cannot be mapped)
        return torch.empty(tuple(shape), dtype=dtype)
    pages = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype, count=count).view(tuple(shape))


class Blocks:
    """Keys and values of all layers.

    Args:
        shape: of the keys of a layer, and of the values; the first dimension is the blocks.
        dtype: of both.
        layers: how many.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, layers: int) -> None:
        self.keys = [zeros(shape, dtype) for _ in range(layers)]
        self.values = [zeros(shape, dtype) for _ in range(layers)]

    def save(self, blocks: Sequence[int]) -> list[Tensor]:
        """See `Backend.save`."""
        at = _index(blocks)
        return [cache[at] for cache in (*self.keys, *self.values)]

    def restore(self, blocks: Sequence[int], saved: list[Tensor]) -> None:
        """See `Backend.restore`."""
        at = _index(blocks)
        for cache, copy in zip((*self.keys, *self.values), saved, strict=True):
            cache[at] = copy

    def clear(self, blocks: Sequence[int]) -> None:
        """See `Backend.clear`."""
        at = _index(blocks)
        for cache in (*self.keys, *self.values):
            cache[at] = 0


def _index(blocks: Sequence[int]) -> Tensor:
    return torch.tensor(blocks, dtype=torch.int64)
