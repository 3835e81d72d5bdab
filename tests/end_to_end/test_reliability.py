"""`make soak` and `make chaos` in their short form: a sound server and a sound job pass, and each planted defect is found."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from load_tests.reliability import injected
from load_tests.reliability.__main__ import main
from load_tests.reliability.chaos.boundaries import Boundaries, Outcome
from load_tests.reliability.chaos.jobs import BATCH, JOBS
from load_tests.reliability.chaos.starter import Starter, build


def soaked(folder: Path, requests: int, *options: str) -> tuple[int, dict[str, Any]]:
    file = folder / "run.json"
    done = CliRunner().invoke(
        main,
        ["soak", "--requests", str(requests), "--no-batch", "--output", str(file), *options],
        catch_exceptions=False,
    )
    return done.exit_code, json.loads(file.read_text())


# --- soak -------------------------------------------------------------------------------------------


def test_a_sound_server_answers_all_and_holds_nothing(tmp_path: Path) -> None:
    _, run = soaked(tmp_path, 400)  # (too few for a verdict on memory)
    assert run["faults"] == {}
    assert run["outcomes"].keys() == {"answered", "refused", "cancelled", "left"}
    assert {name for name, grown in run["growth_by_request"].items() if grown["low"] > 0} <= {"live", "memory"}
    assert set(run["rests"]["places"]) == set(run["rests"]["blocks"]) == {0.0}
    assert tmp_path.joinpath("run.svg").read_text().startswith("<svg")


def test_a_leak_of_1_kb_a_request_is_found(tmp_path: Path) -> None:
    code, run = soaked(tmp_path, 1000, "--load", "light", "--planted", "leak")
    assert code == 1
    (said,) = run["verdict"]
    assert said.startswith("live grew by")
    assert 900 < run["growth_by_request"]["live"]["slope"] < 2000


def test_a_place_that_is_not_given_back_is_found(tmp_path: Path) -> None:
    code, run = soaked(tmp_path, 300, "--load", "light", "--planted", "place")
    assert code == 1
    assert "a 429, with places left" in run["faults"]


# --- chaos ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def boundaries(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boundaries]:
    with Starter(library, BATCH) as starter:
        yield Boundaries(JOBS["batch"], starter, tmp_path_factory.mktemp("sound"))


def disturbed(boundaries: Boundaries, call: str, fault: str, at: int = 1) -> Outcome:
    outcome = boundaries.disturb(at, fault, call)
    assert outcome is not None
    return outcome


def test_each_call_that_changes_the_folder_is_seen(boundaries: Boundaries) -> None:
    calls = boundaries.calls
    assert calls[0] == "open out.jsonl.journal"
    assert calls[-1] == "unlink out.jsonl.journal"
    assert {call.split()[0] for call in calls} == {
        *("open", "ftruncate", "pwrite", "fdatasync", "fsync", "write", "rename", "unlink")
    }
    assert boundaries.disturb(10 * len(calls), "kill") is None


@pytest.mark.parametrize(
    ("call", "at", "fault", "code"),
    [
        ("pwrite out.jsonl.journal", 2, "torn", -9),  # (the first is its head)
        ("rename out.jsonl", 1, "kill", -9),
        ("write .out.jsonl.part", 1, "enospc", 2),
        ("fdatasync out.jsonl.journal", 2, "eio", 2),
    ],
)
def test_a_disturbed_job_goes_on(boundaries: Boundaries, call: str, at: int, fault: str, code: int) -> None:
    outcome = disturbed(boundaries, call, fault, at)
    assert (outcome.call, outcome.code, outcome.wrong) == (call, code, ())


def test_a_row_lost_at_one_write_is_found(library: Path, tmp_path: Path) -> None:
    with Starter(library, BATCH, "row") as starter:
        defective = Boundaries(JOBS["batch"], starter, tmp_path)
        sound = disturbed(defective, "rename out.jsonl", "kill")
        lost = disturbed(defective, "pwrite out.jsonl.journal", "torn", 2)
    assert sound.wrong == ()
    assert lost.wrong


def test_every_planted_defect_is_looked_for() -> None:
    assert {*injected.OF_SERVERS, *injected.OF_JOBS} == injected.DEFECTS.keys()
