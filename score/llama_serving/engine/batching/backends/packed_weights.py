"""A model's weights in the kernels' order: packed from a checkpoint, or read from what an earlier start packed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from llama_serving.engine.batching.backends.blocks import zeros
from llama_serving.engine.batching.native import bindings as c
from llama_serving.engine.batching.native.bindings import Kernels

TILE: Final = 16
DEPTH: Final = 32
PANEL: Final = 64
"""The same as in `native/model.h`."""
GROUP: Final = DEPTH
"""Inputs that share a scale in int4."""
INT8_MOST: Final = 127


class PackedWeights:
    """Tensors by name. The kernels hold their addresses, so they are kept as long as the model.

    Args:
        kernels: which pack.
        quantization: `none`, `int8` or `int4`, of matrices unless said otherwise.
        saved: tensors of the same names that were packed before; what is missing is packed anew.
    """

    def __init__(self, kernels: Kernels, quantization: str, saved: Mapping[str, Tensor]) -> None:
        self._kernels = kernels
        self._quantization = quantization
        self._saved = saved
        self.tensors: dict[str, Tensor] = {}

    def vector(self, name: str, shape: tuple[int, ...], make: Callable[[], Tensor]) -> int:
        """Return the address of a bfloat16 tensor that is not packed."""
        found = self._saved.get(name)
        if found is None or not _is(found, shape, torch.bfloat16):
            found = make().clone(memory_format=torch.contiguous_format)
        self.tensors[name] = found
        return found.data_ptr()

    def matrix(
        self, name: str, shape: tuple[int, int], make: Callable[[], Tensor], quantization: str | None = None
    ) -> c.Matrix:
        """Return a matrix in the kernels' order.

        Args:
            name: of the matrix.
            shape: outputs and inputs.
            make: returns the weights of that shape; not called for a matrix that was packed before.
            quantization: other than the model's.
        """
        form = Form(*shape, quantization or self._quantization)
        parts = {f"{name}{part}": how for part, how in form.parts.items()}
        if all(key in self._saved and _is(self._saved[key], *how) for key, how in parts.items()):
            self.tensors.update((key, self._saved[key]) for key in parts)
        else:
            self.tensors.update((key, zeros(*how)) for key, how in parts.items())
            self._pack(make(), form, *(self.tensors[key] for key in parts))
        weights, scales = ([self.tensors[key].data_ptr() for key in parts] + [None])[:2]
        return c.Matrix(weights, scales, *shape, form.bits)

    def _pack(self, weight: Tensor, form: "Form", packed: Tensor, scales: Tensor | None = None) -> None:
        shape = (form.outputs, form.inputs)
        if form.quantization == "int4":
            weight = weight.to(torch.bfloat16).contiguous()
            self._kernels.pack_int4(weight.data_ptr(), shape, packed.data_ptr(), _required(scales).data_ptr())
            return
        if form.quantization == "int8":
            weight, by_output = quantized(weight.float())
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


def _is(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return tuple(tensor.shape) == shape and tensor.dtype == dtype


def _required(scales: Tensor | None) -> Tensor:
    if scales is None:
        raise AssertionError("a quantized matrix has scales")
    return scales


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize (outputs, inputs) float32 to integers from -127 to 127 and a scale for each output."""
    scales = weight.abs().amax(dim=1) / INT8_MOST
    scales = torch.where(scales > 0, scales, 1.0)
    return (weight / scales[:, None]).round(), scales
