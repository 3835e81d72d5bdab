"""The instruction sets that there are kernels for, and those that this CPU and its system have."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CPUINFO: Final = Path("/proc/cpuinfo")
INTEL: Final = "GenuineIntel"
_AVX512: Final = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma")
_VNNI: Final = (*_AVX512, "avx512_vnni")
_BF16: Final = (*_AVX512, "avx512_bf16")
_AVX512_FLAGS: Final = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma")
_VNNI_FLAGS: Final = (*_AVX512_FLAGS, "-mavx512vnni")
_BF16_FLAGS: Final = (*_AVX512_FLAGS, "-mavx512bf16")


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """What a library of kernels is compiled for.

    Attributes:
        name: in `LLAMA_CPU_INSTRUCTIONS`.
        machine: by `platform.machine()`.
        features: that the CPU needs, by Linux's names.
        flags: of the compiler.
    """

    name: str
    machine: str
    features: tuple[str, ...]
    flags: tuple[str, ...]


SETS: Final = (
    InstructionSet("amx", "x86_64", (*_BF16, "amx_tile", "amx_bf16"), (*_BF16_FLAGS, "-DLLAMA_TILES")),
    InstructionSet("avx512_bf16", "x86_64", _BF16, _BF16_FLAGS),
    InstructionSet("avx512_vnni", "x86_64", _VNNI, _VNNI_FLAGS),
    InstructionSet("avx512", "x86_64", _AVX512, _AVX512_FLAGS),
    InstructionSet("avx2", "x86_64", ("avx2", "fma"), ("-mavx2", "-mfma")),
    InstructionSet("neon_bf16", "aarch64", ("asimd", "bf16"), ("-march=armv8.2-a+bf16",)),
    InstructionSet("neon", "aarch64", ("asimd",), ("-march=armv8-a",)),
)
"""The fastest of each architecture first, but see `usable`."""


def of_machine() -> tuple[InstructionSet, ...]:
    """Return those of this machine's architecture, whatever its CPU has."""
    return tuple(one for one in SETS if one.machine == platform.machine())


def missing(one: InstructionSet, cpuinfo: Path | None = None) -> tuple[str, ...]:
    """Return the features that this CPU or its system lacks."""
    has = _features(cpuinfo) if one.machine == platform.machine() else frozenset()
    return tuple(name for name in one.features if name not in has)


def usable(cpuinfo: Path | None = None) -> tuple[InstructionSet, ...]:
    """Return those that this CPU has, the fastest first.

    Intel's CPUs multiply half as many bf16 as float32 with vectors (measured on family 6, model 207), AMD's twice as many. VNNI is
    for int8 and int4; with it, products of bf16 are those of `avx512`.
    """
    found = [one for one in of_machine() if not missing(one, cpuinfo)]
    if _field(cpuinfo, "vendor_id") == INTEL:
        found.sort(key=lambda one: one.name not in {"amx", "avx512_vnni", "avx512"})
    return tuple(found)


def _features(cpuinfo: Path | None) -> frozenset[str]:
    return frozenset((_field(cpuinfo, "flags") or _field(cpuinfo, "Features")).split())


def _field(cpuinfo: Path | None, wanted: str) -> str:
    """Return the text of a field of the first core; empty if there is none."""
    try:
        lines = (cpuinfo or CPUINFO).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    found = (line.partition(":") for line in lines)
    return next((text.strip() for name, _, text in found if name.strip() == wanted), "")
