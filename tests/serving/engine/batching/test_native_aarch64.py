"""The kernels of another architecture, compiled by a cross compiler and run by an emulator, where these are installed."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest

from llama_serving.engine.batching.native import build, cpu
from tests.support import backends
from tests.support.paths import ROOT

COMPILER: Final = "aarch64-linux-gnu-g++"
EMULATOR: Final = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
SOURCE: Final = ROOT / "tests" / "support" / "kernel_steps.cpp"
FLAGS: Final = ("-std=c++17", "-O2", "-fopenmp", "-ffp-contract=off", f"-I{build.HERE}", str(SOURCE))
SHAPES: Final = {"48 33 2 1 64 65 16": 65, "80 1 4 2 128 129 8": 129, "112 70 3 1 64 66 4": 66}
"""Sizes of a model in `kernel_steps.cpp`, and its vocabulary."""
BOUNDS: Final = {"neon": 1e-3, "neon_bf16": 0.05}
"""How far logits may lie from AVX2's: only sums are ordered otherwise, or operands are rounded to bf16 as well."""


def compiled(folder: Path, compiler: str, instructions: str) -> Path:
    flags = backends.instruction_set(instructions).flags
    subprocess.run((compiler, *FLAGS, *flags, "-o", folder / instructions), check=True, timeout=240)
    return folder / instructions


def logits(shape: str, *command: str | Path) -> npt.NDArray[np.float32]:
    """(rows, vocab) of all steps."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        (*command, *shape.split()), env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return np.array(done.stdout.split(), np.float32).reshape(-1, SHAPES[shape])


@pytest.mark.parametrize("instructions", [one.name for one in cpu.SETS if one.machine == "aarch64"])
def test_steps_under_an_emulator(instructions: str, tmp_path: Path) -> None:
    for program in (COMPILER, EMULATOR[0], "g++"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: kernels for aarch64 are not tested")
    backends.needs(backends.instruction_set("avx2"))
    program, reference = compiled(tmp_path, COMPILER, instructions), compiled(tmp_path, "g++", "avx2")
    for shape in SHAPES:
        found = logits(shape, *EMULATOR, program)
        np.testing.assert_allclose(found, logits(shape, reference), rtol=0, atol=BOUNDS[instructions])
        assert np.array_equal(found[8], found[16]), "a prompt's logits, in parts among others and at once alone"
        assert np.array_equal(found[10], found[17]), "a generated token's logits, among others and alone"
