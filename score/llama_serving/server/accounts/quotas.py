"""Quotas of one key: token buckets, in integers, so that nothing is lost to rounding. Times are nanoseconds of a clock."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

SECOND: Final = 10**9
MINUTE: Final = 60 * SECOND
DAY: Final = 24 * 60 * MINUTE


class Unit(StrEnum):
    """What a quota counts, as OpenAI's headers name it."""

    REQUESTS = "requests"
    TOKENS = "tokens"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a key; None is no limit. Tokens are those of prompts and completions."""

    requests_per_minute: int | None = None
    requests_per_day: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None

    def __bool__(self) -> bool:
        return any(True for _ in self.each())

    @property
    def daily(self) -> bool:
        """Whether there is a limit of a day."""
        return any(period == DAY for _, period, _ in self.each())

    def each(self) -> Iterator[tuple[Unit, int, int]]:
        """Yield unit, period and amount of each limit."""
        for unit, period, amount in (
            (Unit.REQUESTS, MINUTE, self.requests_per_minute),
            (Unit.REQUESTS, DAY, self.requests_per_day),
            (Unit.TOKENS, MINUTE, self.tokens_per_minute),
            (Unit.TOKENS, DAY, self.tokens_per_day),
        ):
            if amount is not None:
                yield unit, period, amount


class Bucket:
    """A token bucket: it holds `capacity`, and as much flows in evenly over `period`.

    The level is counted in units of which `period` make one, so that each nanosecond adds `capacity` of them.
    """

    def __init__(self, capacity: int, period: int, now: int) -> None:
        self.capacity, self.period = capacity, period
        self._level, self._at = capacity * period, now

    def left(self, now: int) -> int:
        """Return how much can be taken now; below 0 if more was taken than a lowered limit allows."""
        passed = max(0, now - self._at)
        self._level = min(self.capacity * self.period, self._level + passed * self.capacity)
        self._at = max(self._at, now)
        return self._level // self.period

    def wait(self, amount: int, now: int) -> int:
        """Return the nanoseconds until `amount` can be taken, or until the bucket is full if it is never that much."""
        self.left(now)
        missing = min(amount, self.capacity) * self.period - self._level
        return max(0, -(-missing // self.capacity))

    def add(self, amount: int, now: int) -> None:
        """Take `amount` out if it is negative, else give it back."""
        self.left(now)
        self._level = min(self.capacity * self.period, self._level + amount * self.period)

    def missing(self, now: int) -> int:
        """Return how far the bucket is from full, in thousandths of what is taken, rounded up."""
        self.left(now)
        return -(-(self.capacity * self.period - self._level) * 1000 // self.period)

    def set_missing(self, thousandths: int, at: int) -> None:
        """Set what `missing` returned at a time, whatever the capacity was."""
        self._level, self._at = self.capacity * self.period - thousandths * self.period // 1000, at

    def resize(self, capacity: int, now: int) -> None:
        """Set another capacity; what was taken stays taken."""
        self.left(now)
        self._level += (capacity - self.capacity) * self.period
        self.capacity = capacity


@dataclass(frozen=True, slots=True)
class Left:
    """What is left of a quota.

    Attributes:
        reset: nanoseconds until it is full again.
    """

    unit: Unit
    limit: int
    remaining: int
    reset: int


@dataclass(frozen=True, slots=True)
class Exceeded:
    """The limit that a request exceeds.

    Attributes:
        remaining: of it.
        asked: how much the request needs.
        wait: nanoseconds until trying again makes sense.
    """

    unit: Unit
    period: int
    limit: int
    remaining: int
    asked: int
    wait: int

    @property
    def never(self) -> bool:
        """Whether the request is larger than the limit."""
        return self.asked > self.limit


class Quota:
    """The buckets of one key. Thread-safe.

    Args:
        limits: of the key.
        clock: returns nanoseconds.
        full_at: when all buckets were full; None is now.
    """

    def __init__(self, limits: Limits, clock: Callable[[], int], *, full_at: int | None = None) -> None:
        self._clock, self._full_at = clock, full_at
        self._lock = threading.Lock()
        self._buckets: dict[tuple[Unit, int], Bucket] = {}
        self.resize(limits)

    def resize(self, limits: Limits) -> None:
        """Set other limits; what was used stays used."""
        with self._now() as now:
            wanted = {(unit, period): amount for unit, period, amount in limits.each()}
            kept = {place: bucket for place, bucket in self._buckets.items() if place in wanted}
            for (unit, period), amount in wanted.items():
                if (unit, period) in kept:
                    kept[unit, period].resize(amount, now)
                else:
                    full_at = now if self._full_at is None else self._full_at
                    kept[unit, period] = Bucket(amount, period, full_at)
            self._buckets, self._full_at = kept, None

    def take(self, unit: Unit, amount: int) -> Exceeded | None:
        """Take `amount` from all buckets of a unit, or nothing: then return the limit that takes longest to allow it."""
        with self._now() as now:
            buckets = [bucket for (counted, _), bucket in self._buckets.items() if counted is unit]
            short = [bucket for bucket in buckets if bucket.left(now) < amount]
            if short:
                worst = max(short, key=lambda bucket: (amount > bucket.capacity, bucket.wait(amount, now)))
                left, wait = max(0, worst.left(now)), worst.wait(amount, now)
                return Exceeded(unit, worst.period, worst.capacity, left, amount, wait)
            for bucket in buckets:
                bucket.add(-amount, now)
            return None

    def missing_of_day(self) -> dict[str, float]:
        """Return how far each limit of a day is from full, by unit. It is what a restart has to know."""
        with self._now() as now:
            return {
                str(unit): bucket.missing(now) / 1000
                for (unit, period), bucket in self._buckets.items()
                if period == DAY
            }

    def set_missing_of_day(self, unit: Unit, missing: float, at: int) -> None:
        """Restore what `missing_of_day` told of a unit at an earlier time."""
        with self._lock:
            if (unit, DAY) in self._buckets:
                self._buckets[unit, DAY].set_missing(round(missing * 1000), at)

    def used(self, unit: Unit, amount: int, at: int) -> None:
        """Take what was used at an earlier time; times increase from call to call."""
        with self._lock:
            for (counted, _), bucket in self._buckets.items():
                if counted is unit:
                    bucket.add(-amount, at)

    def give_back(self, unit: Unit, amount: int) -> None:
        """Give back what was taken and not used."""
        with self._now() as now:
            for (counted, _), bucket in self._buckets.items():
                if counted is unit:
                    bucket.add(amount, now)

    def left(self) -> tuple[Left, ...]:
        """Return what is left of each unit that has a limit: of several, the one with the least left."""
        with self._now() as now:
            found: dict[Unit, Left] = {}
            for (unit, _), bucket in self._buckets.items():
                remaining = max(0, bucket.left(now))
                if unit not in found or remaining < found[unit].remaining:
                    found[unit] = Left(unit, bucket.capacity, remaining, bucket.wait(bucket.capacity, now))
            return tuple(found.values())

    @contextmanager
    def _now(self) -> Iterator[int]:
        with self._lock:
            yield self._clock()
