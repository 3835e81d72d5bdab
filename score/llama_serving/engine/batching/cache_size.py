"""Size of the cache of keys and values."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from llama_serving.engine.cgroups import groups
from llama_serving.errors import SetupError

SHARE: Final = 0.5
"""Share of the memory that is free after loading the weights; the rest is for activations, requests and the system."""
_FILES: Final = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    2: ("memory.max", "memory.current"),
}
"""A control group's files of its limit and its usage, by version."""


def num_blocks(*, block_bytes: int, block_tokens: int, wanted_tokens: int, limit: int | None) -> int:
    """Return the number of cache blocks: as many as all sequences can need, but no more than fit.

    Args:
        block_bytes: bytes of a block.
        block_tokens: tokens in a block.
        wanted_tokens: the most tokens of all sequences together.
        limit: bytes set by the operator; None is half of the free memory.

    Raises:
        SetupError: the limit exceeds the free memory, or not even one block fits.
    """
    free = free_bytes()
    if limit is not None and limit > free:
        raise SetupError(f"LLAMA_KV_MEMORY is {limit:,} bytes, but {free:,} are free. Lower it.")
    budget = int(free * SHARE) if limit is None else limit
    blocks = min(-(-wanted_tokens // block_tokens), budget // block_bytes)
    if blocks < 1:
        raise SetupError(
            f"The cache of keys and values may take {budget:,} bytes, but {block_tokens} tokens take {block_bytes:,}. "
            "Raise LLAMA_KV_MEMORY, or use a machine with more memory."
        )
    return blocks


def free_bytes() -> int:
    """Return the memory that this process can still get, from the machine and within its containers' limits."""
    return min(_free())


def _free() -> Iterator[int]:
    yield _machine()
    for group in groups("memory"):
        limit, used = _FILES[group.version]
        with suppress(OSError, ValueError, KeyError):  # no such limit, or "max"
            # Pages of files (such as the loaded weights) count as used, but can be evicted.
            stat = dict(line.split() for line in group.read("memory.stat").splitlines())
            cached = sum(int(stat.get(name, 0)) for name in ("inactive_file", "active_file"))
            yield max(0, int(group.read(limit)) - int(group.read(used)) + cached)


def _machine() -> int:
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
