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
from llama_serving.engine.batching.native.cpu import InstructionSet
from llama_serving.llama_config import LlamaConfig
from llama_serving.settings import QUANTIZATIONS
from tests.conftest import NOT_NATIVE

SETS: Final = tuple(one.name for one in cpu.of_machine()) or tuple(one.name for one in cpu.SETS)
"""The instruction sets that tests name: each runs where the CPU has it, AMX also with tiles in software."""
TILES: Final = ("amx_tile", "amx_bf16")
IN_SOFTWARE: Final = "-DLLAMA_TILES_IN_SOFTWARE"


def make(kind: str, folder: Path, blocks: int) -> Backend:
    """The backend that these words name, with a checkpoint.

    Args:
        kind: `portable` (in float32) or `portable bf16`; `native`, also with a quantization and an instruction set after it.
        folder: of the checkpoint.
        blocks: of its cache.
    """

    def num_blocks(_: LlamaConfig) -> int:
        return blocks

    words = kind.split()
    if words[0] == "portable":
        dtype = "bfloat16" if "bf16" in words else "float32"
        return Portable.of(folder, dtype=dtype, num_blocks=num_blocks)
    name = next((word for word in words if word in SETS), "")
    quantization = next((word for word in words if word in QUANTIZATIONS), "none")
    config, weights = read_config(folder), CheckpointWeights(folder)
    return Native(config, weights, kernels(name), quantization=quantization, num_blocks=num_blocks)


def needs(instructions: InstructionSet) -> None:
    """Skips, saying why, where the CPU has not all of its features (tiles apart), or where there is no C++ compiler."""
    if without := [flag for flag in cpu.missing(instructions) if flag not in TILES]:
        pytest.skip(f"{NOT_NATIVE}this CPU has no {', '.join(without)}")
    if not os.environ.get("CXX") and not any(map(shutil.which, build.COMPILERS)):
        pytest.skip(f"{NOT_NATIVE}no C++ compiler ({', '.join(build.COMPILERS)})")


def instruction_set(name: str = "") -> InstructionSet:
    """The one of that name; without a name, the fastest that this CPU has."""
    if name:
        return next(one for one in cpu.SETS if one.name == name)
    return next(iter(cpu.usable()), cpu.SETS[0])


@functools.cache
def _compiled(instructions: InstructionSet) -> Path:
    if not cpu.missing(instructions):
        return build.found_or_made(instructions)
    folder = tempfile.mkdtemp(prefix="kernels-")
    atexit.register(shutil.rmtree, folder)
    return build.compiled(instructions, Path(folder), more=(IN_SOFTWARE,))


def library(name: str = "") -> Path:
    """The kernels of this checkout for an instruction set, with tiles in software where only these are missing from the CPU.

    That they can't be compiled is no reason to skip.
    """
    instructions = instruction_set(name)
    needs(instructions)
    return _compiled(instructions)


@functools.cache
def kernels(name: str = "") -> Kernels:
    """The same, loaded."""
    return Kernels(library(name), instruction_set(name).name)
