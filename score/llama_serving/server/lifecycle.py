"""What the server is at: loading, ready, draining, or dead. All of its state that changes."""

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
"""How long a server whose engine has died goes on saying so."""


class Phase(StrEnum):
    """In the order in which they come; where the model is another server's, that one may go and come back."""

    LOADING = "loading"
    READY = "ready"
    UPSTREAM_AWAY = "upstream_away"
    DRAINING = "draining"
    DEAD = "dead"


class Lifecycle:
    """One server's life, on one event loop.

    Args:
        load: makes the service; called on a thread, so that probes are answered meanwhile.
        end: called once, on the loop, when the server should go: with the exit code.

    Attributes:
        failure: what `load` raised.
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
        """Where it is now; the engine is asked."""
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
        """The service, whatever the phase; None until it is there."""
        return self._service

    def ready(self) -> Service:
        """The service, for whoever can be served now.

        Raises:
            Unavailable: it is not there yet, or takes no more.
        """
        phase = self.phase
        if phase is not Phase.READY or self._service is None:
            raise Unavailable(_WHY[phase], retry_after=RETRY_AFTER_S)
        return self._service

    @contextmanager
    def serving(self) -> Iterator[Service]:
        """The service, for one request that is waited for.

        Raises:
            Unavailable: it is not there yet, or takes no more.
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
        """Load, then watch the engine until it dies; cancelled at the server's end."""
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
        """The service. A load can't be stopped, but its thread keeps nobody from ending the process."""
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
            with suppress(RuntimeError):  # the loop has ended, and the process with it
                loop.call_soon_threadsafe(tell, service, failure)

        threading.Thread(target=load, name="load", daemon=True).start()
        return await done

    async def drain(self) -> None:
        """Take nothing more, and end the server when everything inside has its answer."""
        self._draining = True
        _log.info("draining: %d requests are inside", self._inside)
        await self._idle.wait()
        self._end(1 if self._died else 0)

    async def close(self) -> None:
        """End the engine; who is inside is refused."""
        if self._service is not None:
            await asyncio.to_thread(self._service.close)


_WHY: Final = {
    Phase.LOADING: f"The model is loading. Try again in {RETRY_AFTER_S} s.",
    Phase.UPSTREAM_AWAY: f"The model's server is away. Try again in {RETRY_AFTER_S} s.",
    Phase.DRAINING: "The server is shutting down. Ask another one.",
    Phase.DEAD: "The model has stopped and the server ends. Ask another one, or try again when it is back.",
}
