"""A soak: a mixed load for hours, and what the server still holds whenever it rests.

The load comes in cycles. After each, all clients go and the server rests; what it then holds must not grow with the requests it
has answered. (A reading under load would be noise: the memory of the requests in flight.)
"""

from __future__ import annotations

import asyncio
import http.client
import re
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from load_tests.reliability import injected
from load_tests.reliability.processes import held
from load_tests.reliability.trend import trend

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from llama_endpoints.devtools.servers import RunningServer
    from load_tests.reliability.trend import Trend
    from load_tests.reliability.users import Length, Tally, Users

REST_S: Final = 0.3
IDLE_S: Final = 10.0
"""Most seconds from the last client's end until the server must rest."""
GAUGE: Final = re.compile(
    rb"^llama_(num_requests_running|num_requests_waiting|num_sequences_running|num_sequences_waiting|kv_cache_usage_ratio) (\S+)$",
    re.MULTILINE,
)
LIMITS: Final = {"live": 100.0, "threads": 1e-3, "descriptors": 1e-3, "places": 1e-3, "blocks": 1e-5}
"""The most growth a request. A thread, a descriptor or a place in a thousand requests is one that somebody forgot."""
RESIDENT: Final = 100e6
"""The most bytes that a run may add to its resident memory: what Triton's tests allow. The allocator keeps what is freed in
pieces, so that this grows for hours, and by megabytes at a time, where nothing leaks; what leaks is in `live`."""


@dataclass(frozen=True, slots=True)
class Rest:
    """One cycle, and what the server held after it.

    Attributes:
        at: seconds since the start.
        requests: all requests so far.
        live: bytes that are allocated and not freed, after a collection.
        memory, threads, descriptors: see `processes.Held`.
        places: requests and sequences that the server still counts; 0 where it does not tell.
        blocks: the share of the cache's blocks in use; 0 where it does not tell.
        median_s, p99_s: latency of the cycle's answers.
        first_s: median time to the first event of its streams.
    """

    at: float
    requests: int
    live: int
    memory: int
    threads: int
    descriptors: int
    places: float
    blocks: float
    median_s: float | None
    p99_s: float | None
    first_s: float | None


@dataclass(slots=True)
class Soak:
    """The readings of a soak."""

    rests: list[Rest] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)

    @property
    def requests(self) -> int:
        """Number of requests."""
        return self.outcomes.total()

    def trends(self) -> dict[str, Trend]:
        """Return the growth of each thing held, by request."""
        requests = [rest.requests for rest in self.rests]
        held = (*LIMITS, "memory")
        return {name: trend(requests, [getattr(rest, name) for rest in self.rests]) for name in held}

    def verdict(self) -> list[str]:
        """Return what is wrong; nothing for a server that kept its promises."""
        found = [f"{count} x {fault}" for fault, count in self.faults.most_common()]
        limits = {**LIMITS, "memory": RESIDENT / max(1, self.requests)}
        for name, grown in self.trends().items():
            if grown.exceeds(limits[name]):
                found.append(
                    f"{name} grew by {grown.slope:.4g} a request, between {grown.low:.4g} and {grown.high:.4g}; "
                    f"allowed are {limits[name]:.4g}"
                )
        if not self.rests:
            found.append("no cycle ended")
        return found

    def told(self) -> dict[str, Any]:
        """Return the readings as JSON: a list for each column."""
        columns = [asdict(rest) for rest in self.rests]
        return {
            "requests": self.requests,
            "outcomes": dict(self.outcomes),
            "faults": dict(self.faults),
            "growth_by_request": {name: asdict(grown) for name, grown in self.trends().items()},
            "verdict": self.verdict(),
            "rests": {name: [_short(row[name]) for row in columns] for name in Rest.__slots__},
        }


async def run(  # noqa: PLR0913  (all but two named)
    server: RunningServer,
    users: Users,
    *,
    probes: Path,
    length: Length,
    cycle: Length,
    beside: Callable[[], str | None] | None = None,
    told: Callable[[Soak], object] = lambda _: None,
) -> Soak:
    """Load a server.

    Args:
        server: it leads its own session.
        users: who sends.
        probes: the folder of the server's probes.
        length: of load and rest together.
        cycle: the load before each rest.
        beside: a job to run beside each cycle; returns its fault.
        told: called after each cycle.
    """
    soak, began = Soak(), time.monotonic()
    while not length.reached(time.monotonic() - began, soak.requests):
        job = asyncio.create_task(asyncio.to_thread(beside)) if beside is not None else None
        tally = await users.run(cycle)
        fault = await job if job is not None else None
        soak.outcomes += tally.outcomes
        soak.faults += tally.faults
        if tally.outcomes["busy"]:  # there are more places than users
            soak.faults["a 429, with places left"] += tally.outcomes["busy"]
        if fault is not None:
            soak.faults[fault] += 1
        soak.rests.append(await _rest(server, probes, soak.requests, time.monotonic() - began, tally))
        if server.process.poll() is not None:
            soak.faults[f"the server ended with exit status {server.process.returncode}"] += 1
            break
        if soak.rests[-1].places or soak.rests[-1].blocks:
            soak.faults["the server still counted work when all clients had gone"] += 1
        told(soak)
    return soak


async def _rest(server: RunningServer, probes: Path, requests: int, at: float, tally: Tally) -> Rest:
    until = time.monotonic() + IDLE_S
    while any(found := await asyncio.to_thread(_gauges, server.url)) and time.monotonic() < until:
        await asyncio.sleep(REST_S / 3)
    await asyncio.sleep(REST_S)
    live = await asyncio.to_thread(injected.live_bytes, probes)
    holds = held(server.pid)
    return Rest(
        round(at, 1), requests, live, holds.memory, holds.threads, holds.descriptors, *found,
        _percentile(tally.whole_s, 50), _percentile(tally.whole_s, 99), _percentile(tally.first_s, 50),
    )  # fmt: skip


def _gauges(url: str) -> tuple[float, float]:
    """Return the requests and sequences that a server counts, and the share of its cache in use; zeros if it does not tell."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=IDLE_S)
    text = b""
    with suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/metrics")
        text = connection.getresponse().read()
    connection.close()
    values = {name: float(value) for name, value in GAUGE.findall(text)}
    blocks = values.pop(b"kv_cache_usage_ratio", 0.0)
    return sum(values.values()), blocks


def _percentile(values: Sequence[float], q: float) -> float | None:
    return float(np.percentile(values, q)) if values else None


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value
