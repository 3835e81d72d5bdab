"""How much memory keys and values may have."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from llama_serving.errors import SetupError

SHARE: Final = 0.5
"""Of the memory that is free once the weights are loaded; the rest is for activations, requests and the system."""
_CGROUPS: Final = Path("/sys/fs/cgroup")


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
    for folder, limit, used in _groups():
        with suppress(OSError, ValueError, KeyError):  # no such limit, or "max"
            # Pages of files (the weights, once read) count as used, but give way.
            stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
            cached = sum(int(stat.get(name, 0)) for name in ("inactive_file", "active_file"))
            yield max(0, int(_read(folder / limit)) - int(_read(folder / used)) + cached)


def _groups() -> Iterator[tuple[Path, str, str]]:
    """The control groups of this process, from its own up to the root: (folder, its limit, its use)."""
    with suppress(OSError):
        for line in _read(Path("/proc/self/cgroup")).splitlines():
            _, kinds, path = line.split(":", 2)
            names = ("memory.max", "memory.current")
            root = _CGROUPS
            if kinds:  # version 1: one tree for each kind
                if "memory" not in kinds.split(","):
                    continue
                root, names = _CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
            own = root / path.lstrip("/")
            for folder in (own, *own.parents):
                if folder.is_relative_to(root):
                    yield folder, *names


def _machine() -> int:
    with suppress(OSError):
        for line in _read(Path("/proc/meminfo")).splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()
