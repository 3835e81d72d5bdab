"""Limits how many requests start in one iteration of the event loop, so that a burst does not delay probes."""

import asyncio
from collections import deque
from typing import Final

PER_ITERATION: Final = 8
"""About 5 ms of work if all of them are refused."""


class StartPacer:
    """First come, first served. For one event loop."""

    def __init__(self, per_iteration: int = PER_ITERATION) -> None:
        self._per_iteration = per_iteration
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._started = 0

    async def wait(self) -> None:
        """Return at once, or in the iteration in which it is the caller's turn."""
        if self._started < self._per_iteration:
            self._start()
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    def _start(self) -> None:
        if not self._started:
            asyncio.get_running_loop().call_soon(self._next_iteration)
        self._started += 1

    def _next_iteration(self) -> None:
        self._started = 0
        while self._waiting and self._started < self._per_iteration:
            turn = self._waiting.popleft()
            if not turn.done():  # (the waiting task may have been cancelled)
                self._start()
                turn.set_result(None)
