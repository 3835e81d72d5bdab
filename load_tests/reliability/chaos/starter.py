"""Start the command `llama-endpoints` with the faults of `faults.c`, without the seconds that its imports take.

A `Starter` is one process that has imported everything. Each run is a fork of it, so that it is killed, and fails, as the command is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from llama_endpoints.devtools.servers import environment
from load_tests.reliability import injected
from load_tests.reliability.runs import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

SOURCE: Final = Path(__file__).with_name("faults.c")
ONE_THREAD: Final = {"LLAMA_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
"""A fork has one thread, and threads that wait for each other on a busy machine are slower than one."""


class BuildError(RuntimeError):
    """The library of faults cannot be compiled here."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A run of the command. A negative exit code is a signal, as in `subprocess`."""

    code: int
    said: str


def build(folder: Path) -> Path:
    """Compile the library of faults.

    Raises:
        BuildError: there is no C compiler, or this is not Linux with glibc.
    """
    library = folder / "faults.so"
    command = ["gcc", "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl", "-lpthread"]
    try:
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603
    except FileNotFoundError:
        raise BuildError("gcc is not there: install Debian's packages gcc and libc6-dev.") from None
    except subprocess.CalledProcessError as error:
        raise BuildError(f"faults.c cannot be compiled: {error.stderr.decode(errors='replace')}") from None
    return library


class Starter:
    """Starts runs, one after the other.

    Args:
        library: what `build` returned.
        modules: what the command imports.
        defect: one of `injected.DEFECTS`, or None.
    """

    def __init__(self, library: Path, modules: Sequence[str], defect: str | None = None) -> None:
        given = {
            name: value for name, value in environment({}).items() if not name.startswith(("LLAMA_", "FAULTS_"))
        }
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "load_tests.reliability.chaos.starter", *modules],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**given, "LD_PRELOAD": str(library), **ONE_THREAD, **injected.environment(defect)},
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()  # closes its standard input: it ends

    def run(self, arguments: Sequence[str], faults: Mapping[str, str], log: Path) -> Ended:
        """Run the command once.

        Args:
            arguments: of the command.
            faults: the variables that `faults.c` reads.
            log: a file for what it says.
        """
        asked = {"arguments": list(arguments), "faults": dict(faults), "log": str(log)}
        assert self._process.stdin is not None  # noqa: S101  (both are pipes)
        assert self._process.stdout is not None  # noqa: S101
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return Ended(int(self._process.stdout.readline()), log.read_text(encoding="utf-8", errors="replace"))


def _serve() -> None:
    """Fork for each line of standard input; write the child's exit code."""
    import importlib

    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become(**json.loads(line))
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201


def _become(arguments: list[str], faults: dict[str, str], log: str) -> None:
    """Be the command."""
    import ctypes

    from llama_endpoints.cli.main import main

    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for ours, theirs in ((nothing, 0), (said, 1), (said, 2)):
        os.dup2(ours, theirs)
    os.environ.update(faults)
    ctypes.CDLL(None).faults_arm()
    sys.argv = ["llama-endpoints", *arguments]
    main()


if __name__ == "__main__":
    _serve()
