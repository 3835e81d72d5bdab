"""The vllm engine in batch jobs: killed with and without us, every row is there once, and with the right text."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from llama_endpoints.devtools.servers import console_script, environment
from tests.conftest import ROOT
from tests.support.azure_jobs import written
from tests.vllm import processes
from tests.vllm.processes import API, KEEPER, until

pytestmark = pytest.mark.timeout(900)

ROWS = 1000
BAD = 10
FEW = 100
"""Of them, the rows of the jobs that are not the command's."""
DIFFER = 10
"""Rows whose text may be another than that of our own engine."""


def row(number: int) -> bytes:
    """A greedy row; one in a hundred is a bad one, in ways of its own."""
    tokens = 4 + number % 21 + (48 if number < FEW else 0)  # (the first ones take long enough to be killed in)
    good = {"id": number, "prompt": f"def f{number}(x):\n", "max_tokens": tokens, "temperature": 0}
    if number % (ROWS // BAD) != 7:
        return json.dumps(good).encode()
    return (b"{", json.dumps({**good, "top_p": 7}).encode(), b"\xff\xfe", json.dumps({"id": number}).encode())[
        number // 100 % 4
    ]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_bytes(b"\n".join(map(row, range(ROWS))) + b"\n")
    return path


def command(model: Path | str, rows: Path, output: Path, *more: str) -> list[str]:
    return [console_script("llama-endpoints"), "batch", "--model", str(model), "--input", str(rows), "--output", str(output), *more]  # fmt: skip


def begun(words: list[str], env: Mapping[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        words, env=environment(env), stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    told = process.communicate(timeout=processes.PATIENCE_S)[1]
    return process.returncode, told


@pytest.fixture(scope="module")
def expected(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of our own engine."""
    output = tmp_path_factory.mktemp("expected") / "out.jsonl"
    code, told = ended(begun(command("nano", rows, output), {"LLAMA_ENGINE": "batching"}))
    assert code == 0, told
    return [json.loads(line) for line in output.read_text().splitlines()]


def journaled(output: Path) -> int:
    journal = output.with_name(output.name + ".journal")
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def compared(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> int:
    """Of two jobs on the same rows: how many texts differ. All else must be the same."""
    places = [(record["file"], record["line"]) for record in expected]
    assert [(record["file"], record["line"]) for record in found] == places
    assert [record["error"] for record in found] == [record["error"] for record in expected]
    return sum(one != other for one, other in zip(found, expected, strict=True))


def test_a_thousand_rows_with_kills(
    rows: Path,
    expected: list[dict[str, Any]],
    settings: Mapping[str, str],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    output = tmp_path / "out.jsonl"
    first = begun(command("nano", rows, output), settings)
    until(lambda: journaled(output) > 150)
    processes.kill(processes.started_by(first.pid)[KEEPER])  # and vLLM with it; the job goes on by itself
    until(lambda: journaled(output) > 450)
    theirs = processes.started_by(first.pid)
    socket = processes.socket_of(theirs[API])
    assert socket is not None
    os.killpg(first.pid, signal.SIGKILL)  # and then the job
    ended(first)
    processes.nothing_left(theirs, socket)
    assert not output.exists()
    done = journaled(output)
    second = begun(command("nano", rows, output), settings)
    code, told = ended(second)
    assert code == 0, told
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(found) == ROWS
    assert sum(record["error"] is not None for record in found) == BAD
    assert done > 400
    differ = compared(found, expected)
    record_property("rows with another text than our own engine's", f"{differ} of {ROWS}")
    assert differ <= DIFFER


AT_WORK = 8
"""Requests at a time: more than the engine's own, of which the first is still part of the start."""


class Killer:
    """Kills vLLM once, as soon as it computes for a job, wherever the job has started it."""

    def __init__(self, root: int) -> None:
        self._root, self.killed = root, 0
        self.sockets: set[Path] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            for found in processes.each_started_by(self._root):
                if API not in found or (socket := processes.socket_of(found[API])) is None:
                    continue
                self.sockets.add(socket)
                if processes.connections(found[API]) >= AT_WORK:
                    self.killed = found[API]
                    processes.kill(self.killed)
                    return


@pytest.fixture(scope="module")
def few(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("few") / "few.jsonl"
    path.write_bytes(b"\n".join(rows.read_bytes().splitlines()[:FEW]) + b"\n")
    return path


def texts(records: list[dict[str, Any]]) -> list[tuple[int, Any, Any]]:
    return sorted((record["line"], record["output"], record["error"]) for record in records)


def test_the_batch_driver(
    few: Path, expected: list[dict[str, Any]], settings: Mapping[str, str], nano_model: Path, tmp_path: Path
) -> None:
    """As Azure runs it: processes with init() and run()."""
    output = tmp_path / "out.jsonl"
    how = {"mini_batch_size": 1, "retry_settings": {"timeout": 300}, "environment_variables": dict(settings)}
    deployment = written(tmp_path, ROOT / "score" / "batch_driver.py", **how)
    content = yaml.safe_load(deployment.read_text("utf-8")) | {"resources": {"instance_count": 1}}
    deployment.write_text(yaml.safe_dump(content))
    job = begun(command(nano_model, few, output, "--as-azure", str(deployment)), {})
    killer = Killer(job.pid)
    code, told = ended(job)
    killer.close()
    assert code == 0, told
    assert killer.killed
    assert killer.sockets
    until(lambda: not any(socket.parent.exists() for socket in killer.sockets), 30)
    (written_by_azure,) = (path for path in (output / "score").iterdir() if path.is_file())
    found = [json.loads(line) for line in written_by_azure.read_text().splitlines() if line.strip()]
    assert texts(found) == texts(expected[:FEW])


@pytest.mark.skipif(shutil.which("java") is None and "JAVA_HOME" not in os.environ, reason="Spark needs Java")
def test_spark(
    few: Path, expected: list[dict[str, Any]], settings: Mapping[str, str], nano_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    job = begun(
        [sys.executable, str(ROOT / "deployment/llama_endpoints/spark/job.py"), "--model", str(nano_model), "--input", str(few),
         "--output", str(output), "--master", "local[1]"],
        {**settings, "SPARK_LOCAL_IP": "127.0.0.1", "PYTHONPATH": str(ROOT / "deployment")},
    )  # fmt: skip
    killer = Killer(job.pid)
    code, told = ended(job)
    killer.close()
    assert code == 0, told[-3000:]
    assert killer.killed
    assert killer.sockets
    until(lambda: not any(socket.parent.exists() for socket in killer.sockets), 30)
    found = [
        json.loads(line) for part in sorted(output.glob("part-*")) for line in part.read_text().splitlines()
    ]
    assert texts(found) == texts(expected[:FEW])
