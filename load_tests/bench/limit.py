"""The machine's limit: its memory bandwidth, and the tokens a second it allows."""

from __future__ import annotations

import time

import torch

SIZE = 1 << 29


def bandwidth(rounds: int = 5) -> float:
    """Return the bytes a second that all cores together read beyond the caches; the best of some rounds."""
    memory = torch.ones(SIZE // 4, dtype=torch.float32)
    best = 0.0
    for _ in range(rounds):
        started = time.perf_counter()
        float(memory.sum())
        best = max(best, SIZE / (time.perf_counter() - started))
    return best


def tokens_per_second(bytes_per_second: float, *, weight_bytes: int, kv_bytes: int, rows: int) -> float:
    """Return the limit of a step that reads every weight once, and each row's KV cache."""
    return rows * bytes_per_second / (weight_bytes + rows * kv_bytes)


if __name__ == "__main__":
    print(bandwidth())  # noqa: T201
