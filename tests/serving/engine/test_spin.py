"""OpenMP's threads spin while the CPUs are free, and hardly beside others: with the real libgomp, which says by its time."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from llama_endpoints.nano import FOLDER as NANO
from llama_serving.engine import spin
from llama_serving.engine.spin import FREE_LOOKS, SpinControl


class Clock:
    """Time that a test moves, and what a thread had of the CPUs meanwhile."""

    def __init__(self) -> None:
        self.now = 0.0
        self.times: tuple[int, int] | None = (0, 0)

    def passes(self, *, ran: float, waited: float) -> None:
        """Seconds that the thread ran and waited, one after the other."""
        assert self.times is not None
        self.now += ran + waited
        self.times = (self.times[0] + int(ran * 1e9), self.times[1] + int(waited * 1e9))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def control(clock: Clock) -> Iterator[SpinControl]:
    import torch  # noqa: F401  (brings libgomp)

    made = SpinControl({}, times=lambda: clock.times, clock=lambda: clock.now)
    yield made
    made.end()


def test_it_begins_short_and_follows_what_others_take(control: SpinControl, clock: Clock) -> None:
    assert not control.short
    control.adjust()
    assert control.short
    said = []
    free = (0.0, 0.005, 0.0, 0.0, 0.0)
    for waited in (*free, 0.02, 0.1, 0.02, *free[1:], 0.01, *free):
        clock.passes(ran=0.2, waited=waited)
        control.adjust()
        said.append(control.short)
    # Spinning after five free looks, short from the contended one, and again until five in a row are free.
    assert said == [*[True] * 4, False, False, *[True] * 6, *[True] * 5, False]


def test_it_looks_now_and_then(control: SpinControl, clock: Clock) -> None:
    control.adjust()
    clock.passes(ran=0.05, waited=0.0)
    control.adjust()
    assert control.short  # (too early to look)
    clock.now += 60  # an idle engine has neither run nor waited
    clock.times = (55_000_000, 0)
    for _ in range(FREE_LOOKS):
        clock.passes(ran=0.2, waited=0.0)
        control.adjust()
    assert not control.short


def test_an_idle_thread_is_not_judged(control: SpinControl, clock: Clock) -> None:
    control.adjust()
    clock.now += 60
    clock.times = (1_000_000, 15_000_000)
    control.adjust()
    clock.passes(ran=0.001, waited=0.0)
    clock.now += 60
    control.adjust()
    assert control.short


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_an_operators_word_stands(name: str, clock: Clock) -> None:
    control = SpinControl({name: "active" if "POLICY" in name else "5"}, times=lambda: clock.times)
    control.adjust()
    assert not control.short


def test_without_figures_nothing_is_touched(clock: Clock) -> None:
    clock.times = None
    control = SpinControl({}, times=lambda: clock.times)
    control.adjust()
    assert not control.short


def test_without_libgomp_nothing_is_touched(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spin, "libgomp", lambda: None)
    control = SpinControl({}, times=lambda: clock.times, clock=lambda: clock.now)
    for _ in range(3):
        control.adjust()
        clock.passes(ran=0.1, waited=0.9)
    assert not control.short


def test_a_thread_knows_what_it_had() -> None:
    before = spin.thread_times()
    if before is None:
        pytest.skip("this kernel keeps no scheduling statistics")
    sum(range(3_000_000))
    after = spin.thread_times()
    assert after is not None
    assert after[0] > before[0]


WAITS = """
import sys, time, torch
from llama_serving.engine.spin import SpinControl, libgomp
torch.set_num_threads(2)
control = SpinControl({})
if sys.argv[1] != "as it comes":
    control.adjust()
    assert control.short
if sys.argv[1] == "short, then ended":
    control.end()
a = torch.ones(1 << 18)
def others():  # CPU seconds of the second thread, which only waits between two products
    return sum(time.process_time() - time.thread_time() for _ in range(1))
a.add_(1)
begin = others()
for _ in range(40):
    a.add_(1)
    until = time.perf_counter() + 0.002  # (this thread is busy with something else)
    while time.perf_counter() < until:
        pass
print(others() - begin)
"""


def spun(mode: str) -> float:
    """CPU seconds that the team's other thread spent, of about 0.08 s in which it had nothing to do."""
    env = {name: text for name, text in os.environ.items() if name not in spin.CHOSEN_BY_OPERATOR}
    done = subprocess.run(
        [sys.executable, "-c", WAITS, mode], env=env, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core has nobody to wait for")
def test_libgomp_spins_less_while_a_team_sleeps() -> None:
    short, ended = spun("short"), spun("short, then ended")
    assert short < ended / 2


ENGINES = """
import sys
from pathlib import Path
from llama_serving.contract.request import SamplingParams
from llama_endpoints.nano import FOLDER as NANO
from llama_serving.engine import spin

waits = [True]
so_far = [0, 0]

def times():
    so_far[waits[0]] += 10**9
    return tuple(so_far)

spin.thread_times, spin.INTERVAL_S = times, 0.0
if sys.argv[1] == "batching":
    from llama_serving.engine.batching.factory import start
    engine = start(Path(sys.argv[2]), dtype="float32", context=64)
else:
    from llama_serving.engine.pipeline import PipelineEngine
    engine = PipelineEngine(Path(sys.argv[2]), dtype="float32")
for waits[0] in (True, False, True):
    list(engine.submit([1, 300], SamplingParams(max_new_tokens=12)))
    print(engine._thread.spin.short)
engine.close()
print(engine._thread.spin.short)
"""


@pytest.mark.parametrize("engine", ["batching", "pipeline"])
def test_an_engine_adjusts_it_while_it_computes(engine: str) -> None:
    env = {name: text for name, text in os.environ.items() if name not in spin.CHOSEN_BY_OPERATOR}
    done = subprocess.run(
        [sys.executable, "-c", ENGINES, engine, str(NANO)], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "False", "True", "False"]
