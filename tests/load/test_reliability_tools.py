"""The pure parts of `load_tests.reliability`: trends and their intervals, readings of processes, files of runs."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from load_tests.reliability import report, runs
from load_tests.reliability.chaos import boundaries
from load_tests.reliability.chaos.boundaries import FAULTS, Outcome
from load_tests.reliability.figures import FIGURES
from load_tests.reliability.processes import held
from load_tests.reliability.soak import LIMITS, Rest, Soak
from load_tests.reliability.trend import student, trend

LEAK = 1000.0
"""Bytes a request."""


def noisy(
    seed: int, slope: float, *, points: int = 60, noise: float = 1e5, kept: float = 0.5
) -> tuple[list[float], list[float]]:
    """Memory after every thousand requests: a warm-up, then a slope under noise that keeps a share of its last value."""
    draws, last = random.Random(seed), 0.0
    x = [1000.0 * (n + 1) for n in range(points)]
    y = []
    for requests in x:
        last = kept * last + draws.gauss(0, noise)
        y.append(2.5e8 - 2e7 * np.exp(-requests / 3000) + slope * requests + last)
    return x, y


# --- trends -----------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32), kept=st.floats(0, 0.6))
def test_a_leak_is_found_and_measured_under_noise(seed: int, kept: float) -> None:
    grown = trend(*noisy(seed, LEAK, kept=kept))
    assert grown.exceeds(LIMITS["live"])
    assert 0.8 * LEAK < grown.slope < 1.2 * LEAK


def test_a_server_that_does_not_grow_is_seldom_accused() -> None:
    flat = [trend(*noisy(seed, 0.0)).flat for seed in range(400)]
    assert flat.count(False) <= 8  # (one in 200 is expected)
    assert not any(trend(*noisy(seed, 0.0)).exceeds(LIMITS["live"]) for seed in range(400))


def test_single_outliers_do_not_matter() -> None:
    x, y = noisy(1, 0.0, points=100)
    for at in (40, 60, 99):
        y[at] += 1e9
    assert trend(x, y).excludes(LIMITS["live"])


@given(value=st.floats(-1e9, 1e9), points=st.integers(8, 200))
def test_what_stays_the_same_has_no_slope_and_no_doubt(value: float, points: int) -> None:
    grown = trend(range(points), [value] * points)
    assert (grown.slope, grown.low, grown.high) == pytest.approx((0, 0, 0), abs=1e-6 * max(1.0, abs(value)))


@pytest.mark.parametrize("points", range(7))
def test_from_few_points_nothing_follows(points: int) -> None:
    grown = trend(range(points), [1e9 * n for n in range(points)])
    assert grown.flat
    assert not grown.excludes(1e12)


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(4, 4.604), (6, 3.707), (10, 3.169), (18, 2.878), (120, 2.617)]
)
def test_students_quantiles_are_those_of_the_tables(degrees: int, quantile: float) -> None:
    assert student(degrees) == pytest.approx(quantile, rel=0.02)


# --- verdicts ---------------------------------------------------------------------------------------


def soaked(**grows: float) -> Soak:
    rests = []
    for n in range(1, 41):
        values = {name: 100 + grows.get(name, 0.0) * 100 * n for name in LIMITS}
        rests.append(Rest(at=n, requests=100 * n, memory=0, median_s=0.1, p99_s=0.2, first_s=None, **values))
    return Soak(rests)


def test_each_thing_that_grows_is_named() -> None:
    assert soaked().verdict() == []
    for name, limit in LIMITS.items():
        (said,) = soaked(**{name: 2 * limit}).verdict()
        assert said.startswith(f"{name} grew by")
        assert soaked(**{name: limit / 2}).verdict() == []


def test_a_fault_is_a_verdict_and_so_is_no_cycle() -> None:
    soak = soaked()
    soak.faults["/score: status 500"] += 3
    assert soak.verdict() == ["3 x /score: status 500"]
    assert Soak().verdict() == ["no cycle ended"]
    json.dumps(soak.told())


# --- processes and files ----------------------------------------------------------------------------


def test_what_a_session_holds_is_that_of_all_its_processes() -> None:
    ours = (
        "import os, sys, threading\n"
        "child = os.fork()\n"
        "kept = bytearray(os.urandom(1)) * 20_000_000\n"
        "files = [open(os.devnull) for _ in range(50)]\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "print(flush=True)\n"
        "threading.Event().wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", ours], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        for _ in range(2):
            process.stdout.readline()
        holds = held(process.pid)
        os.killpg(process.pid, 9)
    assert holds.processes == 2
    assert holds.threads == 4
    assert holds.descriptors >= 100
    assert 40e6 < holds.memory < 120e6
    assert held(process.pid).processes == 0


def test_a_runs_file_says_what_was_run_and_where(tmp_path: Path) -> None:
    runs.write(tmp_path / "new" / "run.json", "soak", {"server": "own", "rests": {"at": [1.0, 2.0]}})
    run = json.loads((tmp_path / "new" / "run.json").read_text())
    assert run["kind"] == "soak"
    assert run["rests"] == {"at": [1.0, 2.0]}
    assert run["command"].startswith("python -m load_tests.reliability")
    assert all(run[name] for name in ("date", "version", "machine"))


# --- the report -------------------------------------------------------------------------------------

ABOUT = {"command": "COMMAND", "date": "2026-01-02", "version": "VERSION", "machine": "MACHINE"}


def soak_run(server: str, requests: int, **grows: float) -> dict[str, Any]:
    run = soaked(**grows)
    run.outcomes["answered"] = requests
    return {"kind": "soak", **ABOUT, "server": server, "engine": "batching", "planted": None, **run.told()}


def chaos_run(*wrong: str) -> dict[str, Any]:
    outcomes = [Outcome(at, "write out", fault, -9, ()) for fault in FAULTS for at in (1, 2)]
    outcomes += [Outcome(3, "rename out", "torn", -9, (one,)) for one in wrong]
    return {"kind": "chaos", **ABOUT, "job": "batch", "planted": None, **boundaries.told(outcomes)}


def states(found: list[dict[str, Any]]) -> dict[str, str]:
    rows = re.findall(r"^\| (.+?) \| .+? \| .+? \| (.+?) \| .+? \|$", report.page(found), re.MULTILINE)
    return {promise: state for promise, state in rows if promise in {one.promise for one in FIGURES}}


MEMORY, RECOVERED = FIGURES[9].promise, FIGURES[11].promise


def test_without_runs_no_figure_is_met() -> None:
    assert states([]) == dict.fromkeys((figure.promise for figure in FIGURES), "not run")
    assert len(FIGURES) == 12


@pytest.mark.parametrize(
    ("found", "promise", "state"),
    [
        ([soak_run("own", 1000)], MEMORY, "met so far"),
        ([soak_run(server, 1_000_000) for server in ("own", "azmlinfsrv", "mlflow")], MEMORY, "met"),
        ([soak_run("own", 1_000_000), soak_run("mlflow", 1000, live=5)], MEMORY, "**missed**"),
        ([soak_run("own", 1000, live=5) | {"planted": "leak"}], MEMORY, "not run"),
        ([chaos_run()], RECOVERED, "met"),
        ([chaos_run("a row is lost")], RECOVERED, "**missed**"),
    ],
)
def test_a_figure_is_what_its_runs_say(found: list[dict[str, Any]], promise: str, state: str) -> None:
    said = states(found)
    assert said[promise] == state
    assert all(other == "not run" for name, other in said.items() if name != promise)


def test_what_was_wrong_is_in_the_report() -> None:
    page = report.page([soak_run("own", 1000, threads=1), chaos_run("a row is lost")])
    assert "- Not as promised: threads grew by 1 a request" in page
    assert "- batch, torn at call 3 (rename out): a row is lost" in page
    assert all(value in page for value in ABOUT.values())


def test_the_committed_page_is_what_the_committed_runs_say() -> None:
    assert CliRunner().invoke(report.main, ["--check"]).exit_code == 0
