"""Start the two stock servers and our own as processes, and stop them.

    with azmlinfsrv(model, score=Path("score")) as server:
        post(f"{server.url}/score", body)

    with mlflow_serve(model) as server:
        post(f"{server.url}/invocations", body)

    with own_server(model) as server:
        post(f"{server.url}/v1/completions", body)

Each server runs in its own session, answers before the block starts, and is stopped with all its children when the block
ends. No other process is signalled. Its output goes to `server.log`; a failed start raises `ServerStartError` with the end of
that file.

Standard library only, for tests, load tests and `make run`.
"""

from __future__ import annotations

import http.client
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

LOOPBACK = "127.0.0.1"
ANY_ADDRESS = ""
"""azmlinfsrv always binds 0.0.0.0: its port must be free on every address."""

START_TIMEOUT_S = 180.0
STOP_GRACE_S = 10.0
PROBE_TIMEOUT_S = 2.0
PROBE_INTERVAL_S = 0.1
TAIL_LINES = 60
THREADS = 84
"""azmlinfsrv's threads: the default number of admitted requests, 16 + 64, and some for probes."""

NO_ENV: Mapping[str, str] = MappingProxyType({})

# Variables that azmlinfsrv reads. They must not leak in from the caller's shell.
OWN_VARIABLES = ("AML_", "AZUREML_", "WORKER_", "GUNICORN_", "HEALTH_PORT", "SEPERATE_HEALTH_ENDPOINT")


class ServerStartError(RuntimeError):
    """The server exited, or was not ready in time. The message contains the end of its log."""


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A running server. `process` leads its own process group."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """The process id of the leader, which is also the group's."""
        return self.process.pid

    def tail(self, lines: int = TAIL_LINES) -> str:
        """Return the last lines of the server's output."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])


@contextmanager
def azmlinfsrv(
    model: Path,
    *,
    score: Path,
    env: Mapping[str, str] = NO_ENV,
    threads: int = THREADS,
    port: int | None = None,
) -> Iterator[RunningServer]:
    """Run Azure ML's inference server on `score/score.py`, as a managed online deployment does.

    Uses the console script, since `python -m` would put `score/` first on `sys.path`, where Azure has it last. `/` answers once
    `init()` has returned.
    """
    port = port or free_port(ANY_ADDRESS)
    settings = {
        "AZUREML_MODEL_DIR": str(model.resolve()),
        "WORKER_COUNT": "1",
        "WORKER_PRELOAD": "false",
        "GUNICORN_CMD_ARGS": f"--threads {threads} --graceful-timeout {STOP_GRACE_S:.0f}",
        **env,
    }
    command = [console_script("azmlinfsrv"), "--entry_script", "score.py", "--port", str(port)]
    with _workplace() as (_, log), _running(command, score.resolve(), settings, log, port) as server:
        _wait_until_ready(server, "/")
        yield server


@contextmanager
def mlflow_serve(
    model: Path,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] = NO_ENV,
    port: int | None = None,
) -> Iterator[RunningServer]:
    """Run `mlflow models serve` on a model folder.

    It imports from its working directory. The default is an empty folder, so that a model that needs its own sources fails.
    """
    port = port or free_port(LOOPBACK)
    settings = {"MLFLOW_DISABLE_TELEMETRY": "true", **env}
    command = [
        *(sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(model.resolve())),
        *("--env-manager", "local", "--host", LOOPBACK, "--port", str(port)),
    ]
    with _workplace() as (empty, log), _running(command, cwd or empty, settings, log, port) as server:
        _wait_until_ready(server, "/ping")
        yield server


@contextmanager
def own_server(
    model: Path | str,
    *options: str,
    env: Mapping[str, str] = NO_ENV,
    port: int | None = None,
    ready: str = "/health/ready",
    start_s: float = START_TIMEOUT_S,
) -> Iterator[RunningServer]:
    """Run our own server, `llama-endpoints serve`, and wait at most `start_s` seconds until `ready` answers 200."""
    port = port or free_port(LOOPBACK)
    name = str(model.resolve()) if isinstance(model, Path) else model
    command = [console_script("llama-endpoints"), "serve", "--model", name, "--port", str(port), *options]
    with _workplace() as (empty, log), _running(command, empty, env, log, port) as server:
        _wait_until_ready(server, ready, start_s)
        yield server


def free_port(address: str) -> int:
    """Return a port that is free on `address`. The kernel does not reuse it soon."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def console_script(name: str) -> str:
    """Return the console script `name` of this interpreter, even if its environment is not active."""
    script = Path(sysconfig.get_path("scripts")) / name
    if not script.exists():
        raise ServerStartError(f"{name} is not installed beside {sys.executable}: install its package.")
    return str(script)


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the caller's environment without the servers' variables, plus `settings`.

    `mlflow` starts `uvicorn` by name, so this interpreter's scripts come first on the path.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OWN_VARIABLES)}
    path = os.pathsep.join((sysconfig.get_path("scripts"), inherited.get("PATH", os.defpath)))
    return {**inherited, "PATH": path, "PYTHONUNBUFFERED": "1", **settings}


@contextmanager
def _workplace() -> Iterator[tuple[Path, Path]]:
    """Create an empty folder and a log file. Both are removed, unless the block fails."""
    root = Path(tempfile.mkdtemp(prefix="llama-server-"))
    log = root / "server.log"
    empty = root / "cwd"
    empty.mkdir()
    try:
        yield empty, log
    except Exception as failure:
        failure.add_note(f"The server's log: {log}")
        raise
    shutil.rmtree(root)


@contextmanager
def _running(
    command: Sequence[str], cwd: Path, settings: Mapping[str, str], log: Path, port: int
) -> Iterator[RunningServer]:
    """Run `command` in its own process group during the block.

    Every process inherits the read end of a pipe as stdin, so the write end reports when the last one has ended, even one that the
    leader left behind and nobody reaps.
    """
    read_end, write_end = os.pipe()
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603  the commands are the two above
                command,
                cwd=cwd,
                env=environment(settings),
                stdin=read_end,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        os.close(read_end)
        try:
            yield RunningServer(f"http://{LOOPBACK}:{port}", log, process)
        finally:
            _stop(process, write_end)
    finally:
        os.close(write_end)


def _stop(process: subprocess.Popen[bytes], write_end: int) -> None:
    """Terminate the group, then kill it; at once if a second signal interrupts the wait."""
    try:
        if not _all_ended(write_end, within=0):
            _signal_group(process.pid, signal.SIGTERM)
            _all_ended(write_end, within=STOP_GRACE_S)
    finally:
        if not _all_ended(write_end, within=0):
            _signal_group(process.pid, signal.SIGKILL)
        process.wait(timeout=STOP_GRACE_S)


def _all_ended(write_end: int, *, within: float) -> bool:
    """Wait at most `within` seconds until all readers of the pipe have ended. Return whether they have."""
    poller = select.poll()
    poller.register(write_end, 0)  # errors and hang-ups are always reported
    return bool(poller.poll(within * 1000))


def _signal_group(leader: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, number)


def _wait_until_ready(server: RunningServer, path: str, start_s: float = START_TIMEOUT_S) -> None:
    deadline = time.monotonic() + start_s
    while not _answers(server.url, path):
        if (status := server.process.poll()) is not None:
            raise _start_error(server, f"ended with exit status {status} before it was ready")
        if time.monotonic() > deadline:
            raise _start_error(server, f"did not answer {path} within {start_s:g} s")
        time.sleep(PROBE_INTERVAL_S)


def _answers(url: str, path: str) -> bool:
    """Send one probe. `http.client` ignores proxies, so the shell's proxy settings do not apply."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _start_error(server: RunningServer, what: str) -> ServerStartError:
    command = " ".join(map(str, server.process.args)) if isinstance(server.process.args, list) else ""
    return ServerStartError(f"{command}\n{what}. The end of its log:\n{server.tail()}")
