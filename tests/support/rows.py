"""Rows for backends: random ids, blocks in any place, and other rows of a batch."""

import random
from collections.abc import Sequence
from typing import Final

import torch

from llama_serving.engine.batching.backends.base import Backend, Rows

VOCAB: Final = 300
STARTS: Final = (0, 1, 15, 16, 31, 32, 33, 40, 64, 90, 127, 128, 250, 511, 512, 600)
"""On both sides of the borders of blocks, and of what backends take together."""


class Cache:
    """A backend's blocks in random order, none given out twice."""

    def __init__(self, backend: Backend, rng: random.Random) -> None:
        self._tokens = backend.block_tokens
        self._free = list(range(backend.num_blocks))
        rng.shuffle(self._free)

    def blocks(self, tokens: int) -> list[int]:
        return [self._free.pop() for _ in range(-(-tokens // self._tokens))]


def ids(rng: random.Random, count: int, vocab: int = VOCAB) -> list[int]:
    return [rng.randrange(vocab) for _ in range(count)]


def other_rows(cache: Cache, rng: random.Random, *, vocab: int = VOCAB, most: int = 9) -> list[Rows]:
    """Other rows: generating ones of every length, and parts of prompts."""
    rows = []
    for _ in range(rng.randint(1, most)):
        start = rng.choice(STARTS)
        rows.append(
            Rows(
                ids(rng, 1, vocab),
                start,
                cache.blocks(start + 1),
                prefill=False,
                num_logits=int(rng.random() < 0.8),
            )
        )
    for _ in range(rng.randint(0, 2)):
        count, start = rng.randint(1, 70), rng.choice((0, 16, 33))
        own = cache.blocks(start + count)
        rows.append(Rows(ids(rng, count, vocab), start, own, prefill=True, num_logits=rng.randrange(count + 1)))
    return rows


def spoil(backend: Backend, blocks: Sequence[int]) -> None:
    """Makes all keys and values in these blocks NaN."""
    saved = backend.save(blocks)
    for copy in saved:
        copy.fill_(float("nan"))
    backend.restore(blocks, saved)


def among(backend: Backend, mine: Rows, others: Sequence[Rows], rng: random.Random) -> torch.Tensor:
    """The logits (vocab,) of wanted rows that go through the model in a random place of the batch."""
    at = rng.randint(0, len(others))
    logits: torch.Tensor = backend.forward([*others[:at], mine, *others[at:]])
    return logits[sum(rows.num_logits for rows in others[:at])]


def in_chunks(
    backend: Backend,
    prompt: Sequence[int],
    blocks: list[int],
    rng: random.Random,
    others: Sequence[Rows] = (),
    *,
    first: int = 0,
) -> torch.Tensor:
    """The last row's logits of a prompt that goes through in random chunks, each beside random other rows; `first` is its position."""
    start = 0
    while start < len(prompt):
        end = min(len(prompt), start + rng.randint(1, 80))
        part = Rows(prompt[start:end], first + start, blocks, prefill=True, num_logits=1)
        result = among(backend, part, rng.sample(others, rng.randint(0, len(others))), rng)
        start = end
    return result
