"""`make load` for real: locust against each server, against one that lies, against none, and interrupted."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llama_endpoints.devtools.servers import LOOPBACK, free_port
from load_tests.run import main
from load_tests.samples import Sample, read

PATIENCE_S = 240
EVERYTHING = "{stream: 0.5, cancel: 0.4, bad: 0.3, new_tokens: {least: 2, most: 4}}"
ROUTES = {
    "own": {"/score", "/invocations", "/v1/completions", "/v1/chat/completions"},
    "azmlinfsrv": {"/score"},
    "mlflow": {"/invocations"},
}


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """What the command does at SIGTERM is not for the tests' own process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def load(folder: Path, *arguments: str, workload: str = EVERYTHING) -> Result:
    """The command in this process; locust and the servers are others."""
    (folder / "workload.yml").write_text(workload)
    return CliRunner().invoke(main, command(folder, *arguments)[3:], catch_exceptions=False)


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "load_tests.run", "--workload", str(folder / "workload.yml"),
            "--output", str(folder / "out"), *arguments]  # fmt: skip


def samples(folder: Path) -> list[Sample]:
    with (folder / "out" / "samples.jsonl").open() as lines:
        return list(read(lines))


@pytest.mark.parametrize("server", ROUTES)
def test_every_server_and_every_route(nano_model: Path, tmp_path: Path, server: str) -> None:
    done = load(tmp_path, "--model", str(nano_model), "--server", server, "--users", "8", "--seconds", "2")
    assert done.exit_code == 0, done.stdout + done.stderr
    sent = samples(tmp_path)
    assert {one.route for one in sent} == ROUTES[server]
    outcomes = {"answered", "refused"} | ({"cancelled"} if server == "own" else set())
    assert {one.outcome for one in sent} == outcomes
    streams = [one for one in sent if one.stream and one.outcome == "answered"]
    assert bool(streams) == (server == "own")
    assert all(one.first_s is not None and 0 < one.first_s <= one.seconds for one in streams)
    assert all(1 <= one.tokens <= 8 for one in sent if one.outcome == "answered")
    last = done.stdout.splitlines()[-3].split()
    assert last[:2] == [
        "all" if server == "own" else "/score" if server == "azmlinfsrv" else "/invocations",
        str(len(sent)),
    ]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") == 4
    assert all(route in page for route in ROUTES[server])


class Liar(BaseHTTPRequestHandler):
    """Says 200 to everything."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body
        if self.headers.get("Authorization") != "Bearer open":
            self.send_error(401)
            return
        answer = json.dumps([{"0": "x", "details": [{"usage": {"completion_tokens": 3}}]}]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def liar(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("LOAD_KEY", "open")
    with ThreadingHTTPServer((LOOPBACK, 0), Liar) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://{LOOPBACK}:{server.server_address[1]}"
        server.shutdown()
        thread.join()


QUICK = "{stream: 0, prompts: {least: 1, most: 1}, kinds: {completion: 1}, requests_per_second: 20, bad: %s}"


def test_the_rate_is_kept_and_right_answers_pass(liar: str, tmp_path: Path) -> None:
    done = load(tmp_path, "--url", liar, "--server", "azmlinfsrv", "--seconds", "3", workload=QUICK % 0)
    assert done.exit_code == 0, done.stdout + done.stderr
    assert {one.outcome for one in samples(tmp_path)} == {"answered"}
    due = [one.at - one.late_s for one in samples(tmp_path)]
    assert 25 < sum(at < 2.5 for at in due) < 85  # 50 of them, drawn with seeds; whenever they were sent


def test_a_server_that_lies_fails_the_test(liar: str, tmp_path: Path) -> None:
    done = load(tmp_path, "--url", liar, "--server", "azmlinfsrv", "--seconds", "1", workload=QUICK % 0.5)
    assert done.exit_code == 1
    outcomes = Counter(one.outcome for one in samples(tmp_path))
    assert outcomes.keys() == {"answered", "wrong"}
    assert f"{outcomes['wrong']} x /score: status 200 for a bad request, not 400" in done.stderr
    assert "for a bad request" in (tmp_path / "out" / "report.html").read_text()


def test_a_key_that_is_missing_is_told(liar: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOAD_KEY")
    done = load(tmp_path, "--url", liar, "--server", "azmlinfsrv", "--seconds", "1", workload=QUICK % 0)
    assert done.exit_code == 1
    assert "status 401" in done.stderr


def test_no_server_is_no_answer(tmp_path: Path) -> None:
    done = load(
        tmp_path, "--url", f"http://{LOOPBACK}:{free_port(LOOPBACK)}", "--seconds", "1", workload=QUICK % 0
    )
    assert done.exit_code == 1
    assert {(one.status, one.outcome) for one in samples(tmp_path)} == {(0, "wrong")}
    assert "no answer: ConnectionRefusedError" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "workload", "says"),
    [
        ((), EVERYTHING, "Give --model"),
        (("--url", "http://x", "--model", "EMPTY"), EVERYTHING, "Give --model"),
        (("--url", "http://x", "--server", "tgi"), EVERYTHING, "'tgi' is not one of"),
        (("--url", "http://x"), "{streams: 1}", "'streams' was unexpected"),
        (("--model", "nowhere"), EVERYTHING, "does not exist"),
        (("--model", "EMPTY"), EVERYTHING, "ended with exit status 2 before it was ready"),
    ],
)
def test_what_cant_begin_is_a_sentence(
    tmp_path: Path, arguments: tuple[str, ...], workload: str, says: str
) -> None:
    empty = tmp_path / "empty"  # (a checkout in which something was made holds a model)
    empty.mkdir()
    given = [str(empty) if argument == "EMPTY" else argument for argument in arguments]
    done = load(tmp_path, *given, workload=workload)
    assert (done.exit_code, says in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr


def test_an_interrupt_ends_the_sending_and_reports(liar: str, tmp_path: Path) -> None:
    (tmp_path / "workload.yml").write_text(QUICK % 0)
    asked = command(tmp_path, "--url", liar, "--server", "azmlinfsrv", "--seconds", "200")
    with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        file = tmp_path / "out" / "samples.jsonl"
        while not (file.exists() and len(samples(tmp_path)) > 5):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        told, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "the report is" in told
    assert "<strong>interrupted</strong>" in (tmp_path / "out" / "report.html").read_text()
