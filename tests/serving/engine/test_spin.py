"""OpenMP's threads spin while the CPUs are idle, and hardly beside other processes; measured by CPU time of the real libgomp."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_endpoints.nano import FOLDER as NANO
from llama_serving.engine import spin
from llama_serving.engine.cpus import affinity
from llama_serving.engine.spin import INTERVAL_S, SpinControl


class Clock:
    """Time that a test moves, and what other processes took of the CPUs meanwhile."""

    def __init__(self) -> None:
        self.now = 0.0
        self.taken: float | None = 5.0

    def passes(self, seconds: float, *, others: float) -> None:
        """Seconds, in which others take a share of this process's CPUs."""
        assert self.taken is not None
        self.now += seconds
        self.taken += seconds * others * affinity()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def control(clock: Clock) -> Iterator[SpinControl]:
    import torch  # noqa: F401  (brings libgomp)

    made = SpinControl({}, others=lambda: clock.taken, clock=lambda: clock.now)
    yield made
    made.end()


def test_it_begins_short_and_follows_what_others_take(control: SpinControl, clock: Clock) -> None:
    assert not control.short
    control.adjust()
    assert control.short
    said = []
    for others in (0.0, 0.05, 0.1, 0.3, 0.1, 0.05, 0.1, 1.0, -0.01):
        clock.passes(INTERVAL_S, others=others)
        control.adjust()
        said.append(control.short)
    # Between the two thresholds it stays as it is. (An interval may end before the system has counted what was ours.)
    assert said == [False, False, False, True, True, False, False, True, False]


def test_it_looks_now_and_then(control: SpinControl, clock: Clock) -> None:
    control.adjust()
    clock.passes(INTERVAL_S / 2, others=0.0)
    control.adjust()
    assert control.short  # (too early to look)
    clock.passes(INTERVAL_S / 2, others=0.0)
    control.adjust()
    assert not control.short


def test_what_others_took_is_shared_out_over_the_whole_interval(control: SpinControl, clock: Clock) -> None:
    control.adjust()
    clock.passes(60, others=0.01)  # an idle engine has not looked
    control.adjust()
    assert not control.short
    clock.passes(60, others=0.2)
    control.adjust()
    assert control.short


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_an_operators_word_stands(name: str, clock: Clock) -> None:
    control = SpinControl({name: "active" if "POLICY" in name else "5"}, others=lambda: clock.taken)
    control.adjust()
    assert not control.short


def test_without_figures_nothing_is_touched(clock: Clock) -> None:
    clock.taken = None
    control = SpinControl({}, others=lambda: clock.taken)
    control.adjust()
    assert not control.short


def test_without_libgomp_nothing_is_touched(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spin, "libgomp", lambda: None)
    control = SpinControl({}, others=lambda: clock.taken, clock=lambda: clock.now)
    for _ in range(3):
        control.adjust()
        clock.passes(1, others=1.0)
    assert not control.short


STAT = """\
cpu  100 0 0 0 0 0 0 0 0 0
cpu0 1000 20 300 99999 8888 40 5 6 7 8
cpu1 100 200 300 99999 8888 10 0 600 7 8
cpu10 77777 0 0 0 0 0 0 0 0 0
intr 1 2 3
"""


def test_others_are_what_keeps_our_cpus_busy_beside_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stat").write_text(STAT)
    monkeypatch.setattr(spin, "allowed", lambda: frozenset({0, 1}))
    monkeypatch.setattr("time.process_time", lambda: 4.5)
    monkeypatch.setattr("os.sysconf", lambda _: 100)
    assert spin.others_seconds(tmp_path / "stat") == pytest.approx(13.71 + 12.10 - 4.5)
    (tmp_path / "stat").write_text("intr 1 2 3\n")
    assert spin.others_seconds(tmp_path / "stat") is None
    assert spin.others_seconds(tmp_path / "nowhere") is None


def test_this_system_is_read() -> None:
    if not Path("/proc/stat").exists():
        pytest.skip("this system has no /proc/stat")
    assert spin.others_seconds() is not None


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
from llama_serving.sampling_params import SamplingParams
from llama_endpoints.nano import FOLDER as NANO
from llama_serving.engine import spin

busy = [True]
taken = [0.0]

def others():
    taken[0] += 1e6 * busy[0]
    return taken[0]

spin.others_seconds, spin.INTERVAL_S = others, 1e-9
if sys.argv[1] == "batching":
    from llama_serving.engine.batching.factory import start
    engine = start(Path(sys.argv[2]), dtype="float32", context=64)
else:
    from llama_serving.engine.pipeline import PipelineEngine
    engine = PipelineEngine(Path(sys.argv[2]), dtype="float32")
for busy[0] in (True, False, True):
    list(engine.submit([1, 300], SamplingParams(max_new_tokens=12)))
    print(engine._thread.spin.short)
engine.close()
print(engine._thread.spin.short)
"""


@pytest.mark.parametrize("engine", ["batching"])
def test_an_engine_adjusts_it_while_it_computes(engine: str) -> None:
    env = {name: text for name, text in os.environ.items() if name not in spin.CHOSEN_BY_OPERATOR}
    done = subprocess.run(
        [sys.executable, "-c", ENGINES, engine, str(NANO)], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "False", "True", "False"]
