"""Ctrl-C at an endpoint that does not answer: the command ends at once, keeps what was answered, and goes on from there."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from tests.support import command
from tests.support.calls import until

COUNT, ANSWERED, AT_A_TIME = 6, 2, 3
ANSWER = json.dumps({"output": "x", "details": [{"finish_reason": "stop", "usage": {}}]}).encode()
COMMAND = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from llama_endpoints.cli.main import main; main()"  # fmt: skip
"""A shell that tests run in may have its children ignore SIGINT."""


class Stuck(ThreadingHTTPServer):
    """An endpoint that answers some requests, and the others only once it is free."""

    daemon_threads = True
    block_on_close = False
    free: Event
    asked: int = 0


class Handler(BaseHTTPRequestHandler):
    server: Stuck

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        if self.server.asked > ANSWERED:
            self.server.free.wait()
        try:
            self.send_response(200)
            self.send_header("Content-Length", str(len(ANSWER)))
            self.end_headers()
            self.wfile.write(ANSWER)
        except OSError:
            self.close_connection = True  # (who asked is gone)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    with Stuck(("127.0.0.1", 0), Handler) as server:
        server.free = Event()
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.free.set()
        server.shutdown()
        thread.join()


def test_ctrl_c_at_an_endpoint_that_does_not_answer(stuck: Stuck, tmp_path: Path) -> None:
    data, folder = tmp_path / "data.jsonl", tmp_path / "e"
    row = {"entry_point": "f", "prompt": "def f(x):\n", "suffix": "", "canonical_solution": "x", "test": "pass"}
    data.write_text("".join(json.dumps({"task_id": f"P/{n}", **row}) + "\n" for n in range(COUNT)))
    url = f"http://127.0.0.1:{stuck.server_address[1]}"
    words = ("evaluate", "infilling", "--data", data, "--output", folder, "--url", url, "--overwrite")
    given = (*words, "--concurrency", AT_A_TIME)
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, given)], stderr=subprocess.PIPE, text=True
    )
    until(lambda: stuck.asked == ANSWERED + AT_A_TIME or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)  # (an answer is waited for up to 310 s)
    assert (process.returncode, "Interrupted. Run the same command again" in said) == (130, True), said
    assert not stuck.free.is_set()
    assert (folder / "records.jsonl.journal").read_bytes().count(b"\n") == 1 + ANSWERED
    before = stuck.asked
    stuck.free.set()
    done = command.run(*words)
    assert done.returncode == 0, done.stderr
    assert stuck.asked - before == COUNT - ANSWERED
    assert (folder / "samples.jsonl").read_bytes().count(b"\n") == COUNT
