"""The figures that are promised, and how each is read from runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Run = dict[str, Any]

MILLION: Final = 1_000_000
SERVERS: Final = ("own", "azmlinfsrv", "mlflow")


@dataclass(frozen=True, slots=True)
class Reading:
    """A figure, as some runs have it.

    Attributes:
        value: what was found, in words.
        met: whether it is as promised, as far as was run.
        whole: whether the runs were as large as promised.
        runs: the runs.
    """

    value: str
    met: bool
    whole: bool
    runs: Sequence[Run]


@dataclass(frozen=True, slots=True)
class Figure:
    """One promise.

    Attributes:
        promise: what is promised.
        anchor: what it is measured by: others' tests, or a rule of the contract.
        reader: returns its reading in some runs, None if none of them is about it. Without one there is no run for it yet.
    """

    promise: str
    anchor: str
    reader: Callable[[Sequence[Run]], Reading | None] | None = None

    def read(self, runs: Sequence[Run]) -> Reading | None:
        """Return the reading in some runs; None if it was not run."""
        return None if self.reader is None else self.reader(runs)


def of_kind(runs: Sequence[Run], kind: str) -> list[Run]:
    """Return the runs of a kind, without those of planted defects."""
    return [run for run in runs if run["kind"] == kind and not run.get("planted")]


def _memory(runs: Sequence[Run]) -> Reading | None:
    soaks = of_kind(runs, "soak")
    if not soaks:
        return None
    grown = {run["server"]: run["growth_by_request"]["live"] for run in soaks}
    requests = {run["server"]: run["requests"] for run in soaks}
    value = "; ".join(
        f"{server}: {one['slope']:+.0f} bytes a request ({one['low']:+.0f} to {one['high']:+.0f}) over {requests[server]:,}"
        for server, one in grown.items()
    )
    whole = all(requests.get(server, 0) >= MILLION for server in SERVERS)
    return Reading(value, all(one["low"] <= 0 for one in grown.values()), whole, soaks)


def _rows(runs: Sequence[Run]) -> Reading | None:
    found = of_kind(runs, "batch-torture")
    if not found:
        return None
    run = found[-1]
    value = f"{run['rows']:,} rows, {run['kills']} kills: {run['lost']} lost, {run['doubled']} doubled"
    whole = run["rows"] >= 100_000 and run["kills"] >= 20
    return Reading(value, not run["lost"] and not run["doubled"], whole, found[-1:])


def _recovered(runs: Sequence[Run]) -> Reading | None:
    found = [run for run in of_kind(runs, "chaos") if run["job"] == "batch"]
    if not found:
        return None
    run = found[-1]
    disturbed = {fault: count for fault, count in run["by_fault"].items() if count}
    value = f"{', '.join(f'{fault} at {count} calls' for fault, count in disturbed.items())}: {len(run['wrong'])} not recovered"
    return Reading(value, not run["wrong"], {"torn", "enospc"} <= disturbed.keys(), found[-1:])


FIGURES: Final = (
    Figure("1,000 clients for 10 minutes: no 5xx, no reset connection", "Triton's stress tests"),
    Figure("a refusal at ten times the load within 50 ms (p99)", "the contract: 429 in milliseconds"),
    Figure("a disconnect frees its place within one step", "vLLM's cancellation tests"),
    Figure("SIGTERM loses no admitted request", "Azure's roll-outs"),
    Figure("an engine that died: 503, and back within its load and 2 s", "vLLM's fault tests"),
    Figure("probes within 100 ms (p99)", "Azure's probes time out after 2 s"),
    Figure("200 slow clients (slow-loris): no request of others is lost", "the contract: a slow body holds no place"),
    Figure("kept cases answered as they must be at every endpoint: 100 %", "the contract"),
    Figure("a million fuzzed requests: no 5xx", "Triton's fuzzed HTTP"),
    Figure("memory that grows by nothing, within its interval, over a million requests", "Triton: < 100 MB", _memory),
    Figure("100,000 rows, 20 SIGKILLs: none lost, none doubled", "SQLite's crash tests", _rows),
    Figure("a poison row, a full disk, a torn tail: recovered", "SQLite's tests kill at every write", _recovered),
)  # fmt: skip
