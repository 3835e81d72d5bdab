"""One run of vLLM: a process under the keeper, which stops it when ours ends."""

import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from llama_serving.engine.vllm import keeper
from llama_serving.engine.vllm.log_lines import LogLines

GRACE_S: Final = 10.0
"""Seconds that vLLM may take for an orderly shutdown."""
_READ: Final = 4096


class VllmProcess:
    """A run of vLLM, possibly ended.

    Args:
        command: vLLM's.
        environment: vLLM's, complete.
        folder: removed by the keeper if our process has died.
        echo: called with each line of vLLM's output.

    Attributes:
        code: exit code, once vLLM has ended; 128 and more is a signal.

    Raises:
        OSError: the keeper cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        folder: Path,
        echo: Callable[[str], None] | None = None,
    ) -> None:
        self._log = LogLines()
        words = (sys.executable, "-I", keeper.__file__, str(os.getpid()), str(folder), str(GRACE_S), *command)
        self._keeper = subprocess.Popen(  # noqa: S603
            words,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._keeper.stdin is not None  # noqa: S101  (it is a pipe)
        self._stdin = self._keeper.stdin
        self._ended = os.pidfd_open(self._keeper.pid)
        self._lock = threading.Lock()
        self.code: int | None = None
        threading.Thread(target=self._read, args=(echo,), name="vllm log", daemon=True).start()

    @property
    def pid(self) -> int:
        """The keeper's process id, also the id of the session of vLLM's processes."""
        return self._keeper.pid

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait at most `timeout_s` seconds; return whether vLLM and all its processes have ended."""
        with self._lock:
            if self.code is not None:
                return True
        poller = select.poll()
        poller.register(self._ended, select.POLLIN)
        if not poller.poll(None if timeout_s is None else timeout_s * 1000):
            return False
        with self._lock:
            if self.code is None:
                keeper.end_session(
                    self.pid
                )  # (if the keeper itself was killed; its number has not been reused)
                self.code = self._keeper.wait()
                with suppress(OSError):
                    self._stdin.close()
                os.close(self._ended)
        return True

    def end(self) -> None:
        """Request an orderly shutdown; the keeper kills vLLM after a while. Return at once."""
        self._tell(b"e")

    def kill(self) -> None:
        """Stop vLLM immediately."""
        # (Closing the pipe would not be enough: a process forked from ours may hold a copy of it.)
        self._tell(b"k")

    def _tell(self, word: bytes) -> None:
        with self._lock, suppress(OSError, ValueError):  # it has ended, or is ending
            if self.code is None:
                os.write(self._stdin.fileno(), word)

    def cause(self) -> str:
        """Return why vLLM has ended, as far as it may be shown."""
        return self._log.cause()

    def progress(self) -> str:
        """Return what vLLM is doing, as far as it may be shown."""
        return self._log.progress()

    def note_requests(self) -> None:
        """Note that vLLM serves requests, so its output may quote them from now on."""
        self._log.names_only = True

    def _read(self, echo: Callable[[str], None] | None) -> None:
        output = self._keeper.stdout
        assert output is not None  # noqa: S101
        with output:
            for line in _lines(output):
                self._log.add(line)
                if echo is not None:
                    echo(line)


def _lines(output: IO[bytes]) -> Iterator[str]:
    """Yield lines, ended by \\n or \\r (a progress bar's), none longer than one read."""
    rest = b""
    while chunk := os.read(output.fileno(), _READ):
        *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        if len(rest) > _READ:
            lines, rest = [*lines, rest], b""
        yield from (line.decode("utf-8", "replace") for line in lines if line.strip())
    if rest:
        yield rest.decode("utf-8", "replace")
