"""Linear layers: weights reordered once for oneDNN where it supports them; float32 products always have one shape."""

import functools
import logging
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the field's own name)

_log = logging.getLogger(__name__)

ROWS: Final = 16
"""Rows in a float32 product."""


def _reorder(weight: Tensor, rows: int) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, rows)  # noqa: SLF001  (as torch's compiler does)
    return packed


@functools.cache
def _packs(dtype: torch.dtype) -> bool:
    """Return whether oneDNN supports this dtype here: bf16 needs AVX-512 or better, and not every build of torch has it."""
    try:
        one = torch.ones(32, 32, dtype=dtype)
        _pointwise()(one, _reorder(one, ROWS), None, "none", [], "")
    except (RuntimeError, AttributeError) as error:
        _log.warning("linear layers are not reordered for oneDNN, which costs speed: %s", error)
        return False
    return True


def _pointwise() -> Any:
    return torch.ops.mkldnn._linear_pointwise  # noqa: SLF001


def _plain(y: Tensor, other: Tensor | None, how: str, *, silu: bool) -> Tensor:
    y = F.silu(y) if silu else y
    if other is None:
        return y
    return y + other if how == "add" else y * other


class PackedLinear:
    """y = x · Wᵀ, fused with the operation after it. Where oneDNN supports them, only reordered weights are kept.

    Attributes:
        block_rows: rows in a float32 product.
    """

    def __init__(self, weight: Tensor) -> None:
        self.block_rows = ROWS
        self._exact = weight.dtype == torch.float32
        self._packed = _packs(weight.dtype)
        self._weight = _reorder(weight.contiguous(), ROWS) if self._packed else weight.contiguous().clone()

    def __call__(
        self, x: Tensor, *, plus: Tensor | None = None, times: Tensor | None = None, silu: bool = False
    ) -> Tensor:
        """Compute (rows, inputs) -> (rows, outputs), plus or times another (rows, outputs), or through SiLU."""
        other, how = (plus, "add") if plus is not None else (times, "mul")

        def product(x: Tensor, other: Tensor | None) -> Tensor:
            if not self._packed:
                return _plain(F.linear(x, self._weight), other, how, silu=silu)
            if other is not None:
                y: Tensor = _pointwise().binary(x, other, self._weight, None, how)
            else:
                y = _pointwise()(x, self._weight, None, "swish" if silu else "none", [], "")
            return y

        if not self._exact:
            return product(x, other)
        return _in_blocks(product, self.block_rows, x, other)


def _in_blocks(
    product: Callable[[Tensor, Tensor | None], Tensor], size: int, x: Tensor, other: Tensor | None
) -> Tensor:
    """Compute the product `size` rows at a time, padding the last block."""
    rows = len(x)
    missing = -rows % size
    if missing:
        x = F.pad(x, (0, 0, 0, missing))
        other = None if other is None else F.pad(other, (0, 0, 0, missing))
    others = [None] * (len(x) // size) if other is None else torch.split(other, size)
    results = [product(part, o) for part, o in zip(torch.split(x, size), others, strict=True)]
    return (results[0] if len(results) == 1 else torch.cat(results))[:rows]
