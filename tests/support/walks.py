"""Texts of a constraint without a model: allowed tokens drawn at random."""

import random
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from llama_serving.constraints.compiler import Compiler
from llama_serving.constraints.constraint import Constraint

BYTES: Final = (
    *(bytes([byte]) for byte in range(256)),
    b"",
    b'": ',
    b'{"',
    b"},",
    b"  ",
    b"true",
    "é".encode(),
    b"12",
)
"""A small vocabulary; the empty one is special."""
END: Final = 256


def walks(
    compiler: Compiler,
    constraint: Constraint,
    *,
    number: int,
    seed: int = 0,
    pieces: Sequence[bytes] = BYTES,
    end: int = END,
    most: int = 200,
) -> Iterator[str]:
    """The texts that end within `most` tokens."""
    compiled = compiler.compile(constraint, "it")
    rng = random.Random(seed)
    for _ in range(number):
        matcher, raw = compiled.matcher(frozenset({end})), b""
        for _ in range(most):
            mask, over = matcher.allowed(len(pieces))
            if mask[end] and (over or rng.random() < 0.4):
                yield raw.decode()
                break
            token = int(rng.choice([i for i in np.flatnonzero(mask) if i != end]))
            raw += pieces[token]
            matcher.advance(token)
