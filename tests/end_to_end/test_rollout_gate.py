"""`rollout --gate`: both deployments do a task before traffic moves, by azure-ai-ml's real client against an Azure on loopback."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("azure.ai.ml", reason="the extra azure is not installed")

from llama_endpoints.evaluation.targets.endpoint_target import EndpointTarget
from tests.support.fake_azure.desk import BLUE, ENDPOINT, GREEN, ROOT, WHERE, Desk, a_desk
from tests.support.sandboxes import needs_sandbox

PROBLEMS, ALL = 30, 164
GATE = ("--gate", "infilling=0", "--gate-data", "infilling=data.jsonl")
TO_GREEN = (
    *("rollout", "--endpoint", ENDPOINT, "--to", GREEN, "--over", "0", "--probes", "1", "--max-slowdown", "0"),
    *("--steps", "100", "--mirror", "0"),
)


def line(number: int) -> dict[str, Any]:
    return {
        "task_id": f"P/{number}",
        "entry_point": "f",
        "prompt": f"def f(x):  # {number}\n",
        "suffix": "",
        "canonical_solution": f"    return x + {number}\n",
        "test": "def check(candidate): ...\n",
    }


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with a_desk(tmp_path, monkeypatch) as made:
        made.up(BLUE, GREEN)
        made.azure.serving.asked.clear()
        write(made, PROBLEMS)
        solves(made, BLUE, range(0, ALL, 2))
        yield made


def write(desk: Desk, problems: int) -> None:
    """The gate's data."""
    text = "".join(json.dumps(line(number)) + "\n" for number in range(problems))
    (desk.folder / "data.jsonl").write_text(text)


def solves(desk: Desk, deployment: str, solved: range | set[int], *, seconds: float = 0) -> None:
    """The deployment writes what is missing in these problems, and something else in the others; each takes so long."""

    def container(raw: bytes) -> tuple[int, object]:
        time.sleep(seconds)
        (item,) = json.loads(raw)["input_data"]["input_string"]
        text = "    pass\n"
        if isinstance(item, dict) and int(item["prefix"].split("#")[1]) in solved:
            text = f"    return x + {int(item['prefix'].split('#')[1])}\n"
        return 200, [{"0": text, "details": [{"finish_reason": "stop", "usage": {"completion_tokens": 3}}]}]

    desk.azure.serving.containers[deployment] = container


def endpoint(desk: Desk) -> dict[str, Any]:
    found = desk.azure.resources.of("onlineEndpoints", ENDPOINT)
    assert found is not None
    return found


def test_an_equal_model_passes_and_the_tags_say_so(desk: Desk) -> None:
    solves(desk, GREEN, range(0, ALL, 2))
    done = desk.run(*TO_GREEN, *GATE)
    assert done.exit_code == 0, done.output
    assert "infilling=0: exact match green 0.5000, codellama-7b-hf 0.5000, difference +0.0000" in done.output
    assert desk.traffic == {GREEN: 100}
    assert endpoint(desk)["tags"]["rollout-gates"] == "infilling=0"
    assert desk.azure.serving.asked[GREEN] == PROBLEMS + 2, "once, and two probes"
    assert "which passed infilling=0: done" in desk.run("status", "--endpoint", ENDPOINT).output


def test_a_loss_of_three_points_is_caught(desk: Desk) -> None:
    write(desk, ALL)
    solves(desk, GREEN, set(range(10, ALL, 2)))
    refused = desk.run(*TO_GREEN, *GATE)
    assert refused.exit_code == 1, refused.output
    assert "green gets no traffic: exact match of infilling is 0.4695, -0.0305" in refused.output
    assert "a loss of more than 0. Nothing was changed." in refused.output
    assert (desk.traffic, desk.azure.resources.changes) == ({BLUE: 100}, [])
    accepted = desk.run(*TO_GREEN, "--gate", "infilling=0.05", *GATE[2:])
    assert accepted.exit_code == 0, accepted.output
    assert desk.azure.serving.asked[GREEN] == ALL + 3, "the samples are kept"


def test_a_gate_that_was_passed_is_not_run_again(desk: Desk) -> None:
    solves(desk, GREEN, range(0, ALL, 2))
    desk.azure.resources.failing[ENDPOINT] = [None, ("InternalError", "It is not our day.")]
    steps = (*TO_GREEN[:-4], "--steps", "10,100", "--mirror", "0")
    desk.run(*steps, *GATE)
    desk.azure.serving.asked.clear()
    done = desk.run(*steps, "--gate", "infilling=0", *GATE[2:])
    assert done.exit_code == 0, done.output
    assert desk.azure.serving.asked[GREEN] <= 3


def test_other_settings_of_a_deployment_are_other_samples(desk: Desk) -> None:
    solves(desk, GREEN, set())
    assert desk.run(*TO_GREEN, *GATE).exit_code == 1
    deployed = desk.azure.resources.of("onlineEndpoints", ENDPOINT, GREEN)
    assert deployed is not None
    deployed["properties"]["environmentVariables"] = {"LLAMA_DTYPE": "bfloat16"}
    solves(desk, GREEN, range(0, ALL, 2))
    assert desk.run(*TO_GREEN, *GATE).exit_code == 0


def test_a_deployment_that_does_not_answer_is_refused(desk: Desk) -> None:
    desk.azure.serving.containers[GREEN] = lambda raw: (
        (400, {"error": {"code": "bad", "message": "no"}}) if b"prefix" in raw else (200, [{"0": "x"}])
    )
    refused = desk.run(*TO_GREEN, *GATE)
    assert refused.exit_code == 1, refused.output
    assert "green did not answer 100% of the requests of the gate infilling=0" in refused.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--gate", "humaneval"), "write TASK=MARGIN"),
        (("--gate", "humaneval=1"), "write TASK=MARGIN"),
        (("--gate", "humaneval=-0.1"), "write TASK=MARGIN"),
        (("--gate", "toxigen=0"), "Tasks that can be one: humaneval"),
        (("--gate", "infilling=0", "--gate-data", "mbpp=data.jsonl"), "Invalid --gate-data"),
        (("--gate", "mbpp=0"), "give --gate-data mbpp=FILE"),
        (("--gate", "infilling=0", "--gate-data", "infilling=none.jsonl"), "none.jsonl is not a file"),
        (
            ("--gate", "humaneval=0", "--gate-data", "humaneval=data.jsonl"),
            "Allow it with --run-generated-code",
        ),
    ],
)
def test_what_cannot_be_a_gate_is_a_sentence(desk: Desk, words: tuple[str, ...], said: str) -> None:
    refused = desk.run(*TO_GREEN, *words)
    assert (refused.exit_code, said in refused.output) == (2, True), refused.output
    assert not desk.azure.serving.asked
    assert desk.azure.resources.changes == []


def test_killed_while_the_gate_runs_it_goes_on(desk: Desk) -> None:
    """Four at a time, 0.03 s each: in the half second that a crash may lose are 66 answers at most."""
    write(desk, ALL)
    solves(desk, GREEN, range(0, ALL, 2), seconds=0.03)
    command = (sys.executable, "-m", "llama_endpoints", *TO_GREEN, *GATE, *WHERE)
    given = {**desk.azure.environment(), "PYTHONPATH": f"{ROOT / 'deployment'}:{ROOT / 'score'}"}
    with subprocess.Popen(command, env=given, cwd=desk.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:  # fmt: skip
        until = time.monotonic() + 60
        while desk.azure.serving.asked[GREEN] < 130:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert desk.azure.resources.changes == []
    desk.azure.serving.asked.clear()
    done = desk.run(*TO_GREEN, *GATE)
    assert done.exit_code == 0, done.output
    assert desk.azure.serving.asked[BLUE] == 2, "its samples were there"
    assert desk.azure.serving.asked[GREEN] <= ALL + 2 - 50, "and some of the new one's"
    assert desk.traffic == {GREEN: 100}


def test_ctrl_c_while_the_gate_runs_says_how_it_goes_on(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(EndpointTarget, "generate", interrupted)
    ended = desk.run(*TO_GREEN, *GATE)
    assert (ended.exit_code, "Run the same command again" in ended.output) == (130, True), ended.output
    assert desk.azure.resources.changes == []


def test_code_is_run_for_a_gate(desk: Desk) -> None:
    needs_sandbox()
    rows = [{"task_id": f"H/{n}", "entry_point": "f", "prompt": f'def f(x):\n    """# {n}"""\n',
             "test": f"def check(candidate):\n    assert candidate(1) == {n}\n"} for n in range(6)]  # fmt: skip
    (desk.folder / "human.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def answers(right: bool) -> Any:
        def container(raw: bytes) -> tuple[int, object]:
            (prompt,) = json.loads(raw)["input_data"]["input_string"]
            text = f"    return {prompt.split('#')[1].strip(chr(34) + chr(10)) if right else 'None'}\n"
            return 200, [{"0": text, "details": [{"finish_reason": "stop", "usage": {}}]}]

        return container

    desk.azure.serving.containers.update({BLUE: answers(True), GREEN: answers(False)})
    gate = ("--gate", "humaneval=0.02", "--gate-data", "humaneval=human.jsonl", "--run-generated-code")
    refused = desk.run(*TO_GREEN, *gate)
    assert refused.exit_code == 1, refused.output
    assert "pass@1 of humaneval is 0.0000, -1.0000" in refused.output
