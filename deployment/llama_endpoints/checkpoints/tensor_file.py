"""Read a safetensors file's header, and convert floating-point tensors to float32 and back.

The `safetensors` library returns bfloat16 only to torch and writes only whole files; with this module a tensor is read and
written at a time. (The format: 8 bytes of length, a JSON header, the tensors.)
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llama_serving.errors import SetupError

Floats = NDArray[np.float32]

ITEM_BYTES: Final[Mapping[str, int]] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I8": 1,
    "F8_E4M3": 1,
}
"""Bytes per element, by safetensors' name of the type."""
FLOATING: Final = ("F32", "F16", "BF16")
_LONGEST_HEADER: Final = 100_000_000  # as in safetensors


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's place in a file.

    Attributes:
        start: offset of its first byte.
        stop: offset after its last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A safetensors file with its header parsed.

    Attributes:
        tensors: by name, in file order.
        header_bytes: bytes before the first tensor.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    header_bytes: int

    @classmethod
    def read(cls, path: Path) -> "TensorFile":
        """Parse a file's header.

        Raises:
            SetupError: it is damaged or cut short.
        """
        try:
            return cls._read(path)
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ) as error:
            raise SetupError(f"{path} is damaged or cut short: {error}. Download it again.") from error

    @classmethod
    def _read(cls, path: Path) -> "TensorFile":
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        found = [_tensor(name, entry, 8 + length) for name, entry in header.items()]
        found.sort(key=lambda tensor: (tensor.start, tensor.stop))
        ends = [8 + length, *(tensor.stop for tensor in found)]
        if [tensor.start for tensor in found] != ends[:-1] or ends[-1] != size:
            raise ValueError("its tensors do not fill it")
        return cls(path, {tensor.name: tensor for tensor in found}, 8 + length)

    def floats(self, name: str) -> Floats:
        """Return a floating-point tensor as float32, which represents its values exactly.

        Raises:
            SetupError: its type is not floating-point.
        """
        tensor = self.tensors[name]
        with self.path.open("rb") as file:
            file.seek(tensor.start)
            return as_float32(file.read(tensor.stop - tensor.start), tensor.dtype, name).reshape(tensor.shape)

    def integers(self, name: str) -> NDArray[np.int64]:
        """Return a tensor of I32 or I64."""
        tensor = self.tensors[name]
        kind = np.dtype("<i4" if tensor.dtype == "I32" else "<i8")
        with self.path.open("rb") as file:
            file.seek(tensor.start)
            raw = file.read(tensor.stop - tensor.start)
        return np.frombuffer(raw, kind).astype(np.int64).reshape(tensor.shape)


def header_of(tensors: Iterable[tuple[str, tuple[int, ...]]], dtype: str) -> bytes:
    """Return the beginning of a file with these tensors, all of one type, in this order.

    Args:
        tensors: name and shape of each.
        dtype: safetensors' name of their type.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # without it transformers refuses a file
    start = 0
    for name, shape in tensors:
        stop = start + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8, as in safetensors
    return len(text).to_bytes(8, "little") + text


def as_float32(raw: bytes, dtype: str, name: str = "a tensor") -> Floats:
    """Return the elements of `raw` as a flat array.

    Raises:
        SetupError: `dtype` is not float32, float16 or bfloat16.
    """
    if dtype == "F32":
        return np.frombuffer(raw, "<f4").astype(np.float32)
    if dtype == "F16":
        return np.frombuffer(raw, "<f2").astype(np.float32)
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    raise SetupError(f"{name} is of {dtype}; it must be of {', '.join(FLOATING)}.")


def from_float32(values: Floats, dtype: str) -> bytes:
    """Return the bytes of `values` as `dtype`, rounded to nearest, ties to even. NaN stays NaN."""
    if dtype == "F32":
        return values.astype("<f4").tobytes()
    if dtype == "F16":
        with np.errstate(over="ignore"):  # overflow in float16 gives infinity, which the merge checks
            return values.astype("<f2").tobytes()
    bits = np.ascontiguousarray(values).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
    rounded = np.where(np.isnan(values), np.uint32(0x7FC0), rounded)
    return rounded.astype("<u2").tobytes()


def _tensor(name: str, entry: Mapping[str, Any], base: int) -> Tensor:
    start, stop = entry["data_offsets"]
    shape, dtype = tuple(entry["shape"]), str(entry["dtype"])
    if not all(type(number) is int and number >= 0 for number in (start, stop, *shape)):
        raise ValueError(f"{name} has an invalid shape or offset")
    if dtype in ITEM_BYTES and math.prod(shape) * ITEM_BYTES[dtype] != stop - start:
        raise ValueError(f"{name} has another number of bytes than its shape needs")
    return Tensor(name, dtype, shape, base + start, base + stop)
