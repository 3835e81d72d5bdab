"""A batch job: many prompts of mixed length, answered with texts of mixed length, as fast as they go.

Here by our engine; `pipeline_loop.py` has the loop that one writes with transformers.
"""

from __future__ import annotations

import json
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from llama_serving.contract.request import SamplingParams
from llama_serving.engine.batching.start import start

SEED: Final = 5
PROMPT: Final = (10, 300)
ANSWER: Final = (8, 128)
"""Tokens, drawn evenly on a logarithmic scale: many short ones, some long ones, as in real files."""
SLOTS: Final = 64


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt, and after how many tokens its answer ends (the weights are random: they would not end it)."""

    ids: list[int]
    new_tokens: int


def rows(number: int) -> list[Row]:
    """So many rows; the same for every contestant."""
    rng = random.Random(SEED)  # noqa: S311

    def between(limits: tuple[int, int]) -> int:
        low, high = limits
        return int(low * (high / low) ** rng.random())

    return [
        Row([rng.randrange(300, 4000) for _ in range(between(PROMPT))], between(ANSWER)) for _ in range(number)
    ]


def write(path: Path, number: int) -> Path:
    """The rows as JSONL, for a process that has nothing of this project."""
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows(number)), encoding="utf-8")
    return path


def read(path: Path) -> list[Row]:
    """What `write` wrote."""
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def seconds(checkpoint: Path, work: list[Row]) -> float:
    """What our engine takes, once it is up and warm."""
    engine = start(checkpoint, dtype="bfloat16", context=1024, max_num_seqs=SLOTS)
    try:
        engine.submit(work[0].ids, SamplingParams(max_new_tokens=4)).wait()
        started = time.perf_counter()
        handles = [engine.submit(row.ids, SamplingParams(max_new_tokens=row.new_tokens)) for row in work]
        for row, handle in zip(work, handles, strict=True):
            if sum(1 for _ in handle) != row.new_tokens:
                raise RuntimeError("an answer has another length than was asked for")
        return time.perf_counter() - started
    finally:
        engine.close()


if __name__ == "__main__":
    print(seconds(Path(sys.argv[1]), read(Path(sys.argv[2]))))  # noqa: T201
