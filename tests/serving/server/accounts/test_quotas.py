"""Quotas: nothing above a limit is ever allowed, and nothing that fits is ever refused."""

from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_serving.server.accounts.accounts import duration, headers
from llama_serving.server.accounts.quotas import DAY, MINUTE, SECOND, Bucket, Limits, Quota, Unit


@dataclass
class Clock:
    """Nanoseconds that only pass when told to."""

    now: int = 10**15

    def __call__(self) -> int:
        return self.now


@dataclass
class Exact:
    """A token bucket by its definition, in fractions."""

    capacity: int
    period: int
    level: Fraction = field(init=False)

    def __post_init__(self) -> None:
        self.level = Fraction(self.capacity)

    def pass_(self, nanoseconds: int) -> None:
        self.level = min(
            Fraction(self.capacity), self.level + Fraction(nanoseconds * self.capacity, self.period)
        )


steps = st.lists(
    st.tuples(st.integers(0, 3 * MINUTE), st.integers(1, 150), st.integers(0, 100)), min_size=1, max_size=40
)


@given(st.integers(1, 120), steps)
def test_a_request_is_admitted_exactly_if_the_definition_has_room_for_it(
    capacity: int, steps: list[tuple[int, int, int]]
) -> None:
    clock, exact = Clock(), Exact(capacity, MINUTE)
    quota = Quota(Limits(tokens_per_minute=capacity), clock)
    for passed, asked, share in steps:
        clock.now += passed
        exact.pass_(passed)
        exceeded = quota.take(Unit.TOKENS, asked)
        assert (exceeded is None) is (exact.level >= asked)
        if exceeded is not None:
            assert exceeded.remaining == int(exact.level)
            assert exceeded.never is (asked > capacity)
            continue
        unused = asked * share // 100
        quota.give_back(Unit.TOKENS, unused)
        exact.level = min(Fraction(capacity), exact.level - asked + unused)
        assert quota.left()[0].remaining == int(exact.level)


@given(st.integers(1, 120), st.integers(1, 120), st.integers(0, MINUTE))
def test_the_wait_that_a_refusal_tells_is_the_shortest_that_helps(
    capacity: int, taken: int, passed: int
) -> None:
    clock = Clock()
    quota = Quota(Limits(requests_per_minute=capacity), clock)
    quota.take(Unit.REQUESTS, min(taken, capacity))
    clock.now += passed
    exceeded = quota.take(Unit.REQUESTS, capacity)
    if exceeded is None:
        return
    clock.now += exceeded.wait - 1
    assert quota.take(Unit.REQUESTS, capacity) is not None
    clock.now += 1
    assert quota.take(Unit.REQUESTS, capacity) is None


@given(st.integers(1, 50), st.integers(1, 50), st.lists(st.integers(1, 20), max_size=20))
def test_a_refusal_of_one_bucket_takes_nothing_from_another(minute: int, day: int, asked: list[int]) -> None:
    quota = Quota(Limits(tokens_per_minute=minute, tokens_per_day=day), Clock())
    admitted = 0
    for amount in asked:
        if quota.take(Unit.TOKENS, amount) is None:
            admitted += amount
        assert quota.left()[0].remaining == min(minute, day) - admitted
    assert admitted <= min(minute, day)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 50))
def test_other_limits_forget_nothing_that_was_used(before: int, after: int, used: int) -> None:
    clock = Clock()
    quota = Quota(Limits(tokens_per_day=before), clock)
    used = min(used, before)
    quota.take(Unit.TOKENS, used)
    quota.resize(Limits(tokens_per_day=after, requests_per_minute=3))
    exceeded = quota.take(Unit.TOKENS, 1)
    assert (exceeded is None) is (after - used >= 1)
    assert quota.take(Unit.REQUESTS, 3) is None
    clock.now += DAY
    quota.resize(Limits())
    assert quota.left() == ()
    assert quota.take(Unit.TOKENS, 10**9) is None


@given(st.integers(1, 10**12), st.integers(0, 10 * DAY))
def test_a_bucket_never_has_more_than_its_capacity(capacity: int, passed: int) -> None:
    bucket = Bucket(capacity, DAY, 0)
    bucket.add(5, 0)
    assert bucket.left(passed) == capacity
    assert bucket.wait(capacity, passed) == 0


def test_a_clock_that_steps_back_takes_nothing() -> None:
    bucket = Bucket(60, MINUTE, 100 * SECOND)
    bucket.add(-60, 100 * SECOND)
    assert bucket.left(50 * SECOND) == 0
    assert bucket.left(101 * SECOND) == 1


def test_what_was_used_before_counts_by_its_age() -> None:
    clock = Clock()
    quota = Quota(Limits(tokens_per_day=86_400), clock, full_at=clock.now - DAY)
    quota.used(Unit.TOKENS, 50_000, clock.now - 40_000 * SECOND)
    assert quota.left()[0].remaining == 76_400
    quota.used(Unit.TOKENS, 30_000, clock.now - 10_000 * SECOND)
    assert quota.left()[0].remaining == 46_400


def test_headers_tell_the_bucket_with_the_least_left() -> None:
    quota = Quota(Limits(requests_per_minute=60, tokens_per_minute=1000, tokens_per_day=500), Clock())
    quota.take(Unit.REQUESTS, 1)
    quota.take(Unit.TOKENS, 100)
    assert headers(quota) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "500",
        "x-ratelimit-remaining-tokens": "400",
        "x-ratelimit-reset-tokens": "4h48m0s",
    }
    assert headers(Quota(Limits(), Clock())) == {}


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0ms"),
        (1, "1ms"),
        (999 * 10**6, "999ms"),
        (SECOND, "1s"),
        (1_250 * 10**6, "1.25s"),
        (MINUTE - 1, "1m0s"),
        (6 * MINUTE, "6m0s"),
        (DAY, "24h0m0s"),
    ],
)
def test_times_are_written_as_openai_does(nanoseconds: int, text: str) -> None:
    assert duration(nanoseconds) == text
