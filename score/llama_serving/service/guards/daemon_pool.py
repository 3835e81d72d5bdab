"""Threads that do not keep the process alive: a guard may never return, and the server must still be able to stop."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

T = TypeVar("T")
IDLE_S: Final = 30.0
"""Seconds after which a thread without work ends."""


class BusyError(Exception):
    """All threads are taken."""


class DaemonPool:
    """Runs functions in up to `limit` daemon threads, which are started as they are needed."""

    def __init__(self, name: str, limit: int) -> None:
        self._name, self._limit = name, limit
        self._lock = threading.Lock()
        self._idle: list[queue.SimpleQueue[Callable[[], None]]] = []
        self._threads = 0

    def submit(self, function: Callable[[], T]) -> "Future[T]":
        """Run a function in a thread of its own.

        Raises:
            BusyError: all threads are taken, here or in the system.
        """
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                result = function()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            if self._idle:
                self._idle.pop().put(run)
                return future
            if self._threads >= self._limit:
                raise BusyError
            self._threads += 1
        try:
            threading.Thread(target=self._work, args=(run,), name=self._name, daemon=True).start()
        except RuntimeError:  # the system has no more threads
            with self._lock:
                self._threads -= 1
            raise BusyError from None
        return future

    def _work(self, run: Callable[[], None]) -> None:
        inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        while True:
            run()
            with self._lock:
                self._idle.append(inbox)
            try:
                run = inbox.get(timeout=IDLE_S)
            except queue.Empty:
                with self._lock:
                    if inbox in self._idle:
                        self._idle.remove(inbox)
                        self._threads -= 1
                        return
                run = inbox.get()  # (it was handed over in the meantime)
