"""The backends that tests run on, and the kernels where this machine has what they need."""

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

import pytest

from llama_serving.engine.batching.backends.base import Backend
from llama_serving.engine.batching.backends.native import Native
from llama_serving.engine.batching.backends.portable import Portable
from llama_serving.engine.batching.checkpoint import CheckpointWeights, read_config
from llama_serving.engine.batching.native import build, cpu
from llama_serving.engine.batching.native.bindings import Kernels
from llama_serving.llama_config import LlamaConfig
from tests.conftest import NOT_NATIVE


def make(kind: str, folder: Path, blocks: int) -> Backend:
    """The backend of that name with a checkpoint; the portable one in float32 where nothing else is said."""

    def num_blocks(_: LlamaConfig) -> int:
        return blocks

    if kind.startswith("portable"):
        dtype = "bfloat16" if kind.endswith("bf16") else "float32"
        return Portable.of(folder, dtype=dtype, num_blocks=num_blocks)
    int8 = kind == "native int8"
    return Native(read_config(folder), CheckpointWeights(folder), kernels(), int8=int8, num_blocks=num_blocks)


TILES: Final = ("amx_tile", "amx_bf16")
IN_SOFTWARE: Final = "-DLLAMA_TILES_IN_SOFTWARE"


def needs(*flags: str) -> None:
    """Skips, saying why, where the CPU has not all of these flags, or where there is no C++ compiler."""
    if without := [flag for flag in flags if flag in cpu.missing()]:
        pytest.skip(f"{NOT_NATIVE}this CPU has no {', '.join(without)}")
    if not os.environ.get("CXX") and not any(map(shutil.which, build.COMPILERS)):
        pytest.skip(f"{NOT_NATIVE}no C++ compiler ({', '.join(build.COMPILERS)})")


@functools.cache
def _compiled() -> Path:
    if not cpu.missing():
        return build.found_or_made()
    folder = tempfile.mkdtemp(prefix="kernels-")
    atexit.register(shutil.rmtree, folder)
    return build.compiled(Path(folder), more=(IN_SOFTWARE,))


def library() -> Path:
    """The kernels of this checkout, with tiles in software where only these are missing from the CPU.

    That they can't be compiled is no reason to skip.
    """
    needs(*(flag for flag in cpu.NEEDED if flag not in TILES))
    return _compiled()


@functools.cache
def kernels() -> Kernels:
    """The same, loaded."""
    return Kernels(library())
