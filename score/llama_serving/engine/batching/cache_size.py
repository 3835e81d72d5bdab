"""How much memory keys and values may have."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from llama_serving.engine.cgroups import groups
from llama_serving.errors import SetupError

SHARE: Final = 0.5
"""Of the memory that is free once the weights are loaded; the rest is for activations, requests and the system."""
_FILES: Final = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    2: ("memory.max", "memory.current"),
}
"""Of a control group, by the interface's version: its limit, and what is used of it."""


def num_blocks(*, block_bytes: int, block_tokens: int, wanted_tokens: int, limit: int | None) -> int:
    """Blocks of the cache: as many as all sequences could need, but no more than fit.

    Args:
        block_bytes: bytes of a block.
        block_tokens: tokens in it.
        wanted_tokens: tokens that all sequences together could come to.
        limit: bytes that an operator allows; None is half of what is free.

    Raises:
        SetupError: the operator allows more than there is, or there isn't even room for one block.
    """
    free = free_bytes()
    if limit is not None and limit > free:
        raise SetupError(f"LLAMA_KV_MEMORY is {limit:,} bytes, but {free:,} are free. Lower it.")
    budget = int(free * SHARE) if limit is None else limit
    blocks = min(-(-wanted_tokens // block_tokens), budget // block_bytes)
    if blocks < 1:
        raise SetupError(
            f"Keys and values may have {budget:,} bytes, but {block_tokens} tokens take {block_bytes:,}. "
            "Raise LLAMA_KV_MEMORY, or use a machine with more memory."
        )
    return blocks


def free_bytes() -> int:
    """Memory that this process can still have: of the machine, and of every container that it is in."""
    return min(_free())


def _free() -> Iterator[int]:
    yield _machine()
    for group in groups("memory"):
        limit, used = _FILES[group.version]
        with suppress(OSError, ValueError, KeyError):  # no such limit, or "max"
            # Pages of files (the weights, once read) count as used, but give way.
            stat = dict(line.split() for line in group.read("memory.stat").splitlines())
            cached = sum(int(stat.get(name, 0)) for name in ("inactive_file", "active_file"))
            yield max(0, int(group.read(limit)) - int(group.read(used)) + cached)


def _machine() -> int:
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
