"""A model's weights in the kernels' order: packed from a checkpoint, or read from what an earlier start packed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the field's own name)

from llama_serving.engine.batching.backends.blocks import zeros
from llama_serving.engine.batching.native import bindings as c
from llama_serving.engine.batching.native.bindings import Kernels
from llama_serving.engine.batching.quantized_checkpoint import GROUP, Int4

TILE: Final = 16
DEPTH: Final = 32
PANEL: Final = 64
"""The same as in `native/model.h`."""
if GROUP != DEPTH:
    raise AssertionError("the kernels have a scale for each row of a tile")
INT8_MOST: Final = 127
ROWS: Final = 256
"""Outputs that are quantized at a time, so that a vocabulary in float32 is never in memory as a whole."""


class PackedWeights:
    """Tensors by name. The kernels hold their addresses, so they are kept as long as the model.

    Args:
        kernels: which pack.
        quantization: `none`, `int8` or `int4`, of matrices unless said otherwise.
        saved: tensors of the same names that were packed before; what is missing is packed anew.

    Attributes:
        tensors: all of them, by name.
        bits: least bits of a matrix's weights.
    """

    def __init__(self, kernels: Kernels, quantization: str, saved: Mapping[str, Tensor]) -> None:
        self._kernels = kernels
        self._quantization = quantization
        self._saved = saved
        self.tensors: dict[str, Tensor] = {}
        self.bits = 16

    def vector(self, name: str, shape: tuple[int, ...], make: Callable[[], Tensor]) -> int:
        """Return the address of a bfloat16 tensor that is not packed."""
        found = self._saved.get(name)
        if not _is(found, shape, torch.bfloat16):
            found = make().clone(memory_format=torch.contiguous_format)
        self.tensors[name] = _required(found)
        return self.tensors[name].data_ptr()

    def matrix(
        self,
        name: str,
        shape: tuple[int, int],
        make: Callable[[], Tensor | Int4],
        quantization: str | None = None,
    ) -> c.Matrix:
        """Return a matrix in the kernels' order.

        Args:
            name: of the matrix.
            shape: outputs and inputs.
            make: returns the weights of that shape; not called for a matrix that was packed before. Integers of 4 bits stay
                what they are unless int8 is asked for.
            quantization: other than the model's.
        """
        form = Form(*shape, quantization or self._quantization)
        found = {f"{name}{part}": self._saved.get(f"{name}{part}") for part in form.parts}
        if not all(_is(each, *how) for each, how in zip(found.values(), form.parts.values(), strict=True)):
            made = make()
            if isinstance(made, Int4):
                form = Form(*shape, "int8" if form.quantization == "int8" else "int4")
            made_here = {f"{name}{part}": zeros(*how) for part, how in form.parts.items()}
            self._pack(made, form, *made_here.values())
            found = {**made_here}
        tensors = [_required(each) for each in found.values()]
        self.tensors.update(zip(found, tensors, strict=True))
        self.bits = min(self.bits, form.bits)
        weights, scales = ([each.data_ptr() for each in tensors] + [None])[:2]
        return c.Matrix(weights, scales, *shape, form.bits)

    def _pack(self, made: Tensor | Int4, form: "Form", packed: Tensor, scales: Tensor | None = None) -> None:
        shape = (form.outputs, form.inputs)
        if isinstance(made, Int4) and form.quantization == "int4":
            integers = made.integers.contiguous()
            self._kernels.pack_integers(integers.data_ptr(), shape, packed.data_ptr())
            groups = F.pad(made.scales, (0, 0, 0, -form.outputs % PANEL)).view(-1, PANEL, made.scales.shape[1])
            _required(scales).view(len(groups), -1, PANEL).copy_(groups.transpose(1, 2))
            return
        weight = made.weight if isinstance(made, Int4) else made
        if form.quantization == "int4":
            weight = weight.to(torch.bfloat16).contiguous()
            self._kernels.pack_int4(weight.data_ptr(), shape, packed.data_ptr(), _required(scales).data_ptr())
            return
        if form.quantization == "int8":
            weight, by_output = quantized(weight)
            _required(scales)[: form.outputs] = by_output
        weight = weight.to(packed.dtype).contiguous()
        self._kernels.pack(weight.data_ptr(), shape, form.bits, packed.data_ptr())


@dataclass(frozen=True, slots=True)
class Form:
    """How a matrix (outputs, inputs) is stored."""

    outputs: int
    inputs: int
    quantization: str

    @property
    def bits(self) -> int:
        """Of a weight."""
        return {"none": 16, "int8": 8, "int4": 4}[self.quantization]

    @property
    def parts(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of the weights and of their scales, each by the end of its name."""
        outputs, inputs = self.outputs + -self.outputs % PANEL, self.inputs + -self.inputs % DEPTH
        if self.quantization == "int4":
            return {
                "": ((outputs, inputs // 2), torch.uint8),
                ".scales": ((outputs, inputs // GROUP), torch.bfloat16),
            }
        if self.quantization == "int8":
            return {"": ((outputs, inputs), torch.int8), ".scales": ((outputs,), torch.float32)}
        return {"": ((outputs, inputs), torch.bfloat16)}


def _is(tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return tensor is not None and tuple(tensor.shape) == shape and tensor.dtype == dtype


def _required(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise AssertionError("a matrix has weights and, if it is quantized, scales")
    return tensor


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize (outputs, inputs) to integers from -127 to 127, in int8, and a scale in float32 for each output."""
    integers, scales = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight))
    for first in range(0, len(weight), ROWS):
        rows = slice(first, first + ROWS)
        part = weight[rows].float()
        by_output = part.abs().amax(dim=1) / INT8_MOST
        by_output[by_output == 0] = 1
        integers[rows], scales[rows] = (part / by_output[:, None]).round_(), by_output
    return integers, scales
