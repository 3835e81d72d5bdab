"""Controls how long OpenMP threads spin at a barrier before they sleep: long on idle CPUs, hardly beside other processes.

torch's kernels synchronize many times in a step. Spinning threads continue at once, while waking a thread takes as long as
a small product. But beside another busy process, spinning takes the CPU time that the awaited thread needs: an engine became
6 times slower, where a fair share of the CPUs would have made it 2 times slower.

libgomp spins 300,000 rounds, or 100 if it has more threads than there are CPUs (its manual, GOMP_SPINCOUNT). Both numbers
are fixed when it is loaded, but the number of threads is not: a team of sleeping threads makes the difference.
"""

import ctypes
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from llama_serving.engine.cpus import affinity, allowed

MAPS: Final = Path("/proc/self/maps")
STAT: Final = Path("/proc/stat")
CHOSEN_BY_OPERATOR: Final = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
INTERVAL_S: Final = 0.25
"""Between two measurements: the system counts in hundredths of a second."""
CONTENDED: Final = 0.12
"""Share of the CPUs that other processes use, above which threads hardly spin. One busy process takes 0.33 of two CPUs from
threads that spin on both of them."""
FREE: Final = 0.06
"""Share below which threads spin again. An idle machine showed 0.00 to 0.03."""


class SleepingTeam:
    """More OpenMP threads than CPUs, asleep. While they exist, no thread of libgomp spins for long.

    Args:
        library: the libgomp that torch has loaded.
        threads: of the team, including its own.
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
        # Each thread of the team calls `free(NULL)`, which does nothing, and then sleeps until the next call or the end.
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
        library.GOMP_parallel(nothing, None, ctypes.c_uint(threads), ctypes.c_uint(0))
        started.set()
        self._end.wait()

    def end(self) -> None:
        """End the team's threads."""
        self._end.set()
        self._thread.join()


class SpinControl:
    """Lets the OpenMP threads of this process spin while no other process needs its CPUs.

    Create it on any thread; use it on the one that computes. It begins with short spinning. An operator's OMP_WAIT_POLICY or
    GOMP_SPINCOUNT takes precedence, and OpenMP libraries other than libgomp are left alone.

    Args:
        inherited: the environment.
        others: returns the CPU seconds so far that other processes used on this process's CPUs; None if unknown.
        clock: seconds.
    """

    def __init__(
        self,
        inherited: Mapping[str, str] = os.environ,
        *,
        others: Callable[[], float | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._active = not any(inherited.get(name) for name in CHOSEN_BY_OPERATOR)
        self._others, self._clock = others or others_seconds, clock
        self._library: ctypes.CDLL | None = None
        self._team: SleepingTeam | None = None
        self._last: float | None = None
        self._looked = -math.inf

    @property
    def short(self) -> bool:
        """Whether this control keeps threads from spinning for long now."""
        return self._team is not None

    def adjust(self) -> None:
        """Measure occasionally what other processes use of the CPUs, and set the spinning accordingly.

        Call it after torch is loaded and then in each step; it is cheap.
        """
        now = self._clock()
        if not self._active or now < self._looked + INTERVAL_S:
            return
        elapsed, self._looked = now - self._looked, now
        taken = self._others()
        if taken is None:
            self._active = False
            self.end()
        elif self._last is None:
            self._library = libgomp()
            self._active = self._library is not None
            self._shorten()
        else:
            self._judge((taken - self._last) / elapsed / affinity())
        self._last = taken

    def _judge(self, share: float) -> None:
        if share > CONTENDED:
            self._shorten()
        elif share < FREE:
            self.end()

    def end(self) -> None:
        """Restore libgomp's own behaviour."""
        if self._team is not None:
            self._team.end()
            self._team = None

    def _shorten(self) -> None:
        if self._team is None and self._library is not None:
            self._team = SleepingTeam(self._library, affinity() + 1)


def libgomp() -> ctypes.CDLL | None:
    """Return the libgomp that torch uses in this process; None if there is none, as on macOS."""
    try:
        maps = MAPS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    paths = {Path(line[line.index("/") :]) for line in maps.splitlines() if "/" in line}
    found = sorted(path for path in paths if path.name.startswith("libgomp"))
    of_torch = [path for path in found if "torch" in path.parts]  # (another library may bring its own)
    return ctypes.CDLL(str((of_torch or found)[0])) if found else None


def others_seconds(stat: Path = STAT) -> float | None:
    """Return the CPU seconds so far that this process's CPUs spent on other work; None if unknown.

    `/proc/stat` has a line for each CPU: user, nice, system, idle, iowait, irq, softirq and steal, in ticks (Linux,
    filesystems/proc.rst). Steal is what another virtual machine took.
    """
    try:
        lines = stat.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    busy, mine = 0, {f"cpu{number}" for number in allowed()}
    for name, *ticks in map(str.split, lines):
        if name in mine:
            user, nice, system, _idle, _iowait, *interrupts_and_steal = map(int, ticks[:8])
            busy += user + nice + system + sum(interrupts_and_steal)
    return busy / os.sysconf("SC_CLK_TCK") - time.process_time() if busy else None
