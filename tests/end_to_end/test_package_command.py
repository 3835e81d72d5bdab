"""`llama-endpoints package` as a real process: full disks, limits and signals leave nothing behind."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from llama_endpoints.devtools.servers import console_script
from llama_endpoints.nano import FOLDER
from llama_serving.catalog import NANO
from tests.support.command import run as in_process

PACKAGE = (console_script("llama-endpoints"), "package", "--checkpoint", "nano")
WEIGHT_BYTES = (FOLDER / "model.safetensors").stat().st_size
TIMEOUT_S = 120

LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
os.execv(sys.argv[2], sys.argv[2:])
"""
"""A file size limit, then the command: every write behind it fails, as on a full disk."""

TINY_DISK = """
mount -t tmpfs -o size="$1" tmpfs "$2" || exit 77
disk="$2"; shift 2
"$@"; code=$?
echo "left: $(ls -A "$disk")"
exit $code
"""
"""A disk of a few pages, then the command, then what is left on the disk; 77 where none can be had."""

STOPPED_IN_THE_MIDDLE = """
import signal, time, tqdm
for number in (signal.SIGHUP, signal.SIGTERM):  # whatever the caller's shell has made of them
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
tqdm.tqdm.update = lambda *_: time.sleep(600)
from llama_endpoints.cli.main import main
main(prog_name="llama-endpoints")
"""
"""The command, which waits once the first file of weights has come in."""


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    folder = tmp_path / "desk"
    folder.mkdir()
    return folder


def run(command: tuple[str, ...], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def told(stderr: str) -> list[str]:
    """What stands on standard error beside the progress bar."""
    return [line for line in re.split(r"[\r\n]+", stderr) if line and not line.startswith("weights:")]


@pytest.mark.parametrize("weights", ["link", "copy", "reference"])
def test_the_command_packages(desk: Path, weights: str) -> None:
    """One of them as a process: the installed command."""
    options = ("--weights", weights, "--output", "made/nano")
    done = (
        run((*PACKAGE, *options), desk) if weights == "link" else in_process(*PACKAGE[1:], *options, cwd=desk)
    )
    assert done.returncode == 0, done.stderr
    assert told(done.stderr) == []
    assert weights != "link" or "weights: 100%" in done.stderr
    verb = {"link": "linked", "copy": "copied", "reference": "referred to"}[weights]
    assert done.stdout == f"made/nano is nano as an MLflow model, {WEIGHT_BYTES:,} bytes of weights {verb}.\n"
    assert (desk / "made" / "nano" / "MLmodel").is_file()
    assert names(desk) == ["made"]
    assert names(desk / "made") == ["nano"]


@pytest.mark.parametrize(
    ("limit", "weights"),
    [
        pytest.param(20_000, "link", id="the tokenizer"),
        pytest.param(WEIGHT_BYTES - 1, "copy", id="the last byte of the weights"),
    ],
)
def test_a_write_that_fails_leaves_nothing(desk: Path, limit: int, weights: str) -> None:
    command = (*PACKAGE, "--weights", weights, "--output", "made/nano")
    done = run((sys.executable, "-c", LIMITED, str(limit), *command), desk)
    assert told(done.stderr) == ["Error: Cannot write made/nano: File too large. Nothing was left behind."]
    assert done.returncode == 2
    assert done.stdout == ""
    assert names(desk) == []


@pytest.mark.parametrize(
    ("size", "weights", "reason"),
    [
        pytest.param("12k", "reference", "No space left on device", id="MLflow's own files"),
        pytest.param("64k", "reference", "No space left on device", id="a copied tree"),
        pytest.param(
            "8m",
            "link",
            r"a copy of the weights \(cannot link: Invalid cross-device link\) "
            rf"needs {WEIGHT_BYTES:,} bytes, "
            r"but [\d,]+ are free \(--weights reference needs none\)",
            id="the weights",
        ),
    ],
)
def test_a_full_disk_leaves_nothing(desk: Path, size: str, weights: str, reason: str) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("a full disk needs Linux's unshare, which is not here")
    command = (*PACKAGE, "--weights", weights, "--output", f"{desk}/made/nano")
    done = run(("unshare", "--mount", "sh", "-c", TINY_DISK, "sh", size, str(desk), *command), desk.parent)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"a disk of our own needs root: {done.stderr.strip()}")
    (sentence,) = told(done.stderr)
    assert re.fullmatch(f"Error: Cannot write {desk}/made/nano: {reason}. Nothing was left behind.", sentence)
    assert done.returncode == 2
    assert done.stdout == "left: \n"


@pytest.mark.parametrize(
    ("number", "code", "overwritten"),
    [
        pytest.param(signal.SIGHUP, 129, False, id="SIGHUP, new"),
        pytest.param(signal.SIGINT, 1, True, id="SIGINT, overwrite"),
    ],
)
def test_a_stop_in_the_middle_leaves_what_was_there(
    desk: Path, *, number: signal.Signals, code: int, overwritten: bool
) -> None:
    if overwritten:
        (desk / "nano").mkdir()
        (desk / "nano" / "MLmodel").write_text("old")
    command = (*PACKAGE[1:], "--weights", "copy", "--overwrite", "--output", "nano")
    process = subprocess.Popen(
        (sys.executable, "-c", STOPPED_IN_THE_MIDDLE, *command),
        cwd=desk,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for_weights(desk, process)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == code
    assert told(stderr) == (["Aborted!"] if number == signal.SIGINT else [])
    assert stdout == ""
    assert names(desk) == (["nano"] if overwritten else [])
    if overwritten:
        assert (desk / "nano" / "MLmodel").read_text() == "old"
        assert names(desk / "nano") == ["MLmodel"]


def wait_for_weights(desk: Path, process: subprocess.Popen[str]) -> None:
    """Until the copy of the weights has begun."""
    until = time.monotonic() + TIMEOUT_S
    name = next(path.name for path in FOLDER.glob("*.safetensors"))
    while not list(desk.glob(f".nano-*/model/artifacts/llama/checkpoint/{name}")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "no weights came"
        time.sleep(0.01)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter for nano's last layer."""
    shape, module = NANO.shape, "base_model.model.model.layers.4.mlp.down_proj"
    folder = tmp_path / "adapter"
    folder.mkdir()
    factors = {
        f"{module}.lora_A.weight": np.full((2, shape.ffn), 0.01, np.float32),
        f"{module}.lora_B.weight": np.full((shape.hidden, 2), 0.01, np.float32),
    }
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["layers.4.mlp.down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_the_command_merges_an_adapter(desk: Path, adapter: Path) -> None:
    done = in_process(*PACKAGE[1:], "--adapter", adapter, "--output", "made/nano", cwd=desk)
    assert done.returncode == 0, done.stderr
    changes, shift, last = done.stdout.splitlines()
    assert changes.startswith("The adapter changes 1 tensors, by ")
    assert shift.startswith("Logits after 8 fixed prompts moved by ")
    assert (
        last == f"made/nano is nano as an MLflow model, {WEIGHT_BYTES:,} bytes of weights merged and written."
    )
    assert names(desk / "made") == ["nano"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_merge_that_is_stopped_leaves_what_was_there(
    desk: Path, adapter: Path, number: signal.Signals
) -> None:
    (desk / "nano").mkdir()
    (desk / "nano" / "MLmodel").write_text("old")
    command = (*PACKAGE[1:], "--adapter", str(adapter), "--overwrite", "--output", "nano")
    process = subprocess.Popen(
        (sys.executable, "-c", STOPPED_IN_THE_MIDDLE, *command),
        cwd=desk,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until = time.monotonic() + TIMEOUT_S
        while not list(desk.glob(".nano-*/model/*.safetensors")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until, "no weights came"
            time.sleep(0.01)
        process.send_signal(number)
        process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
        process.communicate()
    assert (
        process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 1, signal.SIGKILL: -signal.SIGKILL}[number]
    )
    assert (desk / "nano" / "MLmodel").read_text() == "old"
    if number != signal.SIGKILL:  # (which leaves the folder beside it, and nothing in its place)
        assert names(desk) == ["nano"]


@pytest.mark.parametrize("limit", [16, 1_000_000])
def test_a_merge_on_a_full_disk_leaves_nothing(desk: Path, adapter: Path, limit: int) -> None:
    command = (*PACKAGE, "--adapter", str(adapter), "--output", "made/nano")
    done = run((sys.executable, "-c", LIMITED, str(limit), *command), desk)
    sentences = [line for line in told(done.stderr) if not line.startswith("merging:")]
    assert sentences == ["Error: Cannot write made/nano: File too large. Nothing was left behind."]
    assert names(desk) == []
