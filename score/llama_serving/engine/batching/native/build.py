"""Compiles the kernels: at packaging, at the project's set-up, or when a model is loaded for the first time.

    python -m llama_serving.engine.batching.native.build

The library is put beside its sources, so that MLflow's code paths, Azure's upload and the wheel include it. Its name has a
digest of the sources, so a library of other sources is not used.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
SOURCE: Final = "step.cpp"
FLAGS: Final = (
    "-std=c++17", "-O3", "-fopenmp", "-fPIC", "-shared", "-static-libstdc++", "-static-libgcc",
    "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mfma",
    "-Wall", "-Wextra", "-Wno-maybe-uninitialized",
)  # fmt: skip
"""GCC 12 warns about its own intrinsics. -ffast-math must not be added: it changes the whole process's arithmetic."""
COMPILERS: Final = ("g++", "clang++", "c++")
TIMEOUT_S: Final = 300


class BuildError(Exception):
    """There is no library; the message says why."""


def library(folder: Path = HERE) -> Path:
    """Return the path of these sources' library in a folder, whether it exists or not."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for source in sorted(HERE.iterdir()):
        if source.suffix in {".h", ".cpp"}:
            digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return folder / f"kernels-{platform.machine()}-{digest.hexdigest()[:16]}.so"


def found_or_made() -> Path:
    """Return the library, found beside its sources or in the user's cache, else compiled.

    Raises:
        BuildError: it does not exist and cannot be compiled.
    """
    places = (HERE, _cache())
    for place in places:
        if library(place).is_file():
            return library(place)
    for place in places:
        with suppress(OSError):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            if os.access(place, os.W_OK):
                return compiled(place)
    raise BuildError(f"none was found, and neither {' nor '.join(map(str, places))} can be written")


def compiled(folder: Path, *, more: Sequence[str] = ()) -> Path:
    """Compile into a folder, replacing an existing library atomically.

    Args:
        folder: an existing one.
        more: further compiler flags, such as those of a sanitizer.

    Raises:
        BuildError: there is no compiler, or it fails.
        OSError: the folder cannot be written.
    """
    target = library(folder)
    with tempfile.TemporaryDirectory(prefix=".kernels-", dir=folder) as stage:
        made = Path(stage) / target.name
        command = [*_compiler(), *FLAGS, *more, str(HERE / SOURCE), "-o", str(made)]
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
    for old in set(folder.glob("kernels-*.so")) - {target}:
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


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llama-endpoints"


def main() -> int:
    """Compile beside the sources if needed, and report the result. A missing compiler is not an error."""
    try:
        print(found_or_made())  # noqa: T201
    except BuildError as error:
        print(f"no kernels for CPUs with tiles: {error}. The portable backend is used.", file=sys.stderr)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
