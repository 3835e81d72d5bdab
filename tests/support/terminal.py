"""A command in a terminal of its own (a real pty)."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.support.calls import PATIENCE_S

_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[()][0-9A-Z]|[=>]|\][^\x07]*\x07)")


class Terminal:
    """What a person at the terminal sees and types."""

    def __init__(self, process: "subprocess.Popen[bytes]", descriptor: int) -> None:
        self.process, self._descriptor = process, descriptor
        self.raw = ""
        self._seen = 0

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._descriptor, keys.encode())

    def read_until(self, text: str, *, most_s: float = PATIENCE_S) -> str:
        """Return what is shown from here on, until it holds this text."""
        deadline = time.monotonic() + most_s
        while text not in self._unseen():
            assert time.monotonic() < deadline, self._unseen()
            assert self._read(), f"it ended: {self._unseen()}"
        shown = self._unseen()
        end = shown.index(text) + len(text)
        self._seen += end
        return shown[:end]

    def ended(self) -> int:
        """Wait for its end, and return the exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read():
            assert time.monotonic() < deadline, self._unseen()
        return self.process.wait(PATIENCE_S)

    @property
    def shown(self) -> str:
        """All text so far, without escape sequences."""
        return _ESCAPES.sub("", self.raw).replace("\r\n", "\n")

    def _unseen(self) -> str:
        return self.shown[self._seen :]

    def _read(self) -> bool:
        if not select.select([self._descriptor], [], [], 0.2)[0]:
            return self.process.poll() is None
        try:
            data = os.read(self._descriptor, 1 << 16)
        except OSError:  # Linux: nobody has the other end open any more
            return False
        self.raw += data.decode("utf-8", "replace")
        return bool(data)


@contextmanager
def terminal(*command: str, env: Mapping[str, str] | None = None, columns: int = 100) -> Iterator[Terminal]:
    """Run a command in a terminal; it is killed when the block ends."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    variables = {**kept, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", **(env or {})}
    # The first terminal that a session's leader opens is the one whose Ctrl-C is its signal.
    opened = ("sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(theirs), *command)
    process = subprocess.Popen(opened, env=variables, start_new_session=True)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)
