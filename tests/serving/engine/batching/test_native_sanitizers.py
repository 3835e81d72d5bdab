"""The kernels under the sanitizers of addresses and of undefined behaviour.

A sanitizer can't see what an instruction of the tiles reads, so these are done in plain C++ here; all else is as it is.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from llama_serving.engine.batching.native import build
from llama_serving.engine.batching.native.cpu import InstructionSet
from tests.support import backends, kernel_steps
from tests.support.paths import ROOT

FLAGS: Final = (
    backends.IN_SOFTWARE, "-Og", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
)  # fmt: skip


@pytest.fixture(scope="module", params=backends.SETS)
def instructions(request: pytest.FixtureRequest) -> InstructionSet:
    found = backends.instruction_set(request.param)
    backends.needs(found)
    return found


@pytest.fixture(scope="module")
def library(instructions: InstructionSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.compiled(instructions, tmp_path_factory.mktemp("sanitized"), more=FLAGS)


def watched(library: Path, target: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    found = subprocess.run(
        ("g++", "-print-file-name=libasan.so"), capture_output=True, text=True, check=True, timeout=60
    )
    environment = {
        **os.environ,
        "LD_PRELOAD": found.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "2",
        "PYTHONPATH": os.pathsep.join((str(ROOT / "score"), str(ROOT / "deployment"), str(ROOT))),
    }
    command = (sys.executable, "-m", "tests.support.kernel_steps", str(library), str(target), *more)
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def test_no_step_reads_or_writes_beside_its_buffers(
    instructions: InstructionSet, library: Path, tmp_path: Path
) -> None:
    done = watched(library, tmp_path / "found.npz")
    assert (done.returncode, done.stderr) == (0, "")
    with np.load(tmp_path / "found.npz") as file:
        found = list(file.values())
    assert len(found) == len(kernel_steps.SHAPES) * len(kernel_steps.STEPS)
    assert all(np.isfinite(logits).all() for logits in found)
    for ours, theirs in zip(kernel_steps.results(backends.library(instructions.name)), found, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.05, rtol=0.05)


def test_a_room_that_is_too_small_is_seen(library: Path, tmp_path: Path) -> None:
    """Proof that the sanitizer is active."""
    done = watched(library, tmp_path / "found.npz", "64")
    assert done.returncode
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr


@pytest.mark.parametrize("name", ["avx512_vnni", "avx2"])
def test_numbers_that_are_not_finite_are_rounded_within_bounds(name: str, tmp_path: Path) -> None:
    """`undefined` does not include floats too large for an integer."""
    instructions = backends.instruction_set(name)
    backends.needs(instructions)
    flags = (flag for flag in build.FLAGS if flag not in {"-shared", "-O3"})
    more = (
        "-Og",
        "-fsanitize=address,undefined,float-cast-overflow",
        "-fno-sanitize-recover=all",
        f"-I{build.HERE}",
    )
    source, target = ROOT / "tests" / "support" / "integer_rounding.cpp", tmp_path / "rounding"
    subprocess.run(
        (*build._compiler(), *flags, *instructions.flags, *more, str(source), "-o", str(target)),
        check=True,
        timeout=120,
    )
    done = subprocess.run((target,), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
