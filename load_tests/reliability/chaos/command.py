"""`python -m load_tests.reliability chaos`: see `--help`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
from tqdm import tqdm

from load_tests.reliability import injected, runs
from load_tests.reliability.chaos.boundaries import FAULTS, Boundaries, told
from load_tests.reliability.chaos.jobs import JOBS
from load_tests.reliability.chaos.starter import BuildError, Starter, build


@click.command("chaos")
@click.option(
    "--job", type=click.Choice(sorted(JOBS)), default="batch", show_default=True, help="The command to disturb."
)
@click.option(
    "--fault", "faults", type=click.Choice(FAULTS), multiple=True, help="Only these faults. Repeatable."
)
@click.option("--planted", "defect", type=click.Choice(injected.OF_JOBS), help="Run the command with a defect.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="The run as JSON; default: build/chaos-JOB.json.")  # fmt: skip
def main(*, job: str, faults: tuple[str, ...], defect: str | None, output: Path | None) -> None:
    """Kill a command, or let its disk fail, at each call that changes its folder, one after the other, and give it again.

    \b
    kill    SIGKILL before the call
    torn    SIGKILL after it; of a write, the first half of the bytes is there
    enospc  from this call on the disk is full
    eio     this call fails

    Then nothing may be half-written, and the same command must end with the bytes of an undisturbed one. Needs gcc and Linux. Exit
    codes: 0 so it was; 1 it was not; 2 it could not start.
    """  # noqa: D301  (click reads the backspace character as "do not wrap")
    found = []
    try:
        with (
            tempfile.TemporaryDirectory(prefix="chaos-") as folder,
            Starter(build(Path(folder)), JOBS[job].modules, defect) as starter,
        ):
            work = Path(folder) / "work"
            work.mkdir()
            boundaries, kinds = Boundaries(JOBS[job], starter, work), faults or FAULTS
            with tqdm(
                total=len(kinds) * len(boundaries.calls), unit=" faults", file=sys.stderr, disable=None
            ) as bar:
                for outcome in boundaries.each(kinds):
                    found.append(outcome)
                    bar.update()
    except BuildError as error:
        click.echo(str(error), err=True)
        raise SystemExit(2) from None
    wrong = [outcome for outcome in found if outcome.wrong]
    runs.write(
        output or runs.ROOT / "build" / f"chaos-{job}.json",
        "chaos",
        {"job": job, "planted": defect, **told(found)},
    )
    click.echo(f"{job}: {len(found)} faults at {len(boundaries.calls)} calls, {len(wrong)} not as promised")
    for outcome in wrong:
        click.echo(f"{outcome.fault} at {outcome.at}, {outcome.call}: {'; '.join(outcome.wrong)}", err=True)
    raise SystemExit(1 if wrong else 0)
