"""Counts running and waiting requests: one may have many sequences, and the engine only knows sequences."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from llama_serving.engine.handle import Handle


class InFlight:
    """The requests of a service. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, list[Handle]] = {}
        self._left: list[list[Handle]] = []
        """Requests whose caller has gone while the engine still has a sequence of them."""

    @contextmanager
    def request(self) -> Iterator[list[Handle]]:
        """Register a request and yield the list for its handles. It is in flight until its last sequence has ended."""
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
        """Return the number of requests with a running sequence, and of those whose unfinished sequences all wait.

        Args:
            running: handles of the sequences that the engine runs now.
        """
        with self._lock:
            requests = [_unfinished(handles) for handles in (*self._open.values(), *self._left)]
        runs = Counter(not running.isdisjoint(handles) for handles in requests if handles)
        return runs[True], runs[False]


def _unfinished(handles: list[Handle]) -> list[Handle]:
    return [handle for handle in list(handles) if not handle.is_over]
