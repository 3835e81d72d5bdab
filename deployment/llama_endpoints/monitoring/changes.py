"""What changed between two readings: rates of counters, and quantiles of histograms."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from llama_endpoints.monitoring.scrape import STARTED, Scrape


def increase(before: float, now: float) -> float:
    """Return by how much a counter grew. One that is lower began anew in between, so all that it has is growth."""
    return now - before if now >= before else now


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes from one reading to the next.

    Attributes:
        before: None at the first reading, when no rate is known.
        now: the reading.
    """

    before: Scrape | None
    now: Scrape

    @property
    def restarted(self) -> bool:
        """Whether the server was started anew between the readings."""
        return self.before is not None and self.before.value(STARTED) != self.now.value(STARTED)

    def increases(self, name: str, label: str) -> dict[str, float] | None:
        """Return by how much a counter grew, by one label; None if it is not known.

        What an earlier reading does not have began at 0.
        """
        if self.before is None or self.now.at <= self.before.at:
            return None
        earlier = {} if self.restarted else self.before.by(name, label)
        return {one: increase(earlier.get(one, 0.0), value) for one, value in self.now.by(name, label).items()}

    def rates(self, name: str, label: str) -> dict[str, float] | None:
        """Return the growth of a counter in a second, by one label; None if it is not known."""
        found = self.increases(name, label)
        if found is None or self.before is None:
            return None
        seconds = self.now.at - self.before.at
        return {one: grown / seconds for one, grown in found.items()}

    def rate(self, name: str) -> float | None:
        """Return the growth of a counter in a second, over all labels; None if there is none or it is not known."""
        found = self.rates(name, "")
        return sum(found.values()) if found else None

    def quantile(self, share: float, name: str) -> float | None:
        """Return a quantile of what a histogram observed in between; None if it observed nothing.

        Within a bucket it is interpolated, as Prometheus does it. Above the last end it is that end.
        """
        found = self.increases(f"{name}_bucket", "le")
        if not found:
            return None
        return interpolated(share, {float(end): count for end, count in found.items() if end})


def interpolated(share: float, buckets: Mapping[float, float]) -> float | None:
    """Return a quantile of observations, given how many lie below each end of a bucket."""
    ends = sorted(buckets)
    total = buckets[ends[-1]] if ends else 0.0
    if not total > 0:
        return None
    low = below = 0.0
    for end in ends:
        if buckets[end] >= share * total and buckets[end] > below:
            inside = (share * total - below) / (buckets[end] - below)
            return low if math.isinf(end) else low + (end - low) * max(0.0, inside)
        low, below = end, buckets[end]
    return low
