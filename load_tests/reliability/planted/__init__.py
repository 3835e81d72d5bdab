"""Defects on purpose. What looks for faults must find each of them, or finds nothing."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE: Final = "RELIABILITY_PLANTED"
DEFECTS: Final[Mapping[str, str]] = MappingProxyType({
    "leak": "each request leaves 1 kB behind",
    "place": "a request that is refused or cancelled keeps its place",
    "row": "a batch job takes a row that is half in its journal for a finished one",
})  # fmt: skip

OF_SERVERS: Final = ("leak", "place")
OF_JOBS: Final = ("row",)


def environment(defect: str | None) -> dict[str, str]:
    """Return the variables with which any Python process has a defect; none without one."""
    return {} if defect is None else {VARIABLE: defect, "PYTHONPATH": str(Path(__file__).parent)}
