"""Enlarges asyncio's default thread pool, on which MLflow's server calls the model.

By default it has 4 threads more than there are CPUs, so the engine would get few requests at a time.
"""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

_log = logging.getLogger(__name__)

PATIENCE_S: Final = 60.0
INTERVAL_S: Final = 0.05


def widen(threads: int) -> None:
    """Give the event loop of this process's server a default pool of `threads` threads.

    Some versions of uvicorn load the application in their loop, others (0.54) before there is one; then a thread waits for
    it. Only call this in a process that will have such a loop.
    """
    try:
        _widen(asyncio.get_running_loop(), threads)
    except RuntimeError:
        threading.Thread(target=_wait_and_widen, args=(threads,), name="widen", daemon=True).start()


def _wait_and_widen(threads: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        loop = loop_of_main_thread()
        if loop is not None:
            loop.call_soon_threadsafe(_widen, loop, threads)
            return
        time.sleep(INTERVAL_S)
    _log.warning("no event loop was found in %d s: few requests will be computed together", PATIENCE_S)


def _widen(loop: asyncio.AbstractEventLoop, threads: int) -> None:
    loop.set_default_executor(ThreadPoolExecutor(max_workers=threads, thread_name_prefix="scoring"))


def loop_of_main_thread() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in the main thread, seen from another thread.

    asyncio only reveals it to its own thread, where none of our code runs. So it is searched for among the local variables of
    the functions running there (asyncio's, its Runner's, or uvicorn's).
    """
    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001  (documented, but for its name)
    while frame is not None:
        for loop in _loops(frame.f_locals):
            if loop.is_running():
                return loop
        frame = frame.f_back
    return None


def _loops(held: dict[str, Any]) -> Iterator[asyncio.AbstractEventLoop]:
    for name in ("self", "loop"):
        value = held.get(name)
        if isinstance(value, asyncio.Runner):
            yield value.get_loop()
        if isinstance(value, asyncio.AbstractEventLoop):
            yield value
