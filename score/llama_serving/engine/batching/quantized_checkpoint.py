"""The linear layers of quantized checkpoints (AWQ, GPTQ, compressed-tensors), decoded.

A weight is (integer - zero point) x scale, or fp8 x scale. The layouts are those of AutoAWQ's GEMM, of AutoGPTQ, and of
compressed-tensors 0.17 (`pack_quantized/helpers.py`, `naive_quantized/base.py`). Activations are not rounded, whatever the
checkpoint says: the result is nearer to the unquantized model's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llama_serving.errors import SetupError

if TYPE_CHECKING:
    from torch import Tensor

GROUP: Final = 32
"""Inputs that share a scale in the kernels' int4."""
AWQ_COLUMNS: Final = (0, 2, 4, 6, 1, 3, 5, 7)
"""The column, of eight, in each half byte of an int32, from the lowest."""
NUMBERS: Final = (("num_bits", "bits", "w_bit"), ("group_size", "q_group_size"))
"""The names of a weight's bits, and of the inputs that share a scale."""
FP8_BLOCK: Final = (128, 128)
LOWEST: Final = -8
HIGHEST: Final = 7
"""Of the kernels' integers."""


@dataclass(frozen=True, slots=True)
class Int4:
    """Weights as integers from -8 to 7, times a scale for each output and group of 32 inputs.

    Attributes:
        integers: (outputs, inputs) in int8.
        scales: (outputs, inputs / 32) in bfloat16.
    """

    integers: "Tensor"
    scales: "Tensor"

    @property
    def weight(self) -> "Tensor":
        """(outputs, inputs) in float32."""
        return self.integers * self.scales.float().repeat_interleave(GROUP, 1)


@dataclass(frozen=True, slots=True)
class Scaled:
    """A decoded linear layer.

    Attributes:
        values: (outputs, inputs): integers of int8 with their zero point subtracted, or fp8.
        scales: (outputs / block[0], inputs / block[1]), rounded up.
        block: outputs and inputs that share a scale.
        groups: (inputs,) index of each input's group, where activation order makes it another one than its block.
    """

    values: "Tensor"
    scales: "Tensor"
    block: tuple[int, int]
    groups: "Tensor | None" = None

    @property
    def weight(self) -> "Tensor":
        """(outputs, inputs) in float32."""
        outputs, inputs = self.values.shape
        scales = self.scales.float().repeat_interleave(self.block[0], 0)[:outputs]
        if self.groups is None:
            scales = scales.repeat_interleave(self.block[1], 1)[:, :inputs]
        else:
            scales = scales[:, self.groups]
        return self.values.float() * scales

    def int4(self) -> Int4 | None:
        """Return the same for the kernels; None where their layout does not allow it."""
        import torch

        outputs, inputs = self.block
        if self.groups is not None or outputs != 1 or inputs % GROUP or self.values.dtype != torch.int8:
            return None
        if self.values.min() < LOWEST or self.values.max() > HIGHEST:
            return None
        return Int4(self.values, self.scales.to(torch.bfloat16).repeat_interleave(inputs // GROUP, 1))


class Decoder:
    """Decodes the linear layers of one checkpoint.

    Args:
        config: `quantization_config` of config.json.
        folder: of the checkpoint, for messages.

    Raises:
        SetupError: this engine does not decode such a checkpoint.
    """

    def __init__(self, config: Mapping[str, Any], folder: Path) -> None:
        self._folder = folder
        self._method = config.get("quant_method")
        decoders = {"awq": self._awq, "gptq": self._gptq, "compressed-tensors": self._compressed}
        if self._method not in decoders:
            raise SetupError(
                f"{folder} is quantized by {self._method!r}; the batching engine decodes {', '.join(decoders)}. "
                "Set LLAMA_ENGINE=vllm, or use one of these or an unquantized checkpoint."
            )
        self._decode = decoders[self._method]
        self._bits, self._group = _numbers(config)
        # (GPTQ's first format stores a zero point minus one: AutoGPTQ's `v1`.)
        self._offset = 0 if config.get("checkpoint_format") == "gptq_v2" else 1

    def decoded(self, name: str, parts: Mapping[str, "Tensor"], shape: tuple[int, int]) -> Scaled:
        """Return a linear layer.

        Args:
            name: of the layer, for messages.
            parts: its tensors, by the last part of their names.
            shape: outputs and inputs.

        Raises:
            SetupError: the tensors do not have that shape, or one is missing.
        """
        try:
            found = self._decode(parts)
        except (KeyError, ValueError, IndexError, RuntimeError) as error:
            raise SetupError(
                f"{name} in {self._folder} can't be decoded as {self._method}: {error}. Download it again."
            ) from error
        if tuple(found.values.shape) != shape:
            raise SetupError(
                f"{name} in {self._folder} is {list(found.values.shape)}; config.json says {list(shape)}. Download it again."
            )
        if "bias" in parts and bool(parts["bias"].any()):
            raise SetupError(f"{name} in {self._folder} has a bias, which a Llama has not.")
        return found

    def _awq(self, parts: Mapping[str, "Tensor"]) -> Scaled:
        values = _unpacked(parts["qweight"], 4, 1, AWQ_COLUMNS)  # (inputs, outputs)
        zeros = _unpacked(parts["qzeros"], 4, 1, AWQ_COLUMNS)
        return self._shifted(values.T, zeros.T, parts["scales"].T)

    def _gptq(self, parts: Mapping[str, "Tensor"]) -> Scaled:
        values, zeros = _unpacked(parts["qweight"], self._bits, 0), _unpacked(parts["qzeros"], self._bits, 1)
        return self._shifted(values.T, zeros.T + self._offset, parts["scales"].T, parts.get("g_idx"))

    def _compressed(self, parts: Mapping[str, "Tensor"]) -> Scaled:
        scales = parts["weight_scale"]
        if "weight_packed" in parts:
            values = _unpacked(parts["weight_packed"], self._bits, 1)
            zeros = parts.get("weight_zero_point")
            middle = scales.new_full(scales.shape, 1 << (self._bits - 1))
            points = middle if zeros is None else _unpacked(zeros, self._bits, 0)
            return self._shifted(values, points, scales, parts.get("weight_g_idx"))
        values = parts["weight"]  # int8 or fp8
        outputs, inputs = values.shape
        if scales.numel() == 1:
            return Scaled(values, scales.reshape(1, 1), (outputs, inputs))
        return Scaled(values, scales, (1, inputs) if scales.shape == (outputs, 1) else FP8_BLOCK)

    def _shifted(
        self, values: "Tensor", zeros: "Tensor", scales: "Tensor", g_idx: "Tensor | None" = None
    ) -> Scaled:
        """Subtract the zero points.

        Args:
            values: (outputs, inputs), unsigned.
            zeros: (outputs, groups).
            scales: (outputs, groups).
            g_idx: (inputs,) groups; None is as many inputs for each.
        """
        import torch

        outputs, inputs = values.shape
        size = self._group or inputs
        expected = (outputs, -(-inputs // size))
        if not expected == tuple(zeros.shape) == tuple(scales.shape):
            raise ValueError(
                f"it has scales {list(scales.shape)} and zero points {list(zeros.shape)} where {list(expected)} are needed"
            )
        in_order = torch.arange(inputs) // size
        index = in_order if g_idx is None else g_idx.long()
        signed = values.to(torch.int16) - zeros.to(torch.int16)[:, index]
        limits = torch.iinfo(torch.int8)
        if signed.min() < limits.min or signed.max() > limits.max:
            raise ValueError("its zero points are outside of its integers")
        ordered = torch.equal(index, in_order)
        return Scaled(signed.to(torch.int8), scales, (1, size), None if ordered else index)


def _numbers(config: Mapping[str, Any]) -> tuple[int, int | None]:
    """Return the bits of a weight and the inputs that share a scale; None is all inputs."""
    groups = config.get("config_groups", {"": {"weights": config}})
    try:
        (group,) = groups.values()
        weights = group["weights"]
        bits, size = (
            next((weights[name] for name in names if weights.get(name) is not None), None) for names in NUMBERS
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        bits, size = None, None
    if bits not in {4, 8} or not (size is None or (isinstance(size, int) and (size == -1 or size > 0))):
        raise SetupError(
            f"config.json's quantization_config has weights of {bits!r} bits in groups of {size!r}; the batching engine decodes "
            "4 and 8 bits. Use a checkpoint of these, or set LLAMA_ENGINE=vllm."
        )
    return bits, None if size == -1 else size


def _unpacked(words: "Tensor", bits: int, axis: int, order: tuple[int, ...] | None = None) -> "Tensor":
    """Return the unsigned integers of an int32 tensor as uint8, several in the place of each word along an axis."""
    import torch

    count, mask = 32 // bits, (1 << bits) - 1
    shape = [size * count if at == axis else size for at, size in enumerate(words.shape)]
    values = torch.empty(shape, dtype=torch.uint8)
    for shift, place in enumerate(order or range(count)):
        part = values[place::count] if axis == 0 else values[:, place::count]
        part.copy_((words >> (shift * bits)) & mask)
    return values
