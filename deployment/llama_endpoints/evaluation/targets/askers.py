"""Threads that ask an endpoint. They are daemons: a process that is interrupted ends without the answers on their way.

A `ThreadPoolExecutor` would not do, since the interpreter waits for its threads, and an answer may take minutes.
What the threads share is closed by the last of them: closed earlier, it would lose the connection that one of them makes.
"""

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Lock, Thread
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")
_Call = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]


class Askers:
    """Some threads, until the end of a `with`, which waits for them unless it ends by an error.

    Args:
        count: of threads.
        close: called when the last thread has ended.
    """

    def __init__(self, count: int, close: Callable[[], None]) -> None:
        self._close, self._running, self._lock = close, count, Lock()
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._threads = [Thread(target=self._work, name=f"asking {n}", daemon=True) for n in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in self._threads:
            self._calls.put(None)
        if error is None:  # (every call has ended)
            for thread in self._threads:
                thread.join()

    def submit(self, call: Callable[..., T], *given: Any) -> Future[T]:
        """Return the result of a call that a thread makes when it has made those before."""
        future: Future[T] = Future()
        self._calls.put((future, call, given))
        return future

    def _work(self) -> None:
        while (found := self._calls.get()) is not None:
            future, call, given = found
            try:
                future.set_result(call(*given))
            except BaseException as error:  # (who waits for the result gets it)
                future.set_exception(error)
        with self._lock:
            self._running -= 1
            last = not self._running
        if last:
            self._close()
