"""`python -m load_tests.run`: see `--help`."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import click
from tqdm import tqdm

from llama_endpoints.devtools.servers import (
    ServerStartError,
    azmlinfsrv,
    console_script,
    mlflow_serve,
    own_server,
)
from load_tests import report
from load_tests.protocols import ROUTES
from load_tests.samples import Sample, read
from load_tests.workload import DEFAULT, RequestMix, WorkloadError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from llama_endpoints.devtools.servers import RunningServer

ROOT: Final = Path(__file__).resolve().parents[1]
USERS: Final = {
    "own": ("ScoreUser", "InvocationsUser", "CompletionsUser", "ChatUser"),
    "azmlinfsrv": ("StockScoreUser",),
    "mlflow": ("StockInvocationsUser",),
}
STOP_S: Final = 60
"""How long locust waits for requests in flight; a request may take this long on a slow machine."""
LOOK_S: Final = 0.5
INTERRUPTED: Final = 128 + signal.SIGINT


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--model",
    type=click.Path(exists=True, path_type=Path),
    help="Folder of a packaged model. A server is started with it.",
)
@click.option(
    "--server",
    type=click.Choice(sorted(USERS)),
    default="own",
    show_default=True,
    help="The server to start; with --url, the kind of the running one.",
)
@click.option(
    "--url", help="Address of a running server, instead of --model. LOAD_KEY is its key, if it has one."
)
@click.option("--users", type=click.IntRange(1), default=8, show_default=True, help="Concurrent users.")
@click.option("--seconds", type=click.IntRange(1), default=30, show_default=True, help="Duration.")
@click.option(
    "--workload",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=DEFAULT,
    show_default=False,
    help=f"YAML file: what they send; default: {DEFAULT.relative_to(ROOT)}, which says how.",
)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=ROOT / "build" / "load",
              show_default=False, help="Folder for report.html and samples.jsonl; default: build/load.")  # fmt: skip
def main(  # noqa: PLR0913  (the options of a command)
    *, model: Path | None, server: str, url: str | None, users: int, seconds: int, workload: Path, output: Path
) -> None:
    """Load a server with every protocol it speaks, check every answer, and write an HTML report.

    Exit codes: 0 every answer was right; 1 some were wrong, or there were none; 2 it could not start. Ctrl-C stops sending;
    the report covers what was sent.
    """
    # Without this, SIGTERM would end this process and leave the server running.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if (model is None) == (url is None):
        raise click.UsageError("Give --model, and a server is started; or --url of one that is up.")
    try:
        load = _Load(_users(server, RequestMix.read(workload)), users, seconds, workload, output)
        with _server(model, server) if url is None else nullcontext() as started:
            at = url or cast("RunningServer", started).url
            click.echo(f"{server} at {at}" + (f", its log is {started.log}" if started else ""))
            status, interrupted = load.run(at)
            run = report.Run(server, users, workload.read_text(encoding="utf-8"), seconds, interrupted)
            status = _tell(run, load, status)
            if status and started:
                click.echo(f"The end of the server's log:\n{started.tail(20)}", err=True)
    except (ServerStartError, WorkloadError) as error:
        raise SystemExit(_sentence(error)) from None
    raise SystemExit(INTERRUPTED if interrupted else status)


def _sentence(error: Exception) -> int:
    click.echo(str(error), err=True)
    return 2


def _users(server: str, workload: RequestMix) -> tuple[str, ...]:
    """Return the users for which the workload has requests."""
    chosen = tuple(name for name in USERS[server] if any(workload.weights(ROUTES[name].kinds)))
    if not chosen:
        raise WorkloadError(f"The workload has nothing for {server}.")
    return chosen


def _server(model: Path | None, server: str) -> AbstractContextManager[RunningServer]:
    if model is None:
        raise click.UsageError("--model is missing.")
    if server == "mlflow":
        return mlflow_serve(model)
    if server == "azmlinfsrv":
        return azmlinfsrv(model, score=ROOT / "score")
    return own_server(model)


@dataclass(frozen=True, slots=True)
class _Load:
    """One run of locust."""

    classes: tuple[str, ...]
    users: int
    seconds: int
    workload: Path
    output: Path

    @property
    def samples(self) -> Path:
        return self.output / "samples.jsonl"

    def run(self, url: str) -> tuple[int, bool]:
        """Return locust's exit status, and whether it was interrupted."""
        self.output.mkdir(parents=True, exist_ok=True)
        self.samples.write_bytes(b"")
        with (self.output / "locust.log").open("wb") as log, _interrupts() as interrupted:
            # locust imports from its working directory, which must contain this package.
            process = subprocess.Popen(self._command(url), cwd=ROOT, stdout=log, stderr=log)  # noqa: S603
            try:
                self._watch(process)
            finally:
                process.kill()
                process.wait()
        return process.returncode, bool(interrupted)

    def _command(self, url: str) -> list[str]:
        return [
            *(console_script("locust"), "--locustfile", str(ROOT / "load_tests" / "locustfile.py")),
            *("--headless", "--only-summary", "--host", url, "--users", str(self.users)),
            *("--spawn-rate", str(self.users), "--run-time", f"{self.seconds}s", "--stop-timeout", str(STOP_S)),
            *("--workload", str(self.workload.resolve()), "--samples", str(self.samples.resolve())),
            *self.classes,
        ]

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Show the progress until it ends."""
        began = time.monotonic()
        limit = began + self.seconds + 2 * STOP_S
        with tqdm(total=self.seconds, unit=" s", file=sys.stderr, disable=None) as bar:
            while process.poll() is None and time.monotonic() < limit:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_S)
                bar.update(min(self.seconds, round(time.monotonic() - began)) - bar.n)
                bar.set_postfix_str(
                    ", ".join(
                        f"{count} {name}" for name, count in report.outcomes(self.measured()).items() if count
                    )
                )

    def measured(self) -> list[Sample]:
        """Return the samples so far."""
        with self.samples.open(encoding="utf-8") as lines:
            return list(read(lines))


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Ignore Ctrl-C, which the terminal sends to locust too, and remember it."""
    told: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: told.append(number))
    try:
        yield told
    finally:
        signal.signal(signal.SIGINT, before)


def _tell(run: report.Run, load: _Load, status: int) -> int:
    """Print the result, write the report, and return the exit status."""
    measured = load.measured()
    if not measured:
        click.echo(f"No request was sent. locust's log is {load.output / 'locust.log'}", err=True)
        return 1
    page = load.output / "report.html"
    page.write_text(report.html(run, measured), encoding="utf-8")
    click.echo(report.table(measured))
    click.echo(report.rates(measured))
    for line in (
        report.lateness(measured),
        *(f"{count} x {fault}" for count, fault in report.faults(measured)[:10]),
    ):
        if line:
            click.echo(line, err=True)
    click.echo(f"the report is {page}")
    return 1 if report.faults(measured) or status < 0 else status


if __name__ == "__main__":
    main()
