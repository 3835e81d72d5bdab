"""Gates of a roll-out: whether probes allow a deployment more traffic. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Final, Protocol

_NOISE_S: Final = 0.1
"""Smaller differences are network noise."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe request.

    Attributes:
        why: why it failed, without text of the answer; empty if it succeeded.
        seconds: time until the answer was complete.
    """

    seconds: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a deployment must keep to get more traffic.

    Attributes:
        error_rate: the highest share of failed probes, 0 to 1.
        slowdown: the highest ratio of its p95 to the previous deployment's; None is no limit.
        p50_s: seconds; None is no limit.
        p95_s: seconds; None is no limit.
    """

    error_rate: float = 0.01
    slowdown: float | None = 1.5
    p50_s: float | None = None
    p95_s: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """A deployment's probes in numbers. Latencies count successful probes; without any they are infinite."""

    probes: int
    failed: int
    p50_s: float
    p95_s: float
    why: str = ""

    @classmethod
    def of(cls, probes: Sequence[Probe]) -> "Measured":
        """Summarize at least one probe."""
        good = [probe.seconds for probe in probes if not probe.why]
        why = next((probe.why for probe in probes if probe.why), "")
        return cls(len(probes), len(probes) - len(good), quantile(good, 0.5), quantile(good, 0.95), why)

    def __str__(self) -> str:
        return f"{self.probes} probes, {self.failed} failed, p50 {self.p50_s:.2f} s, p95 {self.p95_s:.2f} s"


class QualityGate(Protocol):
    """Whether a deployment answers as well as another one. It is asked once a roll-out, before any traffic moves."""

    @property
    def name(self) -> str:
        """As the tags have it, such as `humaneval=0.02`."""

    def objection(self, new: str, old: str) -> str | None:
        """Return why the deployment `new` must not replace `old`, in words; None if it may.

        Raises:
            SetupError: it cannot be told, such as when a deployment does not answer.
        """


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of them do not exceed (nearest rank)."""
    if not values:
        return float("inf")
    return sorted(values)[max(0, ceil(share * len(values)) - 1)]


def objection(limits: Limits, new: Measured, old: Measured | None) -> str | None:
    """Return the first limit that was exceeded, in words; None if all are kept.

    Args:
        limits: the limits.
        new: the deployment to get more traffic.
        old: the deployment before it; None if there is nothing to compare with.
    """
    rate = new.failed / new.probes
    if rate > limits.error_rate:
        return f"{rate:.1%} of its probes failed, more than {limits.error_rate:.1%} ({new.why})"
    for name, value, limit in (("p50", new.p50_s, limits.p50_s), ("p95", new.p95_s, limits.p95_s)):
        if limit is not None and value > limit:
            return f"{name} is {value:.2f} s, more than {limit:.2f} s"
    if old is not None and _is_slower(limits, new.p95_s, old.p95_s):
        return f"p95 is {new.p95_s:.2f} s, more than {limits.slowdown} times the previous deployment's {old.p95_s:.2f} s"
    return None


def _is_slower(limits: Limits, new_s: float, old_s: float) -> bool:
    return limits.slowdown is not None and new_s > limits.slowdown * old_s and new_s - old_s > _NOISE_S


def is_lost(limits: Limits, failed: int, probes: int) -> bool:
    """Whether so many probes failed that the remaining ones cannot bring the rate below the limit."""
    return failed > floor(limits.error_rate * probes)
