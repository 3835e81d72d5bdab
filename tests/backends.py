"""The backends that tests run on, and the kernels where this machine has what they need."""

import functools
import os
import shutil
from pathlib import Path

import pytest

from llama_serving.engine.batching.backends.base import Backend
from llama_serving.engine.batching.backends.native import Native
from llama_serving.engine.batching.backends.portable import Portable
from llama_serving.engine.batching.checkpoint import LlamaConfig, Weights
from llama_serving.engine.batching.native import build, cpu
from llama_serving.engine.batching.native.library import Kernels


def make(kind: str, folder: Path, blocks: int) -> Backend:
    """The backend of that name with a checkpoint; the portable one in float32 where nothing else is said."""

    def num_blocks(_: LlamaConfig) -> int:
        return blocks

    if kind.startswith("portable"):
        dtype = "bfloat16" if kind.endswith("bf16") else "float32"
        return Portable.of(folder, dtype=dtype, num_blocks=num_blocks)
    int8 = kind == "native int8"
    return Native(LlamaConfig.read(folder), Weights(folder), kernels(), int8=int8, num_blocks=num_blocks)


def needs(*flags: str) -> None:
    """Skips, saying why, where the CPU has not all of these flags, or where there is no C++ compiler."""
    if without := [flag for flag in flags if flag in cpu.missing()]:
        pytest.skip(f"the native backend is not tested here: this CPU has no {', '.join(without)}")
    if not os.environ.get("CXX") and not any(map(shutil.which, build.COMPILERS)):
        pytest.skip(f"the native backend is not tested here: no C++ compiler ({', '.join(build.COMPILERS)})")


@functools.cache
def _loaded() -> Kernels:
    return Kernels(build.found_or_made())


def kernels() -> Kernels:
    """Those of this checkout. That they can't be compiled or loaded is no reason to skip."""
    needs(*cpu.NEEDED)
    return _loaded()
