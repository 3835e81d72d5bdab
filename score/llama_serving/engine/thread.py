"""What every engine has around its one thread: an inbox, those who have no answer yet, and an end."""

import atexit
import os
import queue
import threading
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from llama_serving.engine.handle import Handle
from llama_serving.engine.spin import SpinControl
from llama_serving.errors import QueueFull, ServingError, Unavailable
from llama_serving.sampling_params import FinishReason

RETRY_AFTER_S: Final = 5
MOST_OPEN: Final = 8192
"""Sequences inside an engine at a time: requests are counted elsewhere, but one of them may bring many."""


class Work(Protocol):
    """What an engine is given to do."""

    @property
    def handle(self) -> Handle:
        """Who waits for it."""
        ...


W = TypeVar("W", bound=Work)


class EngineThread(Generic[W]):
    """The thread that owns torch. All but `load` and `serve` may be called from any thread.

    Args:
        load: called first, on the thread; what it raises, `start` raises.
        serve: called then, on the thread, and expected to take from `inbox` until it finds None there. When it
            returns or raises, the engine has ended.
        most: sequences inside at a time.
        tell: called, from any thread, when something has been put into `inbox`.

    Attributes:
        lock: guards `open` and the counts.
        open: those that have no end yet.
        sequences: taken in so far; `tokens_in` are those of their prompts.
        spin: of the OpenMP threads, for the engine to adjust between its steps.
    """

    def __init__(
        self,
        load: Callable[[], None],
        serve: Callable[[], None],
        *,
        most: int = MOST_OPEN,
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        self._load, self._serve, self._most, self._tell = load, serve, most, tell
        self.inbox: queue.SimpleQueue[W | None] = queue.SimpleQueue()
        self.lock = threading.Lock()
        self._fewer = threading.Condition(self.lock)
        self.open: dict[Handle, W] = {}
        self.sequences = self.tokens_in = 0
        self.spin = SpinControl()
        self._closed = False
        self._pid = os.getpid()
        self._loaded: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Load, and return once that is done.

        Raises:
            BaseException: what `load` raised; the thread is gone then.
        """
        self._thread.start()
        atexit.register(self.close)  # a thread still inside torch while the interpreter goes would abort it
        failure = self._loaded.get()
        if failure is not None:
            self.close()
            raise failure

    @property
    def forked(self) -> bool:
        """This is a copy in a child process: it has no thread, and its lock may be held for ever."""
        return self._pid != os.getpid()

    @property
    def alive(self) -> bool:
        """It takes work."""
        return not self.forked and not self._closed and self._thread.is_alive()

    def take(self, work: W, tokens: int) -> None:
        """Hand something over, with a prompt of so many tokens.

        Raises:
            QueueFull: as much is inside as may be.
            Unavailable: the engine is shutting down or has stopped.
        """
        if self.forked:
            raise _gone()
        with self.lock:
            if not self.alive:
                raise _gone()
            if len(self.open) >= self._most:
                raise QueueFull(
                    f"{self._most} sequences are waiting or running. Try again in {RETRY_AFTER_S} s.",
                    retry_after=RETRY_AFTER_S,
                )
            self.open[work.handle] = work
            self.sequences += 1
            self.tokens_in += tokens
            self.inbox.put(work)
        self._tell()

    def finish(self, handle: Handle, reason: FinishReason) -> None:
        """It has ended."""
        with self._fewer:
            self.open.pop(handle, None)
            handle.finish(reason)
            self._fewer.notify_all()

    def fail(self, handle: Handle, error: ServingError) -> None:
        """It has failed."""
        with self._fewer:
            self.open.pop(handle, None)
            handle.fail(error)
            self._fewer.notify_all()

    def drain(self) -> None:
        """See `Engine.drain`."""
        if self.forked:
            return
        with self._fewer:
            self._closed = True
            self._fewer.wait_for(lambda: not self.open)

    def close(self) -> None:
        """See `Engine.close`."""
        if self.forked:
            return
        atexit.unregister(self.close)
        with self.lock:
            self._closed = True
            for handle in self.open:
                handle.cancel()
        self.inbox.put(None)
        self._tell()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._live()
        finally:
            self.spin.end()

    def _live(self) -> None:
        try:
            self._load()
        except BaseException as error:  # (crosses to `start`, which raises it)
            self._loaded.put(error)
            return
        self._loaded.put(None)
        try:
            self._serve()
        finally:
            self._end_all()

    def _end_all(self) -> None:
        stopped = Unavailable("The engine has stopped.", retry_after=RETRY_AFTER_S)
        with self._fewer:
            self._closed = True
            for handle in self.open:
                handle.finish("cancelled") if handle.cancelled else handle.fail(stopped)
            self.open.clear()
            self._fewer.notify_all()


def _gone() -> Unavailable:
    return Unavailable(
        "The engine takes no requests: it is shutting down or has stopped.", retry_after=RETRY_AFTER_S
    )
