"""The worker thread shared by all engines: inbox, open handles, drain and shutdown."""

import atexit
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

from llama_serving.engine.handle import Handle
from llama_serving.engine.spin import SpinControl
from llama_serving.errors import QueueFull, ServingError, Unavailable
from llama_serving.sampling_params import FinishReason

RETRY_AFTER_S: Final = 5
MAX_OPEN: Final = 8192
"""Most sequences inside an engine. The service limits requests, but one request may have many sequences."""


class EngineSequence(Protocol):
    """A sequence as an engine stores it."""

    @property
    def handle(self) -> Handle:
        """The consumer's side of it."""


S = TypeVar("S", bound=EngineSequence)


class EngineThread(Generic[S]):
    """The thread that owns torch. All methods may be called from any thread.

    Args:
        load: called first, on the thread; `start` raises its exceptions.
        serve: called next, on the thread; takes sequences from `inbox` until it gets None. The engine has stopped when it
            returns or raises.
        max_open: most sequences inside at a time.
        notify: called, from any thread, after something was put into `inbox`.

    Attributes:
        lock: guards `open` and the counts.
        open: sequences that have not ended.
        sequences: number accepted so far; `tokens_in` counts their prompt tokens.
        spin: control of the OpenMP threads' spinning, for the engine to adjust between steps.
    """

    def __init__(
        self,
        load: Callable[[], None],
        serve: Callable[[], None],
        *,
        max_open: int = MAX_OPEN,
        notify: Callable[[], None] = lambda: None,
    ) -> None:
        self._load, self._serve, self._max_open, self._notify = load, serve, max_open, notify
        self.inbox: queue.SimpleQueue[S | None] = queue.SimpleQueue()
        self.lock = threading.Lock()
        self._fewer = threading.Condition(self.lock)
        self.open: dict[Handle, S] = {}
        self.sequences = self.tokens_in = 0
        self.spin = SpinControl()
        self._closed = False
        self._pid = os.getpid()
        self._loaded: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread, and return once `load` has.

        Raises:
            BaseException: raised by `load`; the thread has ended.
        """
        self._thread.start()
        atexit.register(self.close)  # a thread inside torch at interpreter shutdown would abort the process
        failure = self._loaded.get()
        if failure is not None:
            self.close()
            raise failure

    @property
    def forked(self) -> bool:
        """Whether this is a copy in a forked child, which has no thread and whose lock may be held forever."""
        return self._pid != os.getpid()

    @property
    def alive(self) -> bool:
        """Whether sequences are accepted."""
        return not self.forked and not self._closed and self._thread.is_alive()

    def submit(self, sequence: S, tokens: int) -> None:
        """Accept a sequence whose prompt has `tokens` tokens.

        Raises:
            QueueFull: the engine has `max_open` sequences.
            Unavailable: the engine is shutting down or has stopped.
        """
        if self.forked:
            raise _gone()
        with self.lock:
            if not self.alive:
                raise _gone()
            if len(self.open) >= self._max_open:
                raise QueueFull(
                    f"{self._max_open} sequences are waiting or running. Try again in {RETRY_AFTER_S} s.",
                    retry_after=RETRY_AFTER_S,
                )
            self.open[sequence.handle] = sequence
            self.sequences += 1
            self.tokens_in += tokens
            self.inbox.put(sequence)
        self._notify()

    def finish(self, handle: Handle, reason: FinishReason) -> None:
        """End a sequence."""
        with self._fewer:
            self.open.pop(handle, None)
            handle.finish(reason)
            self._fewer.notify_all()

    def fail(self, handle: Handle, error: ServingError) -> None:
        """End a sequence with an error."""
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
        self._notify()
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


class ThreadedEngine:
    """The end of an engine that runs on one `EngineThread`."""

    _thread: EngineThread[Any]

    def drain(self) -> None:
        """See `Engine.drain`."""
        self._thread.drain()

    def close(self) -> None:
        """See `Engine.close`."""
        self._thread.close()


def _gone() -> Unavailable:
    return Unavailable(
        "The engine takes no requests: it is shutting down or has stopped.", retry_after=RETRY_AFTER_S
    )
