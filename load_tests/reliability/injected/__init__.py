"""What is put into any of our Python processes at its start: a probe of its memory, and defects on purpose.

What looks for faults must find each defect, or finds nothing.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFECTS: Final[Mapping[str, str]] = MappingProxyType({
    "leak": "each request leaves 1 kB behind",
    "place": "a request that is refused or cancelled keeps its place",
    "row": "a batch job takes a row that is half in its journal for a finished one",
})  # fmt: skip
OF_SERVERS: Final = ("leak", "place")
OF_JOBS: Final = ("row",)
PROBE_S: Final = 30.0


def environment(defect: str | None = None, probes: Path | None = None) -> dict[str, str]:
    """Return the variables of a process with a defect, with a probe in a folder, or both; none for neither.

    Args:
        defect: one of `DEFECTS`.
        probes: a folder with a short name: a socket's path has at most 107 bytes.
    """
    variables = {}
    if defect is not None:
        variables["RELIABILITY_PLANTED"] = defect
    if probes is not None:
        # Python's own small blocks would hide in its arenas: malloc counts all.
        variables |= {"RELIABILITY_PROBES": str(probes), "PYTHONMALLOC": "malloc"}
    return {**variables, "PYTHONPATH": str(Path(__file__).parent)} if variables else {}


def live_bytes(probes: Path) -> int:
    """Return the bytes that all processes with a probe in a folder have allocated and not freed, after a collection."""
    total = 0
    for path in probes.glob("*.probe"):
        with (
            suppress(ConnectionRefusedError),
            socket.socket(socket.AF_UNIX) as probe,
        ):  # (its process has ended)
            probe.settimeout(PROBE_S)
            probe.connect(str(path))
            total += int(probe.recv(32))
    return total
