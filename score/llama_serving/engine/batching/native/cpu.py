"""CPU features that the kernels need."""

import platform
from contextlib import suppress
from pathlib import Path
from typing import Final

NEEDED: Final = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "fma", "amx_tile", "amx_bf16")
"""By Linux's names; Intel's Xeons have them from Sapphire Rapids (2023) on."""


def missing(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Return the features that this CPU or its system lacks."""
    flags: set[str] = set()
    if platform.machine() == "x86_64":
        with suppress(OSError):
            for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
                name, _, text = line.partition(":")
                if name.strip() == "flags":
                    flags = set(text.split())
                    break
    return tuple(flag for flag in NEEDED if flag not in flags)
