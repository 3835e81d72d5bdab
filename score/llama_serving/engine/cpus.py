"""How many CPUs this process may use, by its affinity and its container's quota."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from llama_serving.engine.cgroups import UNIFIED, Group, groups


def available(root: Path = Path("/")) -> int:
    """Return the number of CPUs that threads of this process can keep busy, at least 1.

    A fraction of a CPU counts as one: two threads use all of 1.5 CPUs, one thread would leave a third of them idle.

    Args:
        root: of the file system.
    """
    return max(1, min([affinity(), *(math.ceil(quota) for quota in _quotas(root))]))


def within_quota() -> int | None:
    """Return the number of CPUs if a quota allows fewer than the affinity, else None."""
    found = available()
    return found if found < affinity() else None


def affinity() -> int:
    """Return the number of CPUs in this process's affinity, whatever its quota."""
    return len(allowed())


def allowed() -> frozenset[int]:
    """Return the numbers of the CPUs in this process's affinity."""
    try:
        return frozenset(os.sched_getaffinity(0))
    except AttributeError:  # macOS has none
        return frozenset(range(os.cpu_count() or 1))


def _quotas(root: Path) -> Iterator[float]:
    for group in groups("cpu", root):
        with suppress(OSError, ValueError):  # the group has no limit: no file, or "max" in it
            yield _quota(group)


def _quota(group: Group) -> float:
    """Return a quota in CPUs: CPU time per period, divided by the period.

    Raises:
            OSError: the group has no such file.
            ValueError: the group has no limit.
    """
    if group.version == UNIFIED:
        quota, period = group.read("cpu.max").split()
    else:
        quota, period = group.read("cpu.cfs_quota_us"), group.read("cpu.cfs_period_us")
    if int(quota) <= 0 or int(period) <= 0:
        raise ValueError(f"no quota: {quota} of {period}")
    return int(quota) / int(period)
