"""`llama-endpoints rollout` by azure-ai-ml's real client against an Azure on loopback: to the end, taken back, killed and gone on with."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("azure.ai.ml", reason="the extra azure is not installed")

from llama_endpoints.endpoints.rollout import Rollout, TrafficState, forward
from tests.support.fake_azure.desk import BLUE, ENDPOINT, GREEN, ROOT, WHERE, Desk, a_desk
from tests.support.fake_azure.network import Answer

PUT = f"PUT onlineEndpoints/{ENDPOINT}"
TO_GREEN = (
    "rollout",
    "--endpoint",
    ENDPOINT,
    "--to",
    GREEN,
    "--over",
    "0",
    "--probes",
    "2",
    "--max-slowdown",
    "0",
)
TIMEOUT_S = 60


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with a_desk(tmp_path, monkeypatch) as made:
        made.up(BLUE, GREEN)
        made.azure.serving.asked.clear()
        yield made


def tags(desk: Desk) -> dict[str, str]:
    endpoint = desk.azure.resources.of("onlineEndpoints", ENDPOINT)
    assert endpoint is not None
    return dict(endpoint["tags"])


def fails_after(desk: Desk, good: int) -> None:
    """The new deployment answers so often, and then no more."""
    left = iter(range(good))

    def container(_: bytes) -> tuple[int, object]:
        return (
            (200, [{"0": "x"}])
            if next(left, None) is not None
            else (500, {"error": {"message": "secret text"}})
        )

    desk.azure.serving.containers[GREEN] = container


def test_a_dry_run_changes_nothing(desk: Desk) -> None:
    said = desk.run(*TO_GREEN, "--dry-run")
    assert said.output.splitlines() == [
        "> step 1 of 4: codellama-7b-hf 100 %, 10 % mirrored to green",
        "> step 2 of 4: codellama-7b-hf 90 %, green 10 %",
        "> step 3 of 4: codellama-7b-hf 50 %, green 50 %",
        "> step 4 of 4: green 100 %",
        "Nothing was applied.",
    ]
    assert desk.azure.resources.changes == []


def test_to_the_end_and_back_again(desk: Desk) -> None:
    done = desk.run(*TO_GREEN)
    assert done.exit_code == 0, done.output
    assert done.output.endswith("Done: green 100 %.\n")
    assert desk.azure.resources.changes == [PUT] * 5, "four steps, and the mark that it is done"
    asked = desk.azure.serving.asked
    assert asked[GREEN] == asked[BLUE] == 5 * 2, "probed before each step and after the last"
    assert desk.traffic == {GREEN: 100}
    again = desk.run(*TO_GREEN)
    assert (again.exit_code, desk.traffic) == (2, {GREEN: 100})
    back = desk.run("rollout", "--endpoint", ENDPOINT, "--back")
    assert back.output == f"The traffic was restored to {BLUE} 100 %.\n"
    assert desk.traffic == {BLUE: 100}
    assert desk.run("rollout", "--endpoint", ENDPOINT, "--back").exit_code == 2


@pytest.mark.parametrize("steps_done", [0, 1, 4])
def test_where_it_fails_the_traffic_goes_back(desk: Desk, steps_done: int) -> None:
    fails_after(desk, 2 * steps_done)
    failed = desk.run(*TO_GREEN)
    assert failed.exit_code == 1
    assert desk.traffic == {BLUE: 100}
    assert desk.azure.resources.changes == [PUT] * (steps_done + 1 if steps_done else 0)
    endpoint = desk.azure.resources.of("onlineEndpoints", ENDPOINT)
    assert endpoint is not None
    assert not endpoint["properties"]["mirrorTraffic"]
    assert "green answers 500: " in failed.output
    assert "secret text" not in str(tags(desk)), "what a container said is shown and kept nowhere"
    if steps_done:
        assert (
            tags(desk)["rollout-ended"]
            == "taken back: 100.0% of its probes failed, more than 1.0% (status 500)"
        )
    else:
        assert "green gets no traffic" in failed.output


@pytest.mark.parametrize("edited", [{"rollout-steps": "ten"}, {"rollout-was": f"{BLUE}=ninety"}])
def test_tags_that_somebody_edited_are_a_sentence(desk: Desk, edited: dict[str, str]) -> None:
    state = forward(Rollout(GREEN, {BLUE: 100}), -1, TrafficState({BLUE: 100}))
    endpoint = desk.azure.resources.of("onlineEndpoints", ENDPOINT)
    assert endpoint is not None
    endpoint["tags"] = {**state.tags, **edited}
    said = f"{next(iter(edited))}, which must hold"
    shown = desk.run("status", "--endpoint", ENDPOINT)
    assert (shown.exit_code, said in shown.output) == (0, True), shown.output
    for asked in (TO_GREEN, (*TO_GREEN, "--dry-run"), ("rollout", "--endpoint", ENDPOINT, "--back")):
        refused = desk.run(*asked)
        assert (refused.exit_code, said in refused.output) == (2, True), refused.output
        assert isinstance(refused.exception, SystemExit), "a sentence, and no traceback"
    assert desk.azure.resources.changes == []


def test_too_slow_is_no_better(desk: Desk) -> None:
    failed = desk.run(*TO_GREEN, "--max-p95", "0")
    assert failed.exit_code == 1
    assert "green gets no traffic: p95 is" in failed.output


def test_azure_fails_at_a_step(desk: Desk) -> None:
    desk.azure.resources.failing[ENDPOINT] = [None, None, ("InternalError", "It is not our day.")]
    failed = desk.run(*TO_GREEN)
    assert failed.exit_code == 1
    assert "(InternalError) It is not our day" in failed.output
    assert desk.traffic == {BLUE: 100}


def test_a_key_that_expires_on_the_way_is_no_failed_probe(desk: Desk) -> None:
    desk.azure.serving.fronts[ENDPOINT] = [Answer(401, b"{}")]
    assert desk.run(*TO_GREEN).exit_code == 0
    assert desk.traffic == {GREEN: 100}


def test_no_traffic_to_what_is_not_up_or_not_there(desk: Desk) -> None:
    there = desk.azure.resources.of("onlineEndpoints", ENDPOINT, GREEN)
    assert there is not None
    there["properties"]["provisioningState"] = "Failed"
    assert "is Failed and cannot get traffic" in desk.run(*TO_GREEN).output
    missing = desk.run("rollout", "--endpoint", ENDPOINT, "--to", "red")
    assert missing.exit_code == 2
    assert "has no deployment red" in missing.output
    assert desk.run("rollout", "--endpoint", ENDPOINT).exit_code == 2
    assert desk.azure.resources.changes == []


def test_what_somebody_moved_by_hand_is_left_alone(desk: Desk) -> None:
    endpoint = desk.azure.resources.of("onlineEndpoints", ENDPOINT)
    assert endpoint is not None
    endpoint["tags"] = dict(forward(Rollout(GREEN, {BLUE: 100}), -1, TrafficState({BLUE: 100})).tags)
    endpoint["properties"] |= {"traffic": {BLUE: 70, GREEN: 30}, "mirrorTraffic": {}}
    refused = desk.run(*TO_GREEN)
    assert refused.exit_code == 2
    assert "which is not a step of the roll-out" in refused.output
    assert desk.traffic == {BLUE: 70, GREEN: 30}
    other = desk.run("rollout", "--endpoint", ENDPOINT, "--to", BLUE)
    assert "A roll-out to green is in progress" in other.output
    assert desk.run("rollout", "--endpoint", ENDPOINT, "--back").exit_code == 0
    assert desk.traffic == {BLUE: 100}


def with_death(desk: Desk, *, changes: int, number: signal.Signals = signal.SIGKILL) -> str:
    """The command in a process of its own, which is killed while the last of so many changes is under way; what it said."""
    desk.azure.resources.changes.clear()
    polls, desk.azure.resources.polls = desk.azure.resources.polls, 2
    command = (sys.executable, "-m", "llama_endpoints", *TO_GREEN, *WHERE)
    given = {**desk.azure.environment(), "PYTHONPATH": f"{ROOT / 'deployment'}:{ROOT / 'score'}"}
    with subprocess.Popen(
        command, env=given, cwd=desk.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        until = time.monotonic() + TIMEOUT_S
        while len(desk.azure.resources.changes) < changes:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            if len(desk.azure.resources.changes) == changes - 1:
                desk.azure.resources.polls = 10**9  # (the next one does not end while it lives)
            time.sleep(0.001)
        process.send_signal(number)
        said, _ = process.communicate(timeout=TIMEOUT_S)
    desk.azure.resources.polls = polls
    desk.azure.resources.end()
    return said


def test_killed_in_the_middle_another_machine_goes_on(desk: Desk) -> None:
    with_death(desk, changes=2)
    assert desk.traffic == {BLUE: 90, GREEN: 10}, "Azure has gone on with what it was told"
    assert "A roll-out to green is in progress" in desk.run("status", "--endpoint", ENDPOINT).output
    desk.azure.resources.changes.clear()
    done = desk.run(*TO_GREEN)
    assert done.exit_code == 0, done.output
    assert desk.azure.resources.changes == [PUT] * 3, "50, 100, done"
    assert desk.traffic == {GREEN: 100}


def test_stopped_it_says_how_to_look_again(desk: Desk) -> None:
    said = with_death(desk, changes=1, number=signal.SIGINT)
    assert (
        "Stopped waiting for traffic of code-llama. The operation continues in Azure; check it with: llama-endpoints status"
        in said
    )
    assert desk.run("rollout", "--endpoint", ENDPOINT, "--back").exit_code == 0
    assert desk.traffic == {BLUE: 100}
