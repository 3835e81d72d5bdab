"""`python -m load_tests.reliability soak`: see `--help`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from tqdm import tqdm

from llama_endpoints.devtools.servers import (
    ServerStartError,
    azmlinfsrv,
    console_script,
    environment,
    mlflow_serve,
    own_server,
)
from load_tests.reliability import charts, injected, runs, soak
from load_tests.reliability.users import LOADS, Length, Users
from load_tests.run import USERS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from llama_endpoints.devtools.servers import RunningServer

HOUR_S: Final = 3600
SHORTEST_S: Final = 1.0
LONGEST_S: Final = 30.0
CYCLES: Final = 40
"""Cycles of a run, if none of them is then shorter or longer than these."""
ROWS: Final = 40


@click.command("soak")
@click.option(
    "--server", type=click.Choice(sorted(USERS)), default="own", show_default=True, help="The server to start."
)
@click.option(
    "--model", default="nano", show_default=True, help="Folder of a packaged model. The stock servers need one."
)
@click.option("--engine", default="batching", show_default=True, help="LLAMA_ENGINE.")
@click.option(
    "--hours", type=click.FloatRange(0, min_open=True), default=0.1, show_default=True, help="Duration."
)
@click.option("--requests", type=click.IntRange(1), help="Number of requests, instead of --hours.")
@click.option("--users", type=click.IntRange(1), default=8, show_default=True, help="Concurrent users.")
@click.option(
    "--load", type=click.Choice(sorted(LOADS)), default="mixed", show_default=True, help="What they send."
)
@click.option("--batch/--no-batch", default=True, show_default=True, help="Run a batch job beside each cycle.")
@click.option(
    "--planted", "defect", type=click.Choice(injected.OF_SERVERS), help="Start the server with a defect."
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default=runs.ROOT / "build" / "soak.json",
              show_default=False, help="The run as JSON, with an .svg beside it; default: build/soak.json.")  # fmt: skip
def main(  # noqa: PLR0913  (the options of a command)
    *,
    server: str,
    model: str,
    engine: str,
    hours: float,
    requests: int | None,
    users: int,
    load: str,
    batch: bool,
    defect: str | None,
    output: Path,
) -> None:
    """Load a server for hours with all that its clients do, and find what grows.

    Whole answers, streams, clients that go, broken bodies and long prompts come in cycles, with a batch job beside them. After each
    cycle the server rests, and what it holds is read. Exit codes: 0 nothing grows and every answer was right; 1 otherwise; 2 it
    could not start.
    """
    length, cycle = _lengths(hours, requests)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="soak-") as folder,
            _started(
                server, model, _settings(engine, users) | injected.environment(defect, Path(folder))
            ) as running,
            tqdm(
                total=requests or round(hours * HOUR_S), unit=" requests" if requests else " s", disable=None
            ) as bar,
        ):
            told = asyncio.run(soak.run(
                running, Users(running.url, USERS[server], users, LOADS[load]), probes=Path(folder), length=length, cycle=cycle,
                beside=_Batch(Path(folder)) if batch else None,
                told=lambda so_far: bar.update(int(so_far.requests if requests else so_far.rests[-1].at) - bar.n),
            ))  # fmt: skip
    except ServerStartError as error:
        click.echo(str(error), err=True)
        raise SystemExit(2) from None
    setting = {"server": server, "engine": engine, "users": users, "load": load, "planted": defect}
    found = told.told()
    runs.write(output, "soak", {**setting, **found})
    output.with_suffix(".svg").write_text(charts.soak(found["rests"]), encoding="utf-8")
    _say(told)
    raise SystemExit(1 if told.verdict() else 0)


def _lengths(hours: float, requests: int | None) -> tuple[Length, Length]:
    """Return the length of the run and of its cycles."""
    if requests is not None:
        return Length(requests=requests), Length(requests=math.ceil(requests / CYCLES))
    seconds = hours * HOUR_S
    return Length(seconds), Length(min(LONGEST_S, max(SHORTEST_S, seconds / CYCLES)))


def _settings(engine: str, users: int) -> dict[str, str]:
    return {
        "LLAMA_ENGINE": engine,
        "LLAMA_DTYPE": "float32",
        "LLAMA_MAX_NUM_SEQS": "16",
        "LLAMA_QUEUE": str(3 * users),  # so that a 429 is a place that was not given back
        "LLAMA_KV_MEMORY": "24MiB",  # filled during the warm-up; later growth is something else
    }


def _started(server: str, model: str, settings: Mapping[str, str]) -> AbstractContextManager[RunningServer]:
    path = Path(model)
    if server == "own":
        return own_server(path if path.is_dir() else model, env=settings)
    if not path.is_dir():
        raise click.UsageError(f"{server} needs the folder of a packaged model as --model; {model} is none.")
    if server == "mlflow":
        return mlflow_serve(path, env=settings)
    return azmlinfsrv(path, score=runs.ROOT / "score", env=settings)


@dataclass(slots=True)
class _Batch:
    """A batch job that is run again and again, and must give the same bytes each time."""

    folder: Path
    _expected: str = ""

    def __call__(self) -> str | None:
        rows, output = self.folder / "rows.jsonl", self.folder / "out.jsonl"
        rows.write_text(
            "".join(
                json.dumps({"prompt": f"def f{n}(", "seed": n, "max_tokens": 4}) + "\n" for n in range(ROWS)
            )
        )
        command = [console_script("llama-endpoints"), "batch", "--model", "nano", "--input", str(rows), "--output", str(output),
                   "--overwrite", "--dtype", "float32"]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, env=environment({}))  # noqa: S603
        if done.returncode:
            return f"the batch job beside it ended with exit code {done.returncode}"
        digest = hashlib.sha256(output.read_bytes()).hexdigest()
        self._expected = self._expected or digest
        return None if digest == self._expected else "the batch job beside it wrote other bytes"


def _say(told: soak.Soak) -> None:
    click.echo(f"{told.requests} requests in {len(told.rests)} cycles: "
               + ", ".join(f"{count} {name}" for name, count in sorted(told.outcomes.items())))  # fmt: skip
    for name, grown in told.trends().items():
        click.echo(f"{name}: {grown.slope:+.4g} a request, between {grown.low:+.4g} and {grown.high:+.4g}")
    for fault in told.verdict():
        click.echo(f"Not as promised: {fault}", err=True)
