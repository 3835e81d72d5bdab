"""Stands in for `vllm` or `azmlinfsrv`, whichever it is called: says what happens to it, and serves /health as told.

It runs as a process of its own, by its name on the PATH. What it does is in files of the folder STAND_IN:
`journal` (which it writes) has what happened, a line each, and `NAME.pid`, `NAME.json` what it was started with.
Files that a test puts there tell it what to do:

    sick        /health of `vllm` answers 503
    silent      /health of `vllm` takes the connection and never answers
    early-end   `vllm` ends before it serves anything
    stubborn    SIGTERM is heard and not obeyed
    worker      it starts a process, as vLLM starts its workers, that ends with the group alone

All of them end when their standard input does: nothing outlives a test that failed.
"""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from http import HTTPStatus
from pathlib import Path

NAME = Path(sys.argv[0]).name
FOLDER = Path(os.environ.get("STAND_IN", ""))
CODE_ON_TERM = 0
CODE_AT_ONCE = 7


def told(what: str) -> bool:
    return (FOLDER / what).exists()


def note(what: str) -> None:
    with (FOLDER / "journal").open(
        "a", encoding="utf-8"
    ) as file:  # one write: whole lines, whoever else writes
        file.write(f"{NAME} {what}\n")


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if told("silent"):
            note("silent")
            threading.Event().wait()
        status = HTTPStatus.SERVICE_UNAVAILABLE if told("sick") or self.path != "/health" else HTTPStatus.OK
        note(f"{self.path} {status.value}")
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def on_term(*_: object) -> None:
    note("SIGTERM")
    if not told("stubborn"):
        note("ends")
        os._exit(CODE_ON_TERM)


def end_with_the_test() -> None:
    sys.stdin.read()
    os._exit(CODE_AT_ONCE)


def main() -> None:
    signal.signal(signal.SIGTERM, on_term)
    threading.Thread(target=end_with_the_test, daemon=True).start()
    if told("worker"):
        worker = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"])
        (FOLDER / f"{NAME}-worker.pid").write_text(str(worker.pid))
    started = {"arguments": sys.argv[1:], "environment": dict(os.environ), "cwd": str(Path.cwd())}
    (FOLDER / f"{NAME}.json").write_text(json.dumps(started), encoding="utf-8")
    (FOLDER / f"{NAME}.pid").write_text(str(os.getpid()))
    sys.stdout.write(f"{NAME} writes to its output\n")
    sys.stdout.flush()
    note("started")
    if told("early-end"):
        sys.exit(CODE_AT_ONCE)
    if NAME == "vllm":
        port = int(sys.argv[sys.argv.index("--port") + 1])
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Health)
        server.daemon_threads = True
        server.serve_forever()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
