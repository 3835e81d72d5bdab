"""The backends that tests run on, and the kernels where this machine has what they need."""

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from llama_serving.engine.batching.backends.base import Backend
from llama_serving.engine.batching.backends.native import Native
from llama_serving.engine.batching.backends.portable import Portable
from llama_serving.engine.batching.checkpoint import LlamaConfig, Weights
from llama_serving.engine.batching.native import build, cpu
from llama_serving.engine.batching.native.library import Kernels

EXACT: Final = ("portable", "native", "native int8")
"""Those of which a row's result is bitwise the same in any company; the portable one is so in float32."""


def make(kind: str, folder: Path, blocks: int) -> Backend:
    """The backend of that name with a checkpoint; portable in float32."""

    def num_blocks(_: LlamaConfig) -> int:
        return blocks

    if kind == "portable":
        return Portable.of(folder, dtype="float32", num_blocks=num_blocks)
    return native(folder, num_blocks, int8=kind == "native int8")


def native(folder: Path, num_blocks: Callable[[LlamaConfig], int], *, int8: bool = False) -> Native:
    """The native backend with a checkpoint."""
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
