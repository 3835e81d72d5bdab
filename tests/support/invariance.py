"""Random cases of batch invariance: does a row have the same bits alone and beside others, and a prompt however it is divided?

    python -m tests.support.invariance --cases 10000

Each model has random sizes, each case random lengths, other rows, blocks and number of threads. Keys and values of what lies
before a case's rows are random numbers, so that 4,000 tokens cost no prompt of 4,000.
"""

import argparse
import math
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from tqdm import tqdm

from llama_serving.engine.batching.backends.base import Backend, Rows
from tests.support import backends, llamas
from tests.support.llamas import Llama
from tests.support.rows import Cache, among, ids, in_chunks, other_rows

LONGEST: Final = 4000
BLOCKS: Final = {"portable": 2200, "native": 1100}
PER_MODEL: Final = 50


def random_llama(rng: random.Random, kind: str) -> Llama:
    """Sizes of a model that a backend takes."""
    sizes = (64, 128) if kind.startswith("native") else (8, 16, 24, 48, 64, 80, 128)
    kv_heads = rng.choice((1, 1, 2, 3, 4))
    heads = kv_heads * rng.choice((1, 1, 2, 3, 4, 8))
    least = math.lcm(16, heads)
    return Llama(
        layers=rng.randint(1, 2),
        hidden=least * rng.randint(1, max(1, 640 // least)),
        ffn=rng.choice((40, 130, 344, 1032, 1100, 2752)),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=rng.choice(sizes),
        positions=2 * LONGEST,
    )


def fill(backend: Backend, seed: int) -> None:
    """Gives all blocks random keys and values."""
    generator = torch.Generator().manual_seed(seed)
    every = range(backend.num_blocks)
    saved = backend.save(every)
    for copy in saved:
        copy.copy_(torch.randn(copy.shape, generator=generator))
    backend.restore(every, saved)


def generated(backend: Backend, rng: random.Random) -> bool:
    """Whether a generated token has the same logits alone and beside other rows."""
    cache = Cache(backend, rng)
    start = _length(rng)
    mine = Rows(ids(rng, 1), start, cache.blocks(start + 1), prefill=False, num_logits=1)
    alone = backend.forward([mine])[0]
    return torch.equal(among(backend, mine, other_rows(cache, rng, most=rng.choice((1, 9, 40))), rng), alone)


def prompt(backend: Backend, rng: random.Random) -> bool:
    """Whether the end of a prompt has the same logits at once and in parts, each beside other rows."""
    cache = Cache(backend, rng)
    start, count = _length(rng) if rng.random() < 0.7 else 0, rng.randint(1, 150)
    blocks, tokens = cache.blocks(start + count), ids(rng, count)
    alone = backend.forward([Rows(tokens, start, blocks, prefill=True, num_logits=1)])[0]
    return torch.equal(in_chunks(backend, tokens, blocks, rng, other_rows(cache, rng), first=start), alone)


KINDS: Final[tuple[Callable[[Backend, random.Random], bool], ...]] = (generated, generated, prompt)


def _length(rng: random.Random) -> int:
    return int(LONGEST ** rng.random())


def failures(
    kind: str, *, cases: int, seed: int, folder: Path, threads: tuple[int, ...] = (1, 2, 3, 4)
) -> list[str]:
    """The cases that fail, each with what repeats it.

    Args:
        kind: of the backend, see `backends.make`.
        cases: how many; a model has `PER_MODEL` of them.
        seed: of all that is random.
        folder: for checkpoints.
        threads: numbers of threads to choose from.
    """
    found = []
    before = torch.get_num_threads()
    try:
        for number in tqdm(range(-(-cases // PER_MODEL)), unit="model", disable=None):
            rng = random.Random(f"{seed} {number}")
            llama = random_llama(rng, kind)
            checkpoint = llamas.write(llama, folder / str(number), seed=number)
            backend = backends.make(kind, checkpoint, BLOCKS[kind.split(maxsplit=1)[0]])
            fill(backend, number)
            for case in range(min(PER_MODEL, cases - number * PER_MODEL)):
                rng = random.Random(f"{seed} {number} {case}")
                torch.set_num_threads(rng.choice(threads))
                check = rng.choice(KINDS)
                if not check(backend, rng):
                    found.append(f"seed {seed}, model {number}, case {case}: {check.__name__}, {llama}")
    finally:
        torch.set_num_threads(before)
    return found


def main() -> int:
    """Exit code 1 where a case fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--backend",
        default="portable",
        help="see backends.make, such as `native int8 avx2` (default: portable)",
    )
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2, 3, 4))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = failures(
            given.backend, cases=given.cases, seed=given.seed, folder=Path(folder), threads=tuple(given.threads)
        )
    sys.stdout.writelines(f"{line}\n" for line in [*found, f"{given.cases} cases, {len(found)} failed"])
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
