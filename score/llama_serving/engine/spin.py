"""How long OpenMP's threads spin at a barrier before they sleep: long on CPUs that are free, hardly beside other processes.

torch's kernels wait for each other many times in a step. Threads that spin meanwhile answer at once, where waking one
takes as long as a small product. But beside another process that computes, they burn the very time that the thread they wait
for needs: an engine became 6 times slower where its fair share of the CPUs would have made it 2 times slower.

libgomp spins 300,000 rounds, and 100 where it has more threads than there are CPUs (its manual, GOMP_SPINCOUNT). Both are
fixed when it is loaded, but the number of its threads is not: a team of threads that sleep makes the difference.
"""

import ctypes
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from llama_serving.engine.cpus import affinity

MAPS: Final = Path("/proc/self/maps")
SCHEDSTAT: Final = Path("/proc/thread-self/schedstat")
"""Nanoseconds that a thread ran, and nanoseconds that it could have run and had no CPU (Linux, sched-stats.rst)."""
CHOSEN_BY_OPERATOR: Final = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
INTERVAL_S: Final = 0.1
LEAST_NS: Final = 20_000_000
"""Of running and waiting, or there is nothing to judge by."""
CONTENDED: Final = 0.15
"""Share of a thread's time without a CPU. Measured: 0.00 to 0.10 on two free CPUs, 0.23 to 0.50 beside one or two processes."""
FREE: Final = 0.03
"""The same while waits are short, where a thread that often sleeps is soon let in again: 0.00 to 0.01 on two free CPUs."""
FREE_LOOKS: Final = 5
"""In a row, until threads spin again: beside others a single look may find the CPUs free."""


class SleepingTeam:
    """More OpenMP threads than CPUs, asleep: as long as there are, no other thread of libgomp spins for long.

    Args:
        library: libgomp, as torch has loaded it.
        threads: of the team, itself included.
    """

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self._end = threading.Event()
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(library, threads, started), name="openmp-sleeping-team", daemon=True
        )
        self._thread.start()
        started.wait()

    def _run(self, library: ctypes.CDLL, threads: int, started: threading.Event) -> None:
        # `free(NULL)` does nothing, in each thread of the team, which then sleeps until this thread asks or ends.
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
        library.GOMP_parallel(nothing, None, ctypes.c_uint(threads), ctypes.c_uint(0))
        started.set()
        self._end.wait()

    def end(self) -> None:
        """End the team's threads."""
        self._end.set()
        self._thread.join()


class SpinControl:
    """Lets the OpenMP threads of this process spin while nobody else wants its CPUs.

    Made anywhere, used by the thread that computes. It begins with short waits. An operator's own OMP_WAIT_POLICY or
    GOMP_SPINCOUNT stands, and so does what another OpenMP library than libgomp does.

    Args:
        inherited: the environment.
        times: (nanoseconds that the calling thread ran, nanoseconds that it waited for a CPU) so far; None where the
            system doesn't say.
        clock: seconds.
    """

    def __init__(
        self,
        inherited: Mapping[str, str] = os.environ,
        *,
        times: Callable[[], tuple[int, int] | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._active = not any(inherited.get(name) for name in CHOSEN_BY_OPERATOR)
        self._times, self._clock = times or thread_times, clock
        self._library: ctypes.CDLL | None = None
        self._team: SleepingTeam | None = None
        self._last: tuple[int, int] | None = None
        self._next = -math.inf
        self._free_looks = 0

    @property
    def short(self) -> bool:
        """Whether threads hardly spin now, by this control."""
        return self._team is not None

    def adjust(self) -> None:
        """Look, now and then, whether this thread had to wait for a CPU, and spin accordingly.

        To be called once torch is loaded, and then in each step: it is cheap.
        """
        if not self._active or self._clock() < self._next:
            return
        self._next = self._clock() + INTERVAL_S
        now = self._times()
        if now is None:
            self._active = False
            self.end()
        elif self._last is None:
            self._library, self._last = libgomp(), now
            self._active = self._library is not None
            self._shorten()
        else:
            self._judge(self._last, now)

    def _judge(self, last: tuple[int, int], now: tuple[int, int]) -> None:
        ran, waited = now[0] - last[0], now[1] - last[1]
        if ran + waited < LEAST_NS:
            return
        self._last = now
        share = waited / (ran + waited)
        self._free_looks = self._free_looks + 1 if share < FREE else 0
        if share > CONTENDED:
            self._shorten()
        elif self._free_looks >= FREE_LOOKS:
            self.end()

    def end(self) -> None:
        """Leave libgomp as it was found."""
        if self._team is not None:
            self._team.end()
            self._team = None

    def _shorten(self) -> None:
        if self._team is None and self._library is not None:
            self._team = SleepingTeam(self._library, affinity() + 1)


def libgomp() -> ctypes.CDLL | None:
    """The libgomp that torch computes with, in this process; None where there is none, as on macOS."""
    try:
        maps = MAPS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    paths = {Path(line[line.index("/") :]) for line in maps.splitlines() if "/" in line}
    found = sorted(path for path in paths if path.name.startswith("libgomp"))
    of_torch = [path for path in found if "torch" in path.parts]  # (another library may have brought its own)
    return ctypes.CDLL(str((of_torch or found)[0])) if found else None


def thread_times() -> tuple[int, int] | None:
    """Of the calling thread: (nanoseconds that it ran, nanoseconds that it waited for a CPU); None where Linux keeps none."""
    try:
        ran, waited, _ = SCHEDSTAT.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return (int(ran), int(waited)) if int(ran) else None  # (a kernel that keeps none says zero)
