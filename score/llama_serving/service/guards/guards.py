"""All guards of a service: they run at the same time, each in its own threads and within its own time, and fail closed."""

import asyncio
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from llama_serving.contract.content_filter import Finding, blocks
from llama_serving.errors import GuardUnavailable
from llama_serving.service.guards.daemon_pool import BusyError, DaemonPool
from llama_serving.service.guards.guard import Closeable, Guard, Passage, Pending, Stage
from llama_serving.service.guards.held_stream import Windows

_log = logging.getLogger(__name__)

RETRY_AFTER_S: Final = range(5, 16)
"""Seconds; a random one, so that clients do not all retry at once."""
MOST_THREADS: Final = 512
"""Of one guard. Each running check takes one; further checks wait, within their time."""
AT_A_TIME: Final = 8
"""Passages of one request that are checked at a time."""
COMPLAINT_S: Final = 10.0
"""Seconds between two log lines about one guard."""
BOTH: Final = frozenset(Stage)


@dataclass(frozen=True, slots=True)
class Installed:
    """A guard and what the operator wants of it.

    Attributes:
        name: for log, metrics and errors.
        stages: what it checks.
        allow_on_error: what it could not check passes, instead of being refused.
        timeout_s: seconds that one check may take.
    """

    name: str
    guard: Guard
    stages: frozenset[Stage] = BOTH
    allow_on_error: bool = False
    timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class GuardCounts:
    """What one guard has done since the start.

    Attributes:
        checks, blocks, errors: numbers of checks, of those that blocked, and of those that failed.
        seconds: of all checks together.
    """

    name: str
    checks: int
    blocks: int
    errors: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What all guards say of a passage.

    Attributes:
        findings: of all of them.
        pending: from where on the text must not leave yet; None if all of it may.
    """

    findings: tuple[Finding, ...]
    pending: int | None = None


class CheckError(Exception):
    """A guard failed. The message never quotes what it checked."""


class Guards:
    """Checks passages with all guards of their stage. Thread-safe."""

    def __init__(self, installed: Sequence[Installed] = (), windows: Windows | None = None) -> None:
        self.windows = windows or Windows()
        self._installed = tuple(installed)
        self._pools = {one.name: DaemonPool(f"guard {one.name}", MOST_THREADS) for one in installed}
        self._lock = threading.Lock()
        self._counts = {one.name: Counter[str]() for one in installed}
        self._seconds = dict.fromkeys(self._counts, 0.0)
        self._complained = dict.fromkeys(self._counts, float("-inf"))

    def watches(self, stage: Stage) -> bool:
        """Return whether any guard checks this stage."""
        return any(stage in one.stages for one in self._installed)

    def check(self, passages: Sequence[Passage]) -> list[tuple[Finding, ...]]:
        """Return what the guards found in each passage, blocking until the slowest has answered or its time is over.

        Raises:
            GuardUnavailable: a guard failed, and the operator has not allowed what it can't check.
        """
        return [one.findings for one in self.judge(passages)]

    async def acheck(self, passages: Sequence[Passage]) -> list[tuple[Finding, ...]]:
        """Do as `check` for an event loop."""
        return [one.findings for one in await self.ajudge(passages)]

    def judge(self, passages: Sequence[Passage]) -> list[Verdict]:
        """Do as `check`, and say what is pending in passages that are not final."""
        found = []
        for several in _some_at_a_time(passages):
            begun = [self._begin(passage) for passage in several]
            for call in chain.from_iterable(begun):
                wait_for({call.future}, timeout=call.left_s())
            found += [self._settled(calls) for calls in begun]
        return found

    async def ajudge(self, passages: Sequence[Passage]) -> list[Verdict]:
        """Do as `judge` for an event loop."""
        found = []
        for several in _some_at_a_time(passages):
            begun = [self._begin(passage) for passage in several]
            await asyncio.gather(*map(_ended, chain.from_iterable(begun)))
            found += [self._settled(calls) for calls in begun]
        return found

    def counts(self) -> tuple[GuardCounts, ...]:
        """Return what each guard has done."""
        with self._lock:
            return tuple(
                GuardCounts(name, each["checks"], each["blocks"], each["errors"], self._seconds[name])
                for name, each in self._counts.items()
            )

    def close(self) -> None:
        """Close the guards that hold something open."""
        for one in self._installed:
            if isinstance(one.guard, Closeable):
                one.guard.close()

    def _begin(self, passage: Passage) -> list["_Call"]:
        return [self._call(one, passage) for one in self._installed if passage.stage in one.stages]

    def _call(self, one: Installed, passage: Passage) -> "_Call":
        begun = time.monotonic()
        try:
            future = self._pools[one.name].submit(lambda: _timed(one.guard, passage))
        except BusyError as error:
            future = Future()
            future.set_exception(error)
        return _Call(one, future, begun)

    def _settled(self, calls: Sequence["_Call"]) -> Verdict:
        """Count all calls; then fail if one of them did."""
        found: list[Finding] = []
        pending: list[int] = []
        failed = None
        for call in calls:
            try:
                seen, seconds = call.result()
            except CheckError as error:
                self._count(call, time.monotonic() - call.begun, "errors")
                self._complain(call.installed, error)
                if not call.installed.allow_on_error:
                    failed = call.installed.name
            else:
                findings = [one for one in seen if isinstance(one, Finding)]
                self._count(call, seconds, *(["blocks"] if blocks(findings) else []))
                found += findings
                pending += [one.start for one in seen if isinstance(one, Pending)]
        verdict = Verdict(tuple(found), min(pending, default=None))
        if blocks(found):
            return verdict  # what one guard blocks needs no other
        if failed is not None:
            again_s = random.choice(RETRY_AFTER_S)  # noqa: S311
            raise GuardUnavailable(
                f"The guard `{failed}` could not check this request, so nothing was sent. Try again in {again_s} s.",
                code="guard_unavailable",
                retry_after=again_s,
            )
        return verdict

    def _count(self, call: "_Call", seconds: float, *also: str) -> None:
        with self._lock:
            self._counts[call.installed.name].update(("checks", *also))
            self._seconds[call.installed.name] += seconds

    def _complain(self, one: Installed, error: CheckError) -> None:
        """Log a failure, once in a while."""
        now = time.monotonic()
        with self._lock:
            if now - self._complained[one.name] < COMPLAINT_S:
                return
            self._complained[one.name] = now
        done = "what it could not check passes" if one.allow_on_error else "requests are refused"
        _log.error("the guard %s failed (%s): %s", one.name, error, done)


@dataclass(frozen=True, slots=True)
class _Call:
    """A check that runs in a thread; `begun` is `time.monotonic()` seconds."""

    installed: Installed
    future: "Future[tuple[tuple[Finding | Pending, ...], float]]"
    begun: float

    def left_s(self) -> float:
        """Seconds that it may still take."""
        return max(0.0, self.begun + self.installed.timeout_s - time.monotonic())

    def result(self) -> tuple[tuple[Finding | Pending, ...], float]:
        """Return what was found and the seconds that it took.

        Raises:
            CheckError: the guard failed, or has not answered in time.
        """
        if self.future.cancelled() or self.future.cancel():  # it waited until its time was over
            raise CheckError(f"no thread was free for {self.installed.timeout_s:g} s")
        if not self.future.done():
            raise CheckError(f"took more than {self.installed.timeout_s:g} s")
        error = self.future.exception()
        if error is None:
            return self.future.result()
        raise CheckError(
            "the system has no thread for it" if isinstance(error, BusyError) else type(error).__name__
        )


def _some_at_a_time(passages: Sequence[Passage]) -> Iterator[Sequence[Passage]]:
    for first in range(0, len(passages), AT_A_TIME):
        yield passages[first : first + AT_A_TIME]


async def _ended(call: _Call) -> None:
    """Wait until a call has ended or its time is over. It may run on in its thread."""
    waited = asyncio.wrap_future(call.future)
    try:
        await asyncio.wait({waited}, timeout=call.left_s())
    finally:
        if not waited.cancel() and not waited.cancelled():
            waited.exception()  # (or the loop would log its message, which could quote the text)


def _timed(guard: Guard, passage: Passage) -> tuple[tuple[Finding | Pending, ...], float]:
    begun = time.perf_counter()
    found: Any = guard.check(passage)
    if not isinstance(found, Sequence) or not all(isinstance(one, Finding | Pending) for one in found):
        raise TypeError
    return tuple(found), time.perf_counter() - begun


NO_GUARDS: Final = Guards()
"""What a service has unless the operator configures guards."""
