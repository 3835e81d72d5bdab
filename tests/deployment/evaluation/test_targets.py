"""One task by all ways: the model here, an endpoint's routes, a batch job; interrupted, and with an endpoint that fails."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from llama_endpoints.evaluation.targets import endpoint_client
from llama_endpoints.evaluation.targets.endpoint_target import EndpointTarget
from tests.support import command
from tests.support.calls import until
from tests.support.in_process import serving

FACES = ("add", "largest", "reverse", "words", "is_even", "count")
DATA = [
    {
        "task_id": f"T/{number}",
        "prompt": f'def {name}(a, b):\n    """Return the {name} of a and b."""\n',
        "entry_point": name,
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    }
    for number, name in enumerate(FACES)
]
SHORT = ("--prompt", "completion", "--max-new-tokens", "12")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "problems.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in DATA))
    return path


def evaluated(data: Path, output: Path, *more: str | Path, key: str = "") -> command.Done:
    words = ("evaluate", "humaneval", "--data", data, "--output", output)
    return command.run(*words, *more, env={"LLAMA_EVALUATE_KEY": key} if key else None)


def samples(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def here(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The greedy samples of the model in this process."""
    folder = tmp_path_factory.mktemp("here") / "e"
    done = evaluated(data, folder, "--model", "nano", *SHORT)
    assert (done.returncode, "evaluate score" in done.stderr) == (0, True)
    return samples(folder)


def test_all_ways_have_the_same_greedy_samples(data: Path, here: list[dict[str, Any]], tmp_path: Path) -> None:
    assert [one["problem"] for one in here] == [line["task_id"] for line in DATA]
    assert all(one["text"] and one["usage"]["completion_tokens"] <= 12 for one in here)
    with serving({"LLAMA_API_KEYS": "secret-key-1"}) as server:
        for protocol in ("score", "completions"):
            folder = tmp_path / protocol
            done = evaluated(
                data, folder, "--url", server.url, "--protocol", protocol, *SHORT, key="secret-key-1"
            )
            assert done.returncode == 0
            assert samples(folder) == here
            assert "secret-key-1" not in (folder / "evaluation.json").read_text()
        refused = evaluated(data, tmp_path / "refused", "--url", server.url, *SHORT)
        assert (refused.returncode, "401" in refused.stderr) == (2, True)
    folder, records = tmp_path / "batch", tmp_path / "records.jsonl"
    assert evaluated(data, folder, "--requests-only", "--model", "nano", *SHORT).returncode == 0
    done = command.run("batch", "--model", "nano", "--input", folder / "requests.jsonl", "--output", records)
    assert done.returncode == 0
    lines = records.read_text().splitlines()
    records.write_text("\n".join(reversed(lines)) + "\n")  # outputs of several workers are in any order
    assert evaluated(data, folder, "--records", records, "--model", "nano", *SHORT).returncode == 0
    assert samples(folder) == here


def test_dialogs_are_the_same_by_chat(data: Path, tmp_path: Path) -> None:
    more = ("--prompt", "dialog", "--max-new-tokens", "8", "--limit", "2")
    with serving() as server:
        for protocol in ("chat", "score"):
            done = evaluated(data, tmp_path / protocol, "--url", server.url, "--protocol", protocol, *more)
            assert done.returncode == 0
    assert samples(tmp_path / "chat") == samples(tmp_path / "score")


@pytest.mark.parametrize(("protocol", "style"), [("completions", "dialog"), ("chat", "completion")])
def test_a_route_that_takes_no_such_prompts_is_refused(
    data: Path, protocol: str, style: str, tmp_path: Path
) -> None:
    words = ("--url", "http://127.0.0.1:9", "--protocol", protocol, "--prompt", style)
    done = evaluated(data, tmp_path / "e", *words)
    assert (done.returncode, "--protocol" in done.stderr) == (2, True)
    assert not (tmp_path / "e").exists()


def test_a_killed_run_is_resumed(tmp_path: Path) -> None:
    data, folder, count = tmp_path / "many.jsonl", tmp_path / "e", 24
    lines = [
        {**DATA[0], "task_id": f"T/{number}", "prompt": f"def add_{number}(a, b):\n"} for number in range(count)
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    more = ("--model", "nano", "--prompt", "completion", "--max-new-tokens", "40")
    words = ("evaluate", "humaneval", "--data", data, "--output", folder, *more, "--concurrency", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "llama_endpoints", *map(str, words)], stderr=subprocess.DEVNULL
    )
    journal = folder / "records.jsonl.journal"
    until(lambda: (journal.exists() and journal.read_bytes().count(b"\n") > 1) or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert 0 < journal.read_bytes().count(b"\n") - 1 < count
    assert not (folder / "samples.jsonl").exists()
    assert evaluated(data, folder, *more).returncode == 0
    assert evaluated(data, tmp_path / "whole", *more).returncode == 0
    assert samples(folder) == samples(tmp_path / "whole")
    assert [path.name for path in folder.iterdir() if "records" in path.name] == []


def test_another_evaluation_is_not_overwritten(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "e"
    assert evaluated(data, folder, "--requests-only", *SHORT).returncode == 0
    before = (folder / "requests.jsonl").read_text()
    other = evaluated(data, folder, "--requests-only", "--prompt", "dialog")
    assert (other.returncode, "--overwrite" in other.stderr) == (2, True)
    assert (folder / "requests.jsonl").read_text() == before
    assert evaluated(data, folder, "--requests-only", "--prompt", "dialog", "--overwrite").returncode == 0
    assert (folder / "requests.jsonl").read_text() != before
    (folder / "evaluation.json").rename(folder / "notes.json")
    assert evaluated(data, folder, "--requests-only", *SHORT, "--overwrite").returncode == 2


def test_records_of_other_rows_are_refused(data: Path, tmp_path: Path) -> None:
    folder, records = tmp_path / "e", tmp_path / "records.jsonl"
    record = {
        "file": "a",
        "line": 1,
        "id": "T/0/0",
        "output": "x",
        "finish_reason": "stop",
        "usage": {},
        "error": None,
    }
    records.write_text(json.dumps(record) + "\n")
    done = evaluated(data, folder, "--records", records, *SHORT)
    assert (done.returncode, "no record of row T/1/0" in done.stderr) == (2, True)


def test_a_row_that_fails_is_a_sample_with_its_error(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "e"
    done = evaluated(
        data, folder, "--model", "nano", "--prompt", "completion", "--max-new-tokens", "5000", "--limit", "1"
    )
    assert done.returncode == 0
    (found,) = samples(folder)
    assert (found["text"], found["completion"], found["error"]["code"]) == (None, None, "context_exceeded")


def test_ctrl_c_says_how_it_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(EndpointTarget, "generate", interrupted)
    done = evaluated(data, tmp_path / "e", "--url", "http://127.0.0.1:9", *SHORT)
    assert (done.returncode, "same command again" in done.stderr) == (130, True)


@pytest.mark.parametrize(
    "words",
    [(), ("--model", "nano", "--url", "http://h"), ("--url", "http://h", "--records", "x"), ("--url", "ftp://h"),
     ("--url", "http://a:b@h"), ("--url", "http://h", "--threads", "2"), ("--model", "nano", "--samples", "2", "--temperature", "0")],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(data: Path, words: tuple[str, ...], tmp_path: Path) -> None:
    assert evaluated(data, tmp_path / "e", *words).returncode == 2
    assert not (tmp_path / "e").exists()


class Failing(ThreadingHTTPServer):
    """An endpoint that answers each kind of request with these statuses, one after the other, and then with a text."""

    statuses: list[int]
    posts: list[dict[str, Any]]


class Handler(BaseHTTPRequestHandler):
    server: Failing

    def do_POST(self) -> None:
        self.server.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        text = {
            "output": "x",
            "details": [{"finish_reason": "stop", "usage": {"prompt_tokens": 1, "completion_tokens": 1}}],
        }
        answer = json.dumps(text if status == 200 else {"error": {"code": "c", "message": "m"}}).encode()
        self.send_response(424 if status == 418 else status)
        if status == 418:  # as Azure's front end passes on a container's 429
            self.send_header("ms-azureml-model-error-statuscode", "429")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Failing]:
    monkeypatch.setattr(endpoint_client, "PAUSES_S", (0.0, 0.0, 0.0))
    with Failing(("127.0.0.1", 0), Handler) as server:
        server.statuses, server.posts = [], []
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(failing: Failing, data: Path, folder: Path) -> command.Done:
    url = f"http://127.0.0.1:{failing.server_address[1]}/score"
    return evaluated(data, folder, "--url", url, "--concurrency", "1", *SHORT)


def test_what_may_pass_is_tried_again(failing: Failing, data: Path, tmp_path: Path) -> None:
    failing.statuses = [503, 418, 429]
    assert ask(failing, data, tmp_path / "e").returncode == 0
    assert len(failing.posts) == len(DATA) + 3
    assert [one["text"] for one in samples(tmp_path / "e")] == ["x"] * len(DATA)


def test_an_endpoint_that_stays_away_ends_the_run_and_is_resumed(
    failing: Failing, data: Path, tmp_path: Path
) -> None:
    failing.statuses = [200, 200, 503, 503, 503, 503]
    done = ask(failing, data, tmp_path / "e")
    assert (done.returncode, "run the same command again" in done.stderr) == (2, True)
    assert len(failing.posts) == 6
    assert ask(failing, data, tmp_path / "e").returncode == 0
    assert len(failing.posts) == 6 + len(DATA) - 2
    assert len(samples(tmp_path / "e")) == len(DATA)


def test_a_row_that_is_refused_is_a_sample_with_its_error(failing: Failing, data: Path, tmp_path: Path) -> None:
    failing.statuses = [400]
    assert ask(failing, data, tmp_path / "e").returncode == 0
    found = samples(tmp_path / "e")
    assert (found[0]["error"], found[0]["completion"]) == ({"code": "c", "message": "m"}, None)
    assert [one["text"] for one in found[1:]] == ["x"] * (len(DATA) - 1)


def test_an_endpoint_of_another_kind_is_said(failing: Failing, data: Path, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{failing.server_address[1]}"
    done = evaluated(data, tmp_path / "e", "--url", url, "--protocol", "completions", *SHORT)
    assert (done.returncode, "--protocol" in done.stderr) == (2, True)
