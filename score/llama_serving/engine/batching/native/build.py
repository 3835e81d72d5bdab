"""Compiles the kernels, one library for each instruction set.

    python -m llama_serving.engine.batching.native.build

At packaging and at the project's set-up, all that this machine's architecture can have are compiled, since a package may be
served on another CPU; when a model is loaded, only the one that is needed. They are put beside the sources, so that MLflow's
code paths, Azure's upload and the wheel include them. A library's name has a digest of the sources, so that of other sources
is not used.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

from llama_serving.engine.batching.native import cpu
from llama_serving.engine.batching.native.cpu import InstructionSet

HERE: Final = Path(__file__).parent
SOURCE: Final = "step.cpp"
FLAGS: Final = (
    "-std=c++17", "-O3", "-fopenmp", "-fPIC", "-shared", "-static-libstdc++", "-static-libgcc",
    "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-uninitialized", "-Wno-maybe-uninitialized",
)  # fmt: skip
"""For every instruction set. GCC 12 warns about its own intrinsics. -ffast-math must not be added: it changes the whole
process's arithmetic. Without contraction a sum is rounded alike wherever the compiler inlines it."""
COMPILERS: Final = ("g++", "clang++", "c++")
TIMEOUT_S: Final = 300


class BuildError(Exception):
    """There is no library; the message says why."""


def library(instructions: InstructionSet, folder: Path = HERE) -> Path:
    """Return the path of these sources' library in a folder, whether it exists or not."""
    digest = hashlib.sha256(" ".join((*FLAGS, *instructions.flags)).encode())
    for source in sorted(HERE.rglob("*")):
        if source.suffix in {".h", ".cpp"}:
            digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return folder / f"kernels-{instructions.machine}-{instructions.name}-{digest.hexdigest()[:16]}.so"


def found_or_made_all() -> tuple[list[Path], list[str]]:
    """Return the libraries of this machine's architecture, and the reasons why some could not be compiled."""
    sets = cpu.of_machine()

    def made(one: InstructionSet) -> Path | str:
        try:
            return found_or_made(one)
        except BuildError as error:
            return str(error)

    with ThreadPoolExecutor(max(1, min(len(sets), os.cpu_count() or 1))) as pool:
        results = list(pool.map(made, sets))
    failed = dict.fromkeys(result for result in results if isinstance(result, str))
    return [result for result in results if isinstance(result, Path)], list(failed)


def found_or_made(instructions: InstructionSet) -> Path:
    """Return a library, found beside its sources or in the user's cache, else compiled.

    Raises:
        BuildError: it does not exist and cannot be compiled.
    """
    places = (HERE, cache())
    for place in places:
        if library(instructions, place).is_file():
            return library(instructions, place)
    for place in places:
        with suppress(OSError):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            if os.access(place, os.W_OK):
                return compiled(instructions, place)
    raise BuildError(f"none was found, and neither {' nor '.join(map(str, places))} can be written")


def compiled(instructions: InstructionSet, folder: Path, *, more: Sequence[str] = ()) -> Path:
    """Compile into a folder, replacing an existing library atomically.

    Args:
        instructions: what for.
        folder: an existing one.
        more: further compiler flags, such as those of a sanitizer.

    Raises:
        BuildError: there is no compiler, or it fails.
        OSError: the folder cannot be written.
    """
    target = library(instructions, folder)
    with tempfile.TemporaryDirectory(prefix=".kernels-", dir=folder) as stage:
        made = Path(stage) / target.name
        command = [*_compiler(), *FLAGS, *instructions.flags, *more, str(HERE / SOURCE), "-o", str(made)]
        try:
            done = subprocess.run(  # noqa: S603  (the operator's compiler)
                command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise BuildError(f"{command[0]} took more than {TIMEOUT_S} s") from error
        except OSError as error:
            raise BuildError(f"{command[0]} can't be run: {error.strerror}") from error
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
            raise BuildError(f"{command[0]} fails: {first.strip()}")
        made.replace(target)
    for old in set(folder.glob("kernels-*.so")) - {library(one, folder) for one in cpu.SETS}:
        old.unlink(missing_ok=True)
    return target


def _compiler() -> list[str]:
    chosen = os.environ.get("CXX")
    if chosen:
        return shlex.split(chosen)
    for name in COMPILERS:
        if path := shutil.which(name):
            return [path]
    raise BuildError(f"none was found, and no C++ compiler ({', '.join(COMPILERS)}, or CXX) to make one")


def cache() -> Path:
    """Return the user's cache folder of this project."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llama-endpoints"


def main() -> int:
    """Compile beside the sources if needed, and report the result. A missing compiler is not an error."""
    made, failed = found_or_made_all()
    for path in made:
        print(path)  # noqa: T201
    for reason in failed:
        print(f"kernels that could not be compiled: {reason}", file=sys.stderr)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
