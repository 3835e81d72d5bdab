"""The command as a real process, on a model that lies in an Azure on loopback: killed in the middle, and gone on with."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("azure.ai.ml", reason="the extra azure is not installed")

from llama_endpoints.download.azure_blobs import RANGE
from llama_endpoints.download.azureml_cache import CACHE
from tests.conftest import ROOT
from tests.support.fake_azure.management import IN_REGISTRY
from tests.support.fake_azure.world import FakeAzure, fake_azure
from tests.support.hubs import Hold
from tests.support.tiny import tiny_files

TIMEOUT_S = 120
LONG = "notes.txt"
FILES = {**tiny_files(), LONG: b"0123456789abcdef" * (RANGE // 16 * 2) + b"end"}
URI = "azureml://registries/company/models/tiny/versions/7"


@pytest.fixture
def azure(tmp_path: Path) -> Iterator[FakeAzure]:
    with fake_azure(tmp_path) as started:
        started.put("models/tiny", FILES)
        started.register("tiny", "7", "models/tiny", where=IN_REGISTRY)
        yield started


def start(azure: FakeAzure, desk: Path, *command: str) -> subprocess.Popen[str]:
    given = {
        **azure.environment(),
        CACHE: str(desk / "cache"),
        "PYTHONPATH": f"{ROOT / 'deployment'}:{ROOT / 'score'}",
    }
    return subprocess.Popen(
        (sys.executable, "-m", "llama_endpoints", *command, "--dialog", "inst", "--infill", "none"),
        cwd=desk,
        env=given,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + TIMEOUT_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def test_killed_it_is_gone_on_with(azure: FakeAzure, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"prompt": "a"}))
    command = ("prompt", "--checkpoint", URI, "--request", str(request))
    azure.faults[LONG] = [None, Hold(10)]

    def is_half() -> bool:
        parts = list((tmp_path / "cache").rglob(f".{LONG}.*.part"))
        return len(azure.ranges) == 6 and any(path.stat().st_size == RANGE for path in parts)

    with start(azure, tmp_path, *command) as process:
        wait_for(is_half, process)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=TIMEOUT_S)
    whole = [path for path in (tmp_path / "cache").rglob("tiny") if path.parent.name[0] not in ".m"]
    assert whole == [], "a half download is taken for none"
    azure.go_on.set()
    azure.ranges.clear()

    with start(azure, tmp_path, *command) as process:
        told, why = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, why
    assert json.loads(told)["prompts"][0]["token_ids"]
    assert [name for name, _ in azure.ranges] == [LONG, LONG], "what was there did not come again"
    assert azure.ranges[0][1] == f"bytes={RANGE}-{2 * RANGE - 1}"
    assert azure.sent[LONG] <= len(FILES[LONG]) + 10
    assert azure.sent["model.safetensors"] == 0


def test_it_is_packaged(azure: FakeAzure, tmp_path: Path) -> None:
    with start(azure, tmp_path, "package", "--checkpoint", URI, "--output", "model") as process:
        told, why = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, why
    assert told.startswith("model is tiny as an MLflow model, ")
    (weights,) = (tmp_path / "model").rglob("model.safetensors")
    assert weights.read_bytes() == FILES["model.safetensors"]
    assert f"{URI} is now in {tmp_path / 'cache'}" in why
    assert "WARNING" not in why
