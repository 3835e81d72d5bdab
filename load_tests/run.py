"""Load-test one of the stock servers on this machine, from its start to its stop.

python -m load_tests.run --model build/nano --server azmlinfsrv --users 4 --seconds 30 --report load.html
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from deployment.servers import Server, ServerStartError, azmlinfsrv, console_script, mlflow_serve

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

ROOT = Path(__file__).resolve().parents[1]
USERS = {"azmlinfsrv": "ScoreUser", "mlflow": "InvocationsUser"}
STOP_TIMEOUT_S = 60
"""How long locust lets requests under way finish. More than one may take on a slow machine."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command. 0: every answer was right; 1: some were not, or there were none; 2: no server."""
    # Without this a SIGTERM would end us at once and leave the server behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    options = _parser().parse_args(argv)
    try:
        with _server(options) as server:
            print(f"{options.server} is ready: {server.url}, its log is {server.log}", flush=True)  # noqa: T201
            status = _locust(server, options)
            if status != 0:
                print(f"The end of the server's log:\n{server.tail(20)}", file=sys.stderr)  # noqa: T201
            return status
    except ServerStartError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2


def _server(options: argparse.Namespace) -> AbstractContextManager[Server]:
    if options.server == "mlflow":
        return mlflow_serve(options.model)
    return azmlinfsrv(options.model, score=options.score)


def _locust(server: Server, options: argparse.Namespace) -> int:
    command = [
        *(console_script("locust"), "--locustfile", str(ROOT / "load_tests" / "locustfile.py")),
        *("--headless", "--only-summary", "--host", server.url),
        *("--users", str(options.users), "--spawn-rate", str(options.users)),
        *("--run-time", f"{options.seconds}s", "--stop-timeout", str(STOP_TIMEOUT_S)),
        *(("--html", str(options.report.resolve())) if options.report else ()),
        USERS[options.server],
    ]
    # locust imports from its working directory, where this package lies.
    limit = options.seconds + 2 * STOP_TIMEOUT_S
    try:
        return subprocess.run(command, cwd=ROOT, timeout=limit, check=False).returncode  # noqa: S603
    except subprocess.TimeoutExpired:
        print(f"locust did not end within {limit} s", file=sys.stderr)  # noqa: T201
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m load_tests.run", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a packaged model")
    parser.add_argument("--server", choices=sorted(USERS), default="azmlinfsrv")
    parser.add_argument(
        "--score", type=Path, default=ROOT / "score", help="folder of score.py (azmlinfsrv only)"
    )
    parser.add_argument("--users", type=_positive, default=4, help="users at a time (default 4)")
    parser.add_argument("--seconds", type=_positive, default=30, help="how long they send (default 30)")
    parser.add_argument("--report", type=Path, help="where to write locust's HTML report")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
