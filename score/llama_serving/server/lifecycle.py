"""The server's phase: loading, ready, draining or dead. All of its mutable state."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import Final

from llama_serving.errors import Unavailable
from llama_serving.service.service import Service

_log = logging.getLogger(__name__)

RETRY_AFTER_S: Final = 5
WATCH_S: Final = 0.25
LAST_ANSWERS_S: Final = 5.0
"""Seconds that a server responds to probes after its engine has died."""


class Phase(StrEnum):
    """In the order in which they occur; an upstream server may go away and come back."""

    LOADING = "loading"
    READY = "ready"
    UPSTREAM_AWAY = "upstream_away"
    DRAINING = "draining"
    DEAD = "dead"


class Lifecycle:
    """The life of one server, on one event loop.

    Args:
        load: creates the service; called in a thread, so that probes are answered meanwhile.
        end: called once, on the loop, with the exit code when the server should stop.

    Attributes:
        failure: the exception that `load` raised.
    """

    def __init__(self, load: Callable[[], Service], end: Callable[[int], None]) -> None:
        self._load, self._end = load, end
        self._service: Service | None = None
        self._inside = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = self._died = False
        self.failure: Exception | None = None

    @property
    def phase(self) -> Phase:
        """The present phase, according to the engine."""
        if self.failure is not None:
            return Phase.DEAD
        stats = self._service.engine.stats() if self._service is not None else None
        if stats is not None and not stats.alive:
            return Phase.DEAD
        if self._draining:
            return Phase.DRAINING
        if stats is None:
            return Phase.LOADING
        return Phase.UPSTREAM_AWAY if stats.away else Phase.READY

    @property
    def loaded(self) -> Service | None:
        """The service in any phase; None until it is loaded."""
        return self._service

    def ready(self) -> Service:
        """Return the service if it can accept a request now.

        Raises:
            Unavailable: it is not loaded, or accepts no more.
        """
        phase = self.phase
        if phase is not Phase.READY or self._service is None:
            raise Unavailable(_WHY[phase], retry_after=RETRY_AFTER_S)
        return self._service

    @contextmanager
    def serving(self) -> Iterator[Service]:
        """Yield the service for one request, which `drain` waits for.

        Raises:
            Unavailable: it is not loaded, or accepts no more.
        """
        service = self.ready()
        self._inside += 1
        self._idle.clear()
        try:
            yield service
        finally:
            self._inside -= 1
            if not self._inside:
                self._idle.set()

    async def run(self) -> None:
        """Load, then watch the engine until it dies; cancelled when the server stops."""
        try:
            self._service = await self._loading()
        except Exception as error:
            self.failure = error
            self._end(2)
            return
        _log.info("ready")
        while self.phase in (Phase.READY, Phase.UPSTREAM_AWAY):
            await asyncio.sleep(WATCH_S)
        if self._draining:
            return
        self._died = True
        _log.error("the engine has died")
        await asyncio.sleep(LAST_ANSWERS_S)
        self._end(1)

    async def _loading(self) -> Service:
        """Load the service in a daemon thread: loading cannot be interrupted, but does not keep the process alive."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Service] = loop.create_future()

        def tell(service: Service | None, error: Exception | None) -> None:
            if done.cancelled():
                return
            if error is not None:
                done.set_exception(error)
            elif service is not None:
                done.set_result(service)

        def load() -> None:
            service, failure = None, None
            try:
                service = self._load()
            except Exception as error:
                failure = error
            with suppress(RuntimeError):  # the loop has ended: the process is stopping
                loop.call_soon_threadsafe(tell, service, failure)

        threading.Thread(target=load, name="load", daemon=True).start()
        return await done

    async def drain(self) -> None:
        """Accept nothing more, and stop the server when all running requests have been answered."""
        self._draining = True
        _log.info("draining: %d requests are running", self._inside)
        await self._idle.wait()
        self._end(1 if self._died else 0)

    async def close(self) -> None:
        """Stop the engine; running requests are refused."""
        if self._service is not None:
            await asyncio.to_thread(self._service.close)


_WHY: Final = {
    Phase.LOADING: f"The model is loading. Try again in {RETRY_AFTER_S} s.",
    Phase.UPSTREAM_AWAY: f"The model's server is away. Try again in {RETRY_AFTER_S} s.",
    Phase.DRAINING: "The server is shutting down. Use another one.",
    Phase.DEAD: "The engine has stopped, and the server is shutting down. Use another one, or try again later.",
}
