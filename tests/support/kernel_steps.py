"""Steps of the kernels on buffers of exactly the sizes that they state, without torch: what a sanitizer can watch.

    python -m tests.support.kernel_steps LIBRARY RESULTS [SHORT]

Writes the logits of all steps to a file of numpy's. SHORT bytes are left off the room that a step needs.
"""

import ctypes
import sys
from ctypes import POINTER, byref, c_int, c_int64, c_void_p
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llama_serving.engine.batching.native import bindings as c

DEPTH: Final = 32
PANEL: Final = 64
BLOCK_TOKENS: Final = 32
EACH: Final = 7
"""Blocks of a sequence."""


@dataclass(frozen=True)
class Shape:
    """A model's."""

    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    bits: int = 16
    layers: int = 2
    head_bits: int = 0
    """Those of the layers, if 0."""


SHAPES: Final = (
    Shape(hidden=48, ffn=33, heads=2, kv_heads=1, head_dim=64, vocab=65),
    Shape(hidden=64, ffn=16, heads=3, kv_heads=3, head_dim=128, vocab=63),
    Shape(hidden=16, ffn=97, heads=8, kv_heads=1, head_dim=64, vocab=3, bits=8),
    Shape(hidden=80, ffn=1, heads=4, kv_heads=2, head_dim=128, vocab=129, bits=8),
    Shape(hidden=112, ffn=65, heads=2, kv_heads=1, head_dim=64, vocab=66, bits=4),
    Shape(hidden=112, ffn=65, heads=2, kv_heads=1, head_dim=64, vocab=66, bits=4, head_bits=16),
)
STEPS: Final = (
    ((0, 1, 1),),
    ((0, 31, 1), (0, 1, 1), (0, 3, 1)),
    ((31, 1, 0), (1, 1, 0), (3, 130, 1)),
    ((32, 1, 0), (2, 1, 0), (133, 65, 1)),
    ((33, 1, 0), (198, 1, 0), (3, 1, 0), *((0, 1, 0),) * 36),
)
"""Spans (start, count, prompt): the n-th of each step is of the n-th sequence."""
BLOCKS: Final = EACH * max(map(len, STEPS))


class Buffers:
    """Memory of the C library's own, where a sanitizer sees each end."""

    def __init__(self) -> None:
        self._allocate = ctypes.CDLL(None).memalign
        self._allocate.restype, self._allocate.argtypes = c_void_p, (ctypes.c_size_t, ctypes.c_size_t)

    def room(self, size: int) -> int:
        """So many bytes at a multiple of 64, of no value in particular."""
        at = self._allocate(64, size)
        ctypes.memset(at, 0xFF, size)  # no numbers, whichever way they are read
        return int(at)

    def of(self, values: npt.NDArray[Any]) -> int:
        """The address of a copy."""
        at = self.room(values.nbytes)
        ctypes.memmove(at, values.tobytes(), values.nbytes)
        return at


def bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    return (values.view(np.uint32) >> 16).astype(np.uint16)


class Kernels:
    """A library, and a random model for it."""

    def __init__(self, path: Path, shape: Shape, *, short: int = 0) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.llama_room.restype = c_int64
        self._library.llama_room.argtypes = (POINTER(c.Model), POINTER(c.Step))
        self._library.llama_step.argtypes = (POINTER(c.Model), POINTER(c.Step), c_void_p)
        self._library.llama_pack.argtypes = (c_void_p, c_int64, c_int64, c_int, c_void_p)
        self._library.llama_pack.restype = None
        self._library.llama_pack_int4.argtypes = (c_void_p, c_int64, c_int64, c_void_p, c_void_p)
        self._library.llama_pack_int4.restype = None
        self._short, self._shape, self._rng, self._buffers = short, shape, np.random.default_rng(1), Buffers()
        self._model = self._made()

    def step(self, spans: tuple[tuple[int, int, int], ...]) -> npt.NDArray[np.float32]:
        """The logits (spans, vocab) after the last row of each."""
        shape, rng, buffers = self._shape, self._rng, self._buffers
        made, first, tables = [], 0, []
        for number, (start, count, prompt) in enumerate(spans):
            made.append(c.Span(first, count, start, len(tables), prompt))
            first += count
            own = number * EACH
            tables += range(own, own + -(-(start + count) // BLOCK_TOKENS))
        positions = np.concatenate([np.arange(start, start + count) for start, count, _ in spans])
        half = shape.head_dim // 2
        angles = np.outer(positions, 1e4 ** (-np.arange(half) / half)).astype(np.float32)
        want = np.cumsum([count for _, count, _ in spans]).astype(np.int32) - 1
        logits = buffers.room(4 * len(spans) * shape.vocab)
        step = c.Step(
            first, len(spans), len(spans),
            buffers.of(rng.integers(0, shape.vocab, first).astype(np.int32)),
            buffers.of(np.cos(angles)), buffers.of(np.sin(angles)),
            ctypes.cast(buffers.of(np.frombuffer((c.Span * len(made))(*made), np.int32)), POINTER(c.Span)),
            buffers.of(np.array(tables, np.int32)), buffers.of(want), logits, len(spans), 0, shape.layers, None,
        )  # fmt: skip
        room = buffers.room(self._library.llama_room(byref(self._model), byref(step)) - self._short)

        def run() -> npt.NDArray[np.float32]:
            assert self._library.llama_step(byref(self._model), byref(step), room) == 0
            data = (ctypes.c_float * (len(spans) * shape.vocab)).from_address(logits)
            return np.array(data, np.float32).reshape(len(spans), shape.vocab)

        found = run()
        step.whole = next((n for n, (_, _, prompt) in enumerate(spans) if prompt), len(spans) - 1)
        step.between = buffers.room(4 * shape.hidden * sum(count for _, count, _ in spans[step.whole :]))
        for step.layer, step.layer_end in pairwise(range(shape.layers + 1)):
            again = run()
        assert np.array_equal(found, again), "a layer at a time is the same"
        return found

    def _made(self) -> c.Model:
        shape = self._shape
        hidden, ffn, width = shape.hidden, shape.ffn, shape.heads * shape.head_dim
        cache = np.zeros((BLOCKS, shape.layers, 2, shape.kv_heads, BLOCK_TOKENS * shape.head_dim), np.uint16)
        pairs = 2 * (ffn + -ffn % DEPTH)
        layers = [
            c.Layer(
                before=self._vector(hidden), qkv=self._matrix(width + 2 * shape.kv_heads * shape.head_dim, hidden),
                o=self._matrix(hidden, width), between=self._vector(hidden),
                gate_up=self._matrix(pairs, hidden), down=self._matrix(hidden, ffn),
            )
            for _ in range(shape.layers)
        ]  # fmt: skip
        self._layers = (c.Layer * shape.layers)(*layers)
        embedding = self._normal(shape.vocab, hidden + -hidden % DEPTH)
        return c.Model(
            layers=shape.layers, hidden=hidden, ffn=ffn, heads=shape.heads, kv_heads=shape.kv_heads,
            head_dim=shape.head_dim, vocab=shape.vocab, epsilon=1e-5, layer=self._layers,
            embedding=self._buffers.of(bf16(embedding)), norm=self._vector(hidden),
            head=self._matrix(shape.vocab, hidden, shape.head_bits), cache=self._buffers.of(cache),
        )  # fmt: skip

    def _normal(self, *sizes: int) -> npt.NDArray[np.float32]:
        return self._rng.standard_normal(sizes, np.float32)

    def _vector(self, size: int) -> int:
        return self._buffers.of(bf16(np.abs(self._normal(size))))

    def _matrix(self, outputs: int, inputs: int, bits: int = 0) -> c.Matrix:
        weight = self._normal(outputs, inputs) / np.float32(inputs**0.5)
        filled = (outputs + -outputs % PANEL, inputs + -inputs % DEPTH)
        scales, numbers, bits = None, bf16(weight), bits or self._shape.bits
        packed = self._buffers.room(filled[0] * filled[1] * bits // 8)
        if bits == 4:
            scales = self._buffers.room(filled[0] * filled[1] // DEPTH * 2)
            self._library.llama_pack_int4(self._buffers.of(numbers), outputs, inputs, packed, scales)
            return c.Matrix(packed, scales, outputs, inputs, bits)
        if bits == 8:
            steps = np.abs(weight).max(axis=1) / 127
            numbers = np.round(weight / steps[:, None]).astype(np.int8)
            scales = self._buffers.of(np.pad(steps, (0, -outputs % PANEL)))
        self._library.llama_pack(self._buffers.of(numbers), outputs, inputs, bits, packed)
        return c.Matrix(packed, scales, outputs, inputs, bits)


def results(library: Path, *, short: int = 0) -> list[npt.NDArray[np.float32]]:
    """The logits of every step of every shape."""
    found = []
    for shape in SHAPES:
        kernels = Kernels(library, shape, short=short)
        found += [kernels.step(spans) for spans in STEPS]
    return found


if __name__ == "__main__":
    _, path, target, *short = sys.argv
    np.savez(target, *results(Path(path), short=int(short[0]) if short else 0))
