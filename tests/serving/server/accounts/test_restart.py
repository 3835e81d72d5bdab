"""Limits of a day after a restart: what is left is what it would be without the restart."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_serving.contract.request import Completion, Parameters, ReplyShape, Request
from llama_serving.errors import BadRequest, QueueFull, RateLimited
from llama_serving.sampling_params import SamplingParams
from llama_serving.server.accounts import meter as meters
from llama_serving.server.accounts.accounts import Accounts
from llama_serving.server.accounts.keys import Key, KeyRing
from llama_serving.server.accounts.meter import RequestMeter
from llama_serving.server.accounts.quotas import Limits
from llama_serving.server.accounts.record import Arrival

MILLISECOND = 10**6
BOOT_S = 1_900_000_000
"""The time on the wall when the clocks of these tests begin."""
ASKED = Request((Completion("a"),), Parameters(), ReplyShape.COMPLETION, ("prompt",), "")


@dataclass
class Time:
    """Stands for the module `time`; milliseconds pass when told to."""

    ms: int = 0

    def time(self) -> float:
        return BOOT_S + self.ms / 1e3

    def monotonic(self) -> float:
        return self.ms / 1e3

    def nanoseconds(self) -> int:
        return self.ms * MILLISECOND


@dataclass
class Lines:
    """An audit in memory: its records as JSON."""

    found: list[dict[str, Any]] = field(default_factory=list)

    def put(self, record: Callable[[], dict[str, Any]]) -> None:
        self.found.append(json.loads(json.dumps(record())))


@dataclass
class Sequence:
    """A sequence that ends when told to."""

    prompt_tokens: int
    finish_reason: str = "length"
    handle: Any = None

    def __post_init__(self) -> None:
        self.handle = SimpleNamespace(count=0, error=None, first_at=None, when_over=self._when_over)

    def _when_over(self, tell: Callable[[Any], None]) -> None:
        self.tell = tell

    def end(self, count: int) -> None:
        self.handle.count = count
        self.tell(self.handle)


@dataclass(frozen=True)
class Step:
    """A request that begins `after_ms`; its sequences end after so long each, with a share of their tokens."""

    after_ms: int
    prompt: int
    max_new: int
    ends: tuple[tuple[int, int], ...]
    fate: str


STEPS = st.builds(
    Step,
    st.integers(0, 9 * 3600 * 1000),
    st.integers(1, 40),
    st.integers(0, 60),
    st.lists(st.tuples(st.integers(0, 5 * 3600 * 1000), st.integers(0, 100)), min_size=1, max_size=3).map(
        tuple
    ),
    st.sampled_from(("answered", "answered", "answered", "bad", "no place", "gone")),
)
LIMITS = st.builds(
    Limits,
    requests_per_minute=st.none() | st.integers(1, 5),
    requests_per_day=st.none() | st.integers(1, 30),
    tokens_per_day=st.none() | st.integers(1, 2000),
).filter(lambda limits: limits.daily)


class Server:
    """Accounts of one server, and its events in their order."""

    def __init__(self, time: Time, limits: Limits) -> None:
        self.time, self.lines = time, Lines()
        self.accounts = self.started(limits)
        self.accounts._audit = self.lines  # type: ignore[assignment]
        self.events: list[tuple[int, Callable[[], None]]] = []

    def started(self, limits: Limits) -> Accounts:
        accounts = Accounts(KeyRing((Key("a", b"", limits),)), clock=self.time.nanoseconds)
        accounts.restore(self.lines.found, self.time.time())
        return accounts

    def pass_until(self, ms: int | None) -> None:
        """Let time pass, with what happens meanwhile; with None until nothing more happens."""
        while self.events and (ms is None or min(self.events, key=_when)[0] <= ms):
            event = min(self.events, key=_when)
            self.events.remove(event)
            self.time.ms = max(self.time.ms, event[0])
            event[1]()
        self.time.ms = self.time.ms if ms is None else max(self.time.ms, ms)

    def do(self, step: Step) -> None:
        self.pass_until(self.time.ms + step.after_ms)
        meter = self.accounts.meter(self.accounts._ring.keys[0], Arrival("r", "/v1/completions", "127.0.0.1"))
        try:
            meter.admit()
            self._run(meter, step)
        except (RateLimited, BadRequest, QueueFull) as error:
            meter.failed(error)
            meter.answered(error.status)
        else:
            meter.answered(499 if step.fate == "gone" else 200)

    def _run(self, meter: RequestMeter, step: Step) -> None:
        if step.fate == "bad":
            raise BadRequest("no", code="invalid_value")
        params = SamplingParams(max_new_tokens=step.max_new)
        prompt = SimpleNamespace(token_ids=(1,) * step.prompt)
        one = SimpleNamespace(prompt=prompt, params=(params,) * len(step.ends))
        meter.prepared(ASKED, [one], "nano")  # type: ignore[list-item]
        for number, (later_ms, share) in enumerate(step.ends):
            if step.fate == "no place" and number == len(step.ends) - 1:
                raise QueueFull("full")
            sequence = Sequence(step.prompt)
            meter.submitted(sequence, params)  # type: ignore[arg-type]
            count = step.max_new * share // 100
            self.events.append((self.time.ms + later_ms, lambda ended=sequence, count=count: ended.end(count)))  # type: ignore[misc]


def _when(event: tuple[int, Callable[[], None]]) -> int:
    return event[0]


def missing(accounts: Accounts) -> dict[str, float]:
    return accounts._quotas["a"].missing_of_day()


@settings(deadline=None)
@given(LIMITS, st.lists(STEPS, max_size=25), st.integers(0, 30 * 3600 * 1000), st.booleans())
def test_a_restart_changes_nothing(limits: Limits, steps: list[Step], idle_ms: int, running: bool) -> None:
    """After any history, also one of weeks at the limit, and while requests run that are told of by a later line."""
    time = Time()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meters, "time", time)
        server = Server(time, limits)
        for step in steps:
            server.do(step)
        server.pass_until(None)
        server.pass_until(time.ms + idle_ms)
        again = server.started(limits)
        assert missing(again) == pytest.approx(missing(server.accounts), abs=0.01)
        assert all(one["key"] == "a" for one in server.lines.found)
        if running:  # (a second restart finds what the first server and the second one wrote)
            server.accounts, again._audit = again, server.lines  # type: ignore[assignment]
            for step in steps[:5]:
                server.do(step)
            server.pass_until(None)
            assert missing(server.started(limits)) == pytest.approx(missing(again), abs=0.01)


OLD = {"key": "a", "prompt_tokens": 0, "completion_tokens": 0, "ms": 0.0, "time": "2030-03-17T17:46:40.000Z"}


@pytest.mark.parametrize(
    ("error", "model", "counts"),
    [
        (None, "nano", True),
        ("queue_full", "nano", True),
        ("rate_limit_exceeded", "nano", True),
        ("rate_limit_exceeded", None, False),
        ("invalid_value", None, True),
    ],
)
def test_lines_that_do_not_tell_the_quota_count_by_their_error(
    error: str | None, model: str | None, counts: bool
) -> None:
    time = Time()
    line = {**OLD, "status": 429, "error": error, "model": model}
    accounts = Accounts(KeyRing((Key("a", b"", Limits(requests_per_day=10)),)), clock=time.nanoseconds)
    accounts.restore([line], time.time())
    assert missing(accounts) == {"requests": float(counts)}


def test_a_lower_limit_keeps_what_was_used() -> None:
    time = Time()
    accounts = Accounts(KeyRing((Key("a", b"", Limits(tokens_per_day=100)),)), clock=time.nanoseconds)
    line = {**OLD, "status": 200, "error": None, "model": "nano", "missing_of_day": {"tokens": 700.25}}
    accounts.restore([line], time.time())
    assert missing(accounts) == {"tokens": 700.25}
