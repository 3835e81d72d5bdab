"""Processes share a machine's GPUs: each has its own, and releases them at its end."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from llama_serving.errors import SetupError
from llama_serving.hosts import azureml_batch, gpu_assignment
from tests.support.paths import ROOT


@pytest.fixture(autouse=True)
def let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_assignment, "_held", [])


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The driver's folder of a machine with four GPUs."""
    folder = tmp_path / "gpus"
    for number in range(4):
        (folder / f"0000:0{number}:00.0").mkdir(parents=True)
    return folder


CLAIM: Final = """
import sys
from pathlib import Path
from llama_serving.hosts import gpu_assignment
environment = {}
gpu_assignment.claim(int(sys.argv[1]), environment, driver=Path(sys.argv[2]), locks=Path(sys.argv[3]), patience_s=float(sys.argv[4]))
print(environment["CUDA_VISIBLE_DEVICES"], flush=True)
sys.stdin.read()
"""


def process(number: int, machine: Path, *, patience_s: float = 0) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(number), str(machine), str(machine.parent), str(patience_s)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT / "score",
    )  # fmt: skip


def taken(one: "subprocess.Popen[str]") -> str:
    assert one.stdout is not None
    return one.stdout.readline().strip()


def test_each_process_has_its_own(machine: Path) -> None:
    first, second = process(1, machine), process(2, machine)
    try:
        names = [*taken(first).split(","), *taken(second).split(",")]
        assert len(set(names)) == 3
        assert set(names) < set("0123")
        third = process(2, machine)
        _, said = third.communicate(timeout=60)
        assert third.returncode == 1
        assert "other processes have the GPUs 0, 1, 2, 3" in said
        waiting = process(2, machine, patience_s=100)
        first.kill()  # (what it had is free, however it ended)
        assert len(set(taken(waiting).split(",")) | {*names[1:]}) == 4
        waiting.communicate(timeout=60)
    finally:
        for one in (first, second):
            one.kill()
            one.communicate()


def test_only_what_the_environment_names(machine: Path, tmp_path: Path) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "2, MIG-1/0"}
    assert gpu_assignment.claim(2, environment, driver=machine, locks=tmp_path) == ("2", "MIG-1/0")
    assert environment == {"CUDA_VISIBLE_DEVICES": "2,MIG-1/0"}
    assert gpu_assignment.claim(2, environment, driver=machine, locks=tmp_path) == ("2", "MIG-1/0"), (
        "what it has it keeps"
    )
    gpu_assignment._held.clear()
    with pytest.raises(SetupError, match="other processes have"):
        gpu_assignment.claim(1, {"CUDA_VISIBLE_DEVICES": "2"}, driver=machine, locks=tmp_path, patience_s=0)


@pytest.mark.parametrize("visible", ["", "1,2"])
def test_more_than_there_are(machine: Path, tmp_path: Path, visible: str) -> None:
    with pytest.raises(
        SetupError, match=f"LLAMA_BATCH_GPUS is 3, and there are {len(visible.split(',')) if visible else 0}"
    ):
        gpu_assignment.claim(3, {"CUDA_VISIBLE_DEVICES": visible}, driver=machine, locks=tmp_path)
    with pytest.raises(SetupError, match="there are 0 GPUs"):
        gpu_assignment.claim(1, {}, driver=machine / "nothing", locks=tmp_path)


def test_what_does_not_suffice_is_given_back(machine: Path, tmp_path: Path) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "0"}
    gpu_assignment.claim(1, environment, driver=machine, locks=tmp_path)
    gpu_assignment._held.clear()
    with pytest.raises(SetupError, match="other processes"):
        gpu_assignment.claim(4, {}, driver=machine, locks=tmp_path, patience_s=0)
    assert gpu_assignment.claim(3, {}, driver=machine, locks=tmp_path, patience_s=0) == ("1", "2", "3")


def test_a_lock_that_cant_be_opened_is_a_sentence(machine: Path, tmp_path: Path) -> None:
    (tmp_path / "llama-gpu-0.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SetupError, match=r"llama-gpu-0\.lock can't be opened"):
        gpu_assignment.claim(1, {"CUDA_VISIBLE_DEVICES": "0"}, driver=machine, locks=tmp_path)


def test_the_driver_takes_them_before_anything_else(nano_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(nano_model))
    monkeypatch.setenv("LLAMA_BATCH_GPUS", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(
        azureml_batch.Service, "start", lambda *_: pytest.fail("the model was loaded on what it has not taken")
    )
    with pytest.raises(SetupError, match="LLAMA_BATCH_GPUS is 3"):
        azureml_batch.init()
