"""Check a Python program against a test: the program and the test run apart from each other, too.

    candidate   namespaces of its own: runs the model's program, answers calls with plain values
    checker     namespaces of its own: runs the test, calls the candidate, writes the verdict behind the nonce

So the model's program never shares a process, a process table or a file with what decides on it. It cannot replace the
checker's functions, end it, read the nonce, or return objects of its own classes.
"""

import json
import secrets
import sys
import sysconfig
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from llama_endpoints.evaluation.sandbox.bubblewrap import Program
from llama_endpoints.evaluation.sandbox.installation import outside_usr, personal
from llama_endpoints.evaluation.sandbox.limits import Limits
from llama_endpoints.evaluation.sandbox.process import Pipe, data_file, read_all, started
from llama_endpoints.evaluation.score import Verdict

_INSIDE: Final = Path(__file__).parent / "inside"
_MODULES: Final = f"/program/{__package__.replace('.', '/')}/inside"
_START: Final = (
    "import importlib, os, sys; sys.path[:0] = ['/program']; sys.path += ['/packages']; "
    "os.environ['OPENBLAS_NUM_THREADS'] = '1'; "  # (numpy would start as many threads as the machine has CPUs)
    f"importlib.import_module('{__package__}.inside.' + sys.argv[1]).main()"
)
_END_S: Final = 0.05
"""Seconds for a process to end whose streams are closed."""
_KILLED_BY_CPU: Final = 128 + 24
_CHECKER_MEMORY: Final = 1 << 30
_PACKAGES: Final = ("numpy", "numpy.libs")
"""Tests of HumanEval+ use numpy, and so may programs."""


@dataclass(frozen=True, slots=True)
class Check:
    """A program and its test.

    Attributes:
        program: the model's.
        setup: program whose names the test may use; not the model's.
        test: defines `check(candidate)`, or is a list of statements where there is no entry.
        entry: name of the function that `check` gets.
        solution: the data's own program. Where there is no entry, what it defines is the model's to define.
    """

    program: str
    setup: str
    test: str
    entry: str | None
    solution: str = ""


def check(given: Check, limits: Limits) -> tuple[Verdict, str]:
    """Return the verdict on a program, and its reason.

    Raises:
        SetupError: bubblewrap could not run it.
    """
    deadline = time.monotonic() + limits.wall_s
    nonce = secrets.token_hex(16)
    job = {
        "nonce": nonce,
        "setup": given.setup,
        "test": given.test,
        "entry": given.entry,
        "solution": given.solution,
    }
    with ExitStack() as last:
        text = last.enter_context(data_file(given.program.encode("utf-8", "surrogatepass")))
        checked = last.enter_context(data_file(json.dumps(job).encode()))
        calls, answers, verdict = (last.enter_context(Pipe()) for _ in range(3))
        candidate = last.enter_context(
            started(
                _program("candidate", str(text)),
                limits,
                stdin=calls.reading.fileno(),
                stdout=answers.writing.fileno(),
                inherited=[text],
            )
        )
        write_to = verdict.writing.fileno()
        checker = last.enter_context(
            started(
                _program("checker", str(checked), str(write_to)),
                replace(limits, memory=max(limits.memory, _CHECKER_MEMORY)),
                stdin=answers.reading.fileno(),
                stdout=calls.writing.fileno(),
                inherited=[checked, write_to],
            )
        )
        for pipe in (calls, answers):
            pipe.close()
        verdict.writing.close()
        said, ended = read_all(verdict.reading.fileno(), deadline, limits.output)
        if ended and not said:
            checker.exit_code(_END_S)
        checker.kill()
        code = candidate.exit_code(_END_S) if ended else None
    return _verdict(said.decode(errors="replace"), nonce, code, ended=ended)


def _verdict(said: str, nonce: str, code: int | None, *, ended: bool) -> tuple[Verdict, str]:
    if not ended:
        return Verdict.TIMED_OUT, "the time was up"
    if not said.startswith(nonce):
        return Verdict.FAILED, "the test did not come to its end"
    found = json.loads(said.removeprefix(nonce))
    if found["passed"]:
        return Verdict.PASSED, ""
    if code == _KILLED_BY_CPU:
        return Verdict.TIMED_OUT, "the CPU time was up"
    if found["kind"] == "MemoryError":
        return Verdict.OUT_OF_MEMORY, "MemoryError"
    return Verdict.FAILED, " ".join(_text(found["detail"]).split())


def _text(said: str) -> str:
    """Return what a program said as text that every file can hold: a surrogate alone has no UTF-8."""
    return said.encode("utf-8", "replace").decode()


def _program(script: str, *arguments: str) -> Program:
    prefix = Path(sys.base_prefix)
    executable = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]  # noqa: SLF001  (venv's own way to it)
    visible = {_MODULES: _INSIDE}
    library = Path(sysconfig.get_config_var("LIBDIR") or prefix) / (
        sysconfig.get_config_var("INSTSONAME") or "none"
    )
    visible |= outside_usr(executable, Path(sysconfig.get_path("stdlib")), library)
    visible |= {} if personal(prefix) else outside_usr(prefix / "lib")
    paths = [path for path in map(_package, _PACKAGES) if path is not None]
    visible |= {f"/packages/{path.name}": path for path in paths}
    command = [str(executable), "-I", "-S", "-B", "-X", "utf8", "-c", _START, script, *arguments]
    return Program(command, visible)


def _package(name: str) -> Path | None:
    found = (Path(folder) / name for folder in sys.path if folder)
    return next((path.resolve() for path in found if path.is_dir()), None)
