"""Threads that do not keep the process alive: a guard may never return, and the server must still be able to stop."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar

T = TypeVar("T")
IDLE_S: Final = 30.0
"""Seconds after which a thread without work ends."""


class BusyError(Exception):
    """The system has no thread for the pool."""


class DaemonPool:
    """Runs functions in up to `limit` daemon threads, which are started as they are needed; more functions wait for one.

    A future that is cancelled while it waits never runs, and leaves nothing behind.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._name, self._limit = name, limit
        self._changed = threading.Condition()
        self._waiting: OrderedDict[Future[Any], Callable[[], Any]] = OrderedDict()
        self._threads = self._idle = 0

    @property
    def num_waiting(self) -> int:
        """Number of functions that wait for a thread."""
        return len(self._waiting)

    def submit(self, function: Callable[[], T]) -> "Future[T]":
        """Run a function in a thread, as soon as there is one.

        Raises:
            BusyError: there is none, and the system gives no further one.
        """
        future: Future[T] = Future()
        with self._changed:
            self._waiting[future] = function
            short = self._idle < len(self._waiting) and self._threads < self._limit
            self._threads += short
            self._changed.notify()
        future.add_done_callback(self._withdraw)
        if short:
            self._start(future)
        return future

    def _start(self, future: "Future[Any]") -> None:
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError:  # the system has no more threads
            with self._changed:
                self._threads -= 1
                alone = not self._threads
            if alone and future.cancel():
                raise BusyError from None

    def _withdraw(self, future: "Future[Any]") -> None:
        with self._changed:
            self._waiting.pop(future, None)

    def _work(self) -> None:
        while (taken := self._taken()) is not None:
            future, function = taken
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
            del taken, future, function  # (what it was asked and has answered is not kept while it waits)

    def _taken(self) -> "tuple[Future[Any], Callable[[], Any]] | None":
        """Return what has waited longest; None once this thread is not needed."""
        with self._changed:
            while not self._waiting:
                self._idle += 1
                called = self._changed.wait(IDLE_S)
                self._idle -= 1
                if not called and not self._waiting:
                    self._threads -= 1
                    return None
            return self._waiting.popitem(last=False)
