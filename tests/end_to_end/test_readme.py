"""The README's demo shows what the README promises. Its blocks run in test_docs_blocks.py."""

import ast
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llama_endpoints.devtools.servers import free_port
from tests.conftest import post


def test_the_readme_fits_on_a_few_screens(root: Path) -> None:
    assert len((root / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_make_knows_every_target(root: Path) -> None:
    shown = subprocess.run(
        ["make", "help"], cwd=root, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    targets = {line.split()[0] for line in shown.splitlines()}
    assert targets >= {
        "help",
        "run",
        "serve",
        "test",
        "check",
        "lint",
        "fmt",
        "typecheck",
        "package",
        "load",
        "resolve",
        "docs",
    }


def test_the_demo_shows_each_request_with_its_answer(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llama_endpoints.devtools.demo", "run"],
        cwd=root, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = [json.loads(line) for line in done.stdout.splitlines()]
    endpoints = [line["endpoint"] for line in shown]
    rows = (root / "yaml/batch/samples/rows.jsonl").read_text(encoding="utf-8").splitlines()
    own = ["our server /score", "openai /v1/completions", "openai /v1/chat/completions, streaming"]
    assert endpoints == [
        *["azmlinfsrv /score"] * 3, *["mlflow /invocations"] * 4, *own, *["batch driver"] * len(rows)
    ]  # fmt: skip
    texts = [line["answer"] for line in shown if line["endpoint"] in own]
    assert texts[0] == shown[0]["answer"]
    assert texts[1]["choices"][0]["text"] == texts[0][0]["0"]
    assert len(texts[2]) > 10
    card = shown[0]
    assert card["request"]["input_data"]["parameters"] == {
        "return_full_text": False, "do_sample": True, "seed": 2,
    }  # fmt: skip
    assert [list(row) for row in card["answer"]] == [["0"]]
    assert ast.parse(card["answer"][0]["0"]).body, "Python, and whole: it stopped by itself"
    assert set(shown[1]["answer"]) == {"output"}
    records = [line["answer"] for line in shown if line["endpoint"] == "batch driver"]
    assert all(record["error"] is None for record in records)


@pytest.mark.parametrize(
    ("signals", "status"),
    [
        pytest.param([signal.SIGINT], 0, id="Ctrl-C"),
        pytest.param([signal.SIGTERM, signal.SIGTERM], 143, id="stopped by make and by its own group"),
    ],
)
def test_the_server_stays_up_until_it_is_stopped(
    root: Path, signals: list[signal.Signals], status: int
) -> None:
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "llama_endpoints.devtools.demo", "serve", "--port", str(port)]
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            line = next(line for line in server.stdout if line.startswith("curl "))
            _, url, _, header, _, body = shlex.split(line)
            name, _, value = header.partition(": ")
            answer = post(url, body.encode(), **{name.replace("-", "_"): value})
            assert [list(row) for row in answer.json["predictions"]] == [["0"]]
        finally:
            for number in signals:
                server.send_signal(number)
                time.sleep(0.05)  # two signals of one kind at once are one signal
            server.communicate(timeout=60)
    assert server.returncode == status
    with pytest.raises(OSError, match="refused"):
        post(url, b"{}")
