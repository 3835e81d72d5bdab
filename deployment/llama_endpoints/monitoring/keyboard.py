"""Waiting for a key to be pressed."""

import os
import select
import sys
import time
from types import TracebackType
from typing import Any, Final, Self

QUIT: Final = frozenset(b"qQ\x04")
"""q, and what Ctrl-D sends to a program that reads single keys."""


class Keyboard:
    """The keys of the terminal on standard input, one by one and not shown, for as long as the block lasts.

    Without a terminal there is nothing to be pressed. Ctrl-C stays what it is.
    """

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._before: list[Any] = []

    def __enter__(self) -> Self:
        """Read single keys, where the system has terminals as POSIX does."""
        try:
            import termios
            import tty

            if sys.stdin.isatty():
                descriptor = sys.stdin.fileno()
                self._before = termios.tcgetattr(descriptor)
                tty.setcbreak(descriptor)
                self._descriptor = descriptor
        except (ImportError, OSError, ValueError):
            pass
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        if self._descriptor is not None:
            import termios

            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)

    def quits_within(self, seconds: float) -> bool:
        """Wait, and return whether the end was asked for in the meantime."""
        last = time.monotonic() + seconds
        while (left := last - time.monotonic()) > 0:
            if self._descriptor is None:
                time.sleep(left)
            elif select.select([self._descriptor], [], [], left)[0] and self._pressed():
                return True
        return False

    def _pressed(self) -> bool:
        if self._descriptor is None:
            return False
        keys = os.read(self._descriptor, 64)
        if not keys:  # the terminal was closed
            return True
        return not QUIT.isdisjoint(keys)
