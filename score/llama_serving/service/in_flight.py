"""Requests whose sequences the engine has: a request may have many sequences, and the engine knows only those."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from llama_serving.engine.handle import Handle


class InFlight:
    """The requests of a service. Safe to use from any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, list[Handle]] = {}
        self._left: list[list[Handle]] = []
        """Requests that nobody waits for any more, of which the engine still has a sequence."""

    @contextmanager
    def request(self) -> Iterator[list[Handle]]:
        """One request; its sequences are appended to what is given. It is in flight until the last of them has ended."""
        handles: list[Handle] = []
        with self._lock:
            self._open[id(handles)] = handles
        try:
            yield handles
        finally:
            with self._lock:
                del self._open[id(handles)]
                self._left = [left for left in (*self._left, handles) if _unfinished(left)]

    def counts(self, running: frozenset[Handle]) -> tuple[int, int]:
        """Of how many requests a sequence runs, and of how many every unfinished one waits.

        Args:
            running: the sequences that the engine runs now.
        """
        with self._lock:
            requests = [_unfinished(handles) for handles in (*self._open.values(), *self._left)]
        runs = Counter(not running.isdisjoint(handles) for handles in requests if handles)
        return runs[True], runs[False]


def _unfinished(handles: list[Handle]) -> list[Handle]:
    return [handle for handle in list(handles) if not handle.is_over]
