"""Few requests begin in one pass of the event loop, so that a crowd that comes at once keeps no probe waiting."""

import asyncio
from collections import deque
from typing import Final

A_PASS: Final = 8
"""Some 5 ms of work where all are sent away."""


class Turns:
    """First come, first served. Of one event loop."""

    def __init__(self, a_pass: int = A_PASS) -> None:
        self._a_pass = a_pass
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._begun = 0

    async def wait(self) -> None:
        """Return at once, or in the pass in which it is one's turn."""
        if self._begun < self._a_pass:
            self._begin()
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    def _begin(self) -> None:
        if not self._begun:
            asyncio.get_running_loop().call_soon(self._next_pass)
        self._begun += 1

    def _next_pass(self) -> None:
        self._begun = 0
        while self._waiting and self._begun < self._a_pass:
            turn = self._waiting.popleft()
            if not turn.done():  # (who waited may have been cancelled)
                self._begin()
                turn.set_result(None)
