"""Restarts vLLM after it has died, with growing pauses. A vLLM that was never healthy is given up."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

_log = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
END_S: Final = 30.0


class SupervisedRun(Protocol):
    """One run of vLLM; see `process.VllmProcess`."""

    code: int | None

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait, and return whether it has ended."""

    def end(self) -> None:
        """Request an orderly shutdown."""

    def kill(self) -> None:
        """Stop it immediately."""

    def cause(self) -> str:
        """Return why it ended."""

    def progress(self) -> str:
        """Return what it is doing."""

    def note_requests(self) -> None:
        """Note that it serves requests from now on."""


def pause_s(failures: int) -> float:
    """Return the seconds before the next start, after `failures` failed ones."""
    return min(FIRST_PAUSE_S * 2.0 ** min(failures, 16), LONGEST_PAUSE_S)


class Supervisor:
    """The thread that restarts vLLM.

    Args:
        launch: starts one run.
        start_s: seconds until a run must be healthy.
        on_death: called, on the thread, after a run has ended.
    """

    def __init__(
        self, launch: Callable[[], SupervisedRun], *, start_s: float, on_death: Callable[[], None]
    ) -> None:
        self._launch, self._start_s, self._on_death = launch, start_s, on_death
        self._healthy, self._closing = threading.Event(), threading.Event()
        self._was_healthy = False
        self._lost: str | None = None
        self._failures = 0
        self._run = launch()
        self._thread = threading.Thread(target=self._supervise, name="vllm", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> str | None:
        """Why vLLM will not come (back); None while it may."""
        return self._lost

    @property
    def failures(self) -> int:
        """Failed starts in a row."""
        return self._failures

    def progress(self) -> str:
        """Return what vLLM is doing."""
        return self._run.progress()

    def healthy(self) -> None:
        """Note that vLLM has answered."""
        self._run.note_requests()
        self._was_healthy = True
        self._healthy.set()

    def close(self) -> None:
        """Stop vLLM, and return when all its processes have ended."""
        self._closing.set()
        self._run.end()
        self._thread.join(END_S)
        if self._thread.is_alive():
            _log.warning("vLLM does not exit: killing it")
            self._run.kill()
            self._thread.join(END_S)

    def _supervise(self) -> None:
        while True:
            self._until_ended()
            if self._closing.is_set():
                return
            came = self._healthy.is_set()
            self._failures = 0 if came else self._failures + 1
            self._healthy.clear()
            why = self._why(came=came)
            if not self._was_healthy:  # (the model, settings or machine are unsuitable)
                self._lost = why
                _log.error("%s", why)
                return
            self._on_death()
            if not self._start_again(why):
                return

    def _start_again(self, why: str) -> bool:
        """Restart until it succeeds, since a missing GPU or disk may come back. False if closed meanwhile."""
        while True:
            seconds = pause_s(self._failures)
            _log.error("%s; restarting it in %.0f s", why, seconds)
            if self._closing.wait(seconds):
                return False
            try:
                self._run = self._launch()
            except Exception as error:  # no failure to start may end this thread
                self._failures += 1
                why = f"vLLM can't be started: {error}"
            else:
                if self._closing.is_set():  # (`close` may have stopped the previous run)
                    self._run.end()
                return True

    def _until_ended(self) -> None:
        """Wait for the end of the run, and end it if it does not become healthy in time."""
        deadline = time.monotonic() + self._start_s
        while not self._run.wait(1.0):
            late = time.monotonic() > deadline and not self._healthy.is_set()
            if late and not self._closing.is_set():
                _log.error("vLLM was not healthy within %.0f s (LLAMA_VLLM_START_S)", self._start_s)
                self._run.kill()
                self._run.wait()
                return

    def _why(self, *, came: bool) -> str:
        cause = self._run.cause()
        what = f"vLLM has ended (exit code {self._run.code})"
        what += "" if came else " before it was healthy"
        return f"{what}: {cause}" if cause else what
