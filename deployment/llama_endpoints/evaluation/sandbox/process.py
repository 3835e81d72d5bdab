"""Processes that run apart: started, watched, killed as a group, and gone when the block ends."""

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Self

from llama_endpoints.evaluation.sandbox.bubblewrap import Program, command_line, nobody, system_call_filter
from llama_endpoints.evaluation.sandbox.limits import Limits
from llama_serving.errors import SetupError

_AT_ONCE = 1 << 16
_RAN = b'"exit-code"'
"""In bubblewrap's last message, if the program was run."""
_SIGNALLED = 128
"""bubblewrap's and the shells' exit code of a program that a signal ended is 128 + signal."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended.

    Attributes:
        exit_code: 128 + signal for a program that a signal ended.
        timed_out: it was killed because its time was up, or it used more CPU time than it may.
        overflowed: it was killed because it wrote too much.
        output: what it wrote.
    """

    exit_code: int
    timed_out: bool
    overflowed: bool
    output: bytes


@contextmanager
def data_file(content: bytes) -> Iterator[int]:
    """Yield a descriptor from which a process that inherits it reads `content`, and cannot write."""
    written = os.memfd_create("data")
    try:
        with os.fdopen(os.dup(written), "wb") as file:
            file.write(content)
        readable = os.open(f"/proc/self/fd/{written}", os.O_RDONLY)
    finally:
        os.close(written)
    try:
        yield readable
    finally:
        os.close(readable)


class Pipe:
    """A pipe whose ends are closed when the block ends, or before."""

    def __init__(self) -> None:
        reading, writing = os.pipe()
        self.reading = os.fdopen(reading, "rb", buffering=0)
        self.writing = os.fdopen(writing, "wb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close both ends."""
        self.reading.close()
        self.writing.close()


@dataclass(frozen=True, slots=True)
class Running:
    """A program that runs apart."""

    process: subprocess.Popen[bytes]
    status: Pipe

    def exit_code(self, seconds: float) -> int | None:
        """Return the exit code, waiting for so long; None for a program that goes on.

        Raises:
            SetupError: bubblewrap has ended without running the program.
        """
        try:
            code = self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return None
        if code > 0 and _RAN not in self.status.reading.read(_AT_ONCE):
            raise SetupError(
                "bubblewrap could not run a program: namespaces or memory may have run out. Run the same command again; scores "
                "are kept."
            )
        return code

    def kill(self) -> None:
        """Kill the program with all of its processes, and wait until they are gone."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def started(  # noqa: PLR0913  (the streams of a process)
    program: Program,
    limits: Limits,
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    stderr: int = subprocess.DEVNULL,
    inherited: Sequence[int] = (),
) -> Iterator[Running]:
    """Run a program apart, in a process group of its own. At the end of the block the whole group is killed and reaped.

    bubblewrap's own first process ends with the thread that started it, and all processes in its namespace with that one.
    """
    with ExitStack() as last:
        content = system_call_filter(program)
        filtering = None if content is None else last.enter_context(data_file(content))
        status = last.enter_context(Pipe())
        telling, user = status.writing.fileno(), nobody(program)
        passed = (*inherited, telling, *(() if filtering is None else (filtering,)))
        process = subprocess.Popen(  # noqa: S603  (this is where it runs apart)
            command_line(program, limits, filter_fd=filtering, status_fd=telling),
            stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=passed, env={}, cwd="/", start_new_session=True,
            user=user, group=user, extra_groups=None if user is None else [],
        )  # fmt: skip
        running = Running(process, status)
        try:
            status.writing.close()
            yield running
        finally:
            running.kill()


def read_all(descriptor: int, deadline: float, most: int) -> tuple[bytes, bool]:
    """Read until the end, until `deadline` (of the monotonic clock), or until there are more than `most` bytes.

    Returns:
        The bytes, and whether the end was reached.
    """
    content = bytearray()
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN | select.POLLHUP)
    while len(content) <= most:
        seconds = deadline - time.monotonic()
        if seconds <= 0 or not waiting.poll(seconds * 1000):
            return bytes(content), False
        piece = os.read(descriptor, _AT_ONCE)
        if not piece:
            return bytes(content), True
        content += piece
    return bytes(content), False


def run(program: Program, limits: Limits, *, inherited: Sequence[int] = ()) -> Ended:
    """Run a program to its end and return what it wrote to its output and its error output.

    Raises:
        SetupError: bubblewrap could not run it.
    """
    deadline = time.monotonic() + limits.wall_s
    with (
        Pipe() as pipe,
        started(
            program, limits, stdout=pipe.writing.fileno(), stderr=pipe.writing.fileno(), inherited=inherited
        ) as running,
    ):
        pipe.writing.close()
        output, ended = read_all(pipe.reading.fileno(), deadline, limits.output)
        code = running.exit_code(deadline - time.monotonic() if ended else 0)
    overflowed = len(output) > limits.output
    late = code is None and not overflowed
    if code is None:
        code = _SIGNALLED + signal.SIGKILL
    return Ended(code, late or code == _SIGNALLED + signal.SIGXCPU, overflowed, output[: limits.output])
