"""The consumer's side of a sequence, and how the engine delivers tokens to it."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from llama_serving.errors import ServingError
from llama_serving.sampling_params import FinishReason


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    Attributes:
        logprob: natural logarithm of its probability under the model's own distribution (before penalties, temperature
            and cuts); None if not requested.
        top: the most likely ids with theirs, best first.
        rank: 1 for the most likely token, 2 for the next; only of a prompt's tokens, and not from every server.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    rank: int | None = None


class Handle:
    """The tokens of one sequence as they are generated. One consumer, on any thread or event loop.

    Args:
        on_cancel: called by `cancel`, in the caller's thread, for an engine that does not check `cancelled` in steps.

    Attributes:
        count: tokens delivered.
        prompt: the prompt's tokens after the first, with their log-probabilities, if requested; complete at the end.
        submitted_at, first_at, last_at: `time.monotonic()` seconds of submission, first token and last token.
    """

    def __init__(self, on_cancel: "Callable[[Handle], None] | None" = None) -> None:
        self._on_cancel = on_cancel
        self.count = 0
        self.prompt: list[Token] = []
        self.submitted_at = self.last_at = time.monotonic()
        self.first_at: float | None = None
        self._tokens: deque[Token] = deque()
        lock = threading.Lock()
        self._changed, self._over = threading.Condition(lock), threading.Condition(lock)
        self._waiter: _Waiter | None = None
        self._end_waiter: _Waiter | None = None
        self._reason: FinishReason | None = None
        self._error: ServingError | None = None
        self._cancelled = False
        self._when_over: list[Callable[[Handle], None]] = []

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the sequence ended; None while it runs."""
        return self._reason

    @property
    def is_over(self) -> bool:
        """Whether the sequence has ended, successfully or not."""
        return self._ended

    @property
    def error(self) -> ServingError | None:
        """The error that ended the sequence, if one did."""
        return self._error

    @property
    def cancelled(self) -> bool:
        """Whether the consumer has cancelled; engines check this in every step."""
        return self._cancelled

    def early_end(self, deadline: float | None, now: float) -> FinishReason | None:
        """Return why the sequence must end before its last token: it was cancelled, or its deadline has passed."""
        if self._cancelled:
            return "cancelled"
        return "deadline" if deadline is not None and now >= deadline else None

    def cancel(self) -> None:
        """Ask the engine to stop within one step. Idempotent."""
        self._cancelled = True
        if self._on_cancel is not None:
            self._on_cancel(self)

    def __iter__(self) -> Iterator[Token]:
        """Yield the tokens, blocking for each.

        Raises:
            ServingError: the sequence failed.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._tokens or self._ended)
                token = self._take()
            if token is None:
                return
            yield token

    async def __aiter__(self) -> AsyncIterator[Token]:
        """Yield the tokens, awaiting each.

        Raises:
            ServingError: the sequence failed.
        """
        async for tokens in self.arrivals():
            for token in tokens:
                yield token

    async def arrivals(self) -> AsyncGenerator[list[Token], None]:
        """Yield the tokens that have arrived since the last iteration, awaiting at least one.

        A consumer slower than the engine gets several at a time, so it does not fall further behind.

        Raises:
            ServingError: the sequence failed.
        """
        ready = asyncio.Event()
        with self._changed:
            self._waiter = (asyncio.get_running_loop(), ready)
        try:
            while True:
                with self._changed:
                    tokens = list(self._tokens)
                    self._tokens.clear()
                    ended = self._ended
                    ready.clear()
                if tokens:
                    yield tokens
                elif not ended:
                    await ready.wait()
                elif self._error is not None:
                    raise self._error
                else:
                    return
        finally:
            with self._changed:
                self._waiter = None

    def when_over(self, tell: "Callable[[Handle], None]") -> None:
        """Call `tell` once the sequence has ended: on the engine's thread, or now if it has. It must not block or raise."""
        with self._changed:
            if not self._ended:
                self._when_over.append(tell)
                return
        tell(self)

    def more(self, timeout_s: float) -> bool:
        """Block until there is a token or the end, for so many seconds at most; return whether there is."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._tokens) or self._ended, timeout_s)

    def wait(self) -> None:
        """Block until the sequence ends, without waking for each token."""
        with self._over:
            self._over.wait_for(lambda: self._ended)

    async def ended(self) -> None:
        """Await the end of the sequence, without waking for each token."""
        over = asyncio.Event()
        with self._over:
            if self._ended:
                return
            self._end_waiter = (asyncio.get_running_loop(), over)
        try:
            await over.wait()
        finally:
            with self._over:
                self._end_waiter = None

    def push(self, token: Token) -> None:
        """Deliver one token (engine only)."""
        publish([(self, token)])

    def finish(self, reason: FinishReason) -> None:
        """End the sequence (engine only). Only the first end counts."""
        with self._changed:
            if not self._ended:
                self._reason = reason
                self._over.notify_all()
                _wake([self._notify(), self._end_waiter])
        self._tell()

    def fail(self, error: ServingError) -> None:
        """End this sequence with an error (engine only)."""
        with self._changed:
            if not self._ended:
                self._error = error
                self._over.notify_all()
                _wake([self._notify(), self._end_waiter])
        self._tell()

    def _tell(self) -> None:
        tells, self._when_over = self._when_over, []
        for tell in tells:
            tell(self)

    @property
    def _ended(self) -> bool:
        return self._reason is not None or self._error is not None

    def _take(self) -> Token | None:
        if self._tokens:
            return self._tokens.popleft()
        if self._error is not None:
            raise self._error
        return None

    def _append(self, token: Token) -> "_Waiter | None":
        with self._changed:
            self._tokens.append(token)
            self.count += 1
            self.last_at = time.monotonic()
            if self.first_at is None:
                self.first_at = self.last_at
            return self._notify()

    def _notify(self) -> "_Waiter | None":
        """Wake a waiting thread; return the waiter of an event loop for the caller to wake."""
        self._changed.notify_all()
        return self._waiter


_Waiter = tuple[asyncio.AbstractEventLoop, asyncio.Event]


def publish(tokens: Iterable[tuple[Handle, Token]]) -> None:
    """Deliver one token to each handle (engine only). Each event loop is woken once for all of its handles."""
    _wake([handle._append(token) for handle, token in tokens])  # noqa: SLF001  (a handle's other half)


def _wake(waiters: Iterable[_Waiter | None]) -> None:
    events: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}
    for waiter in waiters:
        if waiter is not None:
            loop, ready = waiter
            events.setdefault(loop, []).append(ready)
    for loop, ready_ones in events.items():
        with suppress(RuntimeError):  # the loop is closed: the consumer has gone
            loop.call_soon_threadsafe(_set_all, ready_ones)


def _set_all(events: Iterable[asyncio.Event]) -> None:
    for event in events:
        event.set()
