"""The kernels' C functions and structures; `model.h` declares the same."""

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any


class Matrix(Structure):
    """See `model.h`."""

    _fields_ = (
        ("weights", c_void_p),
        ("scales", c_void_p),
        ("outputs", c_int32),
        ("inputs", c_int32),
        ("bits", c_int32),
    )


class Layer(Structure):
    """See `model.h`."""

    _fields_ = (
        ("before", c_void_p), ("qkv", Matrix), ("o", Matrix),
        ("between", c_void_p), ("gate_up", Matrix), ("down", Matrix),
    )  # fmt: skip


class Model(Structure):
    """See `model.h`."""

    _fields_ = (
        *((name, c_int32) for name in ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocab")),
        ("epsilon", c_float), ("layer", POINTER(Layer)),
        ("embedding", c_void_p), ("norm", c_void_p), ("head", Matrix), ("cache", c_void_p),
    )  # fmt: skip


class Span(Structure):
    """See `model.h`."""

    _fields_ = tuple((name, c_int32) for name in ("first", "count", "start", "table", "prompt"))


class Step(Structure):
    """See `model.h`."""

    _fields_ = (
        ("rows", c_int32), ("spans", c_int32), ("wanted", c_int32),
        ("ids", c_void_p), ("cosines", c_void_p), ("sines", c_void_p),
        ("span", POINTER(Span)), ("tables", c_void_p), ("want", c_void_p), ("logits", c_void_p),
        ("whole", c_int32), ("layer", c_int32), ("layer_end", c_int32), ("between", c_void_p),
    )  # fmt: skip


class Kernels:
    """The library at a path.

    Attributes:
        instructions: name of the instruction set that it is compiled for.

    Raises:
        OSError: it cannot be loaded, or the system does not let this process use AMX.
    """

    def __init__(self, path: Path, instructions: str) -> None:
        import torch  # noqa: F401  (its OpenMP is the one that the library shall find: two would fight for the cores)

        self.instructions = instructions
        library = ctypes.CDLL(str(path))
        self._room = _function(library, "llama_room", c_int64, (POINTER(Model), POINTER(Step)))
        self._step = _function(library, "llama_step", c_int, (POINTER(Model), POINTER(Step), c_void_p))
        self._pack = _function(library, "llama_pack", None, (c_void_p, c_int64, c_int64, c_int, c_void_p))
        self._pack_int4 = _function(
            library, "llama_pack_int4", None, (c_void_p, c_int64, c_int64, c_void_p, c_void_p)
        )
        self._pack_integers = _function(
            library, "llama_pack_integers", None, (c_void_p, c_int64, c_int64, c_void_p)
        )
        if error := _function(library, "llama_allow", c_int, ())():
            raise OSError(error, "the system does not let this process use the tiles (AMX) of its CPU")

    def room(self, model: Model, step: Step) -> int:
        """Return the bytes of scratch memory that a step needs."""
        return int(self._room(byref(model), byref(step)))

    def step(self, model: Model, step: Step, room: int) -> None:
        """Run one step; `room` is the address of that much memory, aligned to 64 bytes."""
        if self._step(byref(model), byref(step), room):
            raise ValueError(f"the kernels do not support heads of size {model.head_dim}")

    def pack(self, source: int, shape: Sequence[int], bits: int, target: int) -> None:
        """Pack a matrix (outputs, inputs) of bf16 (16 bits) or int8 (8 bits) into the order of `Matrix.weights`."""
        self._pack(source, *shape, bits, target)

    def pack_int4(self, source: int, shape: Sequence[int], target: int, scales: int) -> None:
        """Quantize a matrix (outputs, inputs) of bf16 to 4 bits, packed into the order of `Matrix.weights` and `.scales`."""
        self._pack_int4(source, *shape, target, scales)

    def pack_integers(self, source: int, shape: Sequence[int], target: int) -> None:
        """Pack a matrix (outputs, inputs) of int8 from -8 to 7 in 4 bits each, into the order of `Matrix.weights`."""
        self._pack_integers(source, *shape, target)


def _function(library: ctypes.CDLL, name: str, result: Any, arguments: Sequence[Any]) -> Callable[..., Any]:
    function: Any = getattr(library, name)
    function.restype, function.argtypes = result, arguments
    return function  # type: ignore[no-any-return]
