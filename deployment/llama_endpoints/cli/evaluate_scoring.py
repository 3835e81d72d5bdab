"""Options and steps of `evaluate` from samples on: scores, metrics, the report, and limits of a pipeline."""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llama_endpoints.cli.options import FiniteRange, options
from llama_serving.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llama_endpoints.evaluation.report.results import Limit
    from llama_endpoints.evaluation.tasks.code_task import CodeRunning

RESUME: Final = "Run the same command again to resume."
INTERRUPTED: Final = 128 + 2
LOWER: Final = 1
"""The exit code where a metric is lower than --fail-below, or higher than --fail-above."""


def _limits(_context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> "tuple[Limit, ...]":
    from llama_endpoints.evaluation.report.results import Limit

    return tuple(Limit.parse(text, above=option.name == "ceilings") for text in given)


limits_option = options(
    click.option("--fail-below", "limits", multiple=True, metavar="METRIC=VALUE", callback=_limits,
                 help="Exit with code 1 if a metric is lower, such as pass@1=0.3. Repeatable."),
    click.option("--fail-above", "ceilings", multiple=True, metavar="METRIC=VALUE", callback=_limits,
                 help="Exit with code 1 if a metric is higher, such as perplexity=5. Repeatable."),
)  # fmt: skip
scoring_options = options(
    click.option("--run-generated-code", "run_code", is_flag=True,
                 help="Run what the model wrote, apart: without network, files and other processes. Needs bubblewrap."),
    click.option("--timeout", type=FiniteRange(0.1, 3600), default=10.0, help="Seconds for each sample that is run."),
    click.option("--memory", type=click.IntRange(64, 1 << 20), default=1024, help="MiB for each sample that is run."),
    click.option("--workers", type=click.IntRange(1, 256), help="Samples run at a time. Default: the number of CPUs."),
    limits_option,
)  # fmt: skip


def rescore(folder: Path, data: Path | None, **flags: Any) -> None:
    """Score the samples of a folder again."""
    from llama_endpoints.evaluation import run
    from llama_endpoints.evaluation.folder import EvaluationFolder
    from llama_endpoints.evaluation.tasks import registry

    found = EvaluationFolder(folder)
    evaluation = found.read_evaluation()
    given = {**evaluation["settings"]["options"], **({"data": str(data)} if data else {})}
    task = registry.create(evaluation["task"], given, code_running(flags))
    run.check_data(evaluation, task)
    check_limits(task, limits_of(flags), allowed=flags["run_code"])
    measured(found, task, flags)


def code_running(flags: Mapping[str, Any]) -> "CodeRunning":
    """Return whether, and within which limits, code is run."""
    from llama_endpoints.evaluation.sandbox.limits import MIB, Limits
    from llama_endpoints.evaluation.tasks.code_task import CodeRunning

    return CodeRunning(flags["run_code"], Limits(wall_s=flags["timeout"], memory=flags["memory"] * MIB))


def limits_of(flags: Mapping[str, Any]) -> "tuple[Limit, ...]":
    """Return all limits that were given."""
    return (*flags["limits"], *flags["ceilings"])


def check_limits(task: Any, limits: "Sequence[Limit]", *, allowed: bool) -> None:
    """Refuse limits that can't be checked, before hours of generation."""
    if limits and task.runs_code and not allowed:
        raise click.UsageError(
            "--fail-below and --fail-above need --run-generated-code: this task's metrics are of code that is run."
        )
    names = [metric.name for metric in task.metrics]
    for name in (limit.metric for limit in limits):
        if name not in names and not name.startswith(tuple(f"{one} (" for one in names)):
            raise SetupError(f"The task has no metric {name!r}. It has: {', '.join(names)}.")


def measured(folder: Any, task: Any, flags: Mapping[str, Any]) -> None:
    """Score, write the report, log it, and check the limits."""
    from llama_endpoints.evaluation import run
    from llama_endpoints.evaluation.report import mlflow_run, results

    if not folder.samples.exists():
        raise SetupError(f"{folder.path} has no samples yet. Run the command that evaluates again.")
    total = sum(1 for _ in folder.read_samples())
    with resumable(), progress_bar(total, "scores") as bar:
        found = run.measure(folder, task, bar.update, workers=flags["workers"] or os.cpu_count() or 1)
    for one in found:
        measured = one.measured
        click.echo(
            f"{one.name}: {measured.value:.4f} ({measured.low:.4f} to {measured.high:.4f}), {one.verdict}"
        )
    click.echo(f"Report: {folder.path / 'report.html'}", err=True)
    if mlflow_run.tracking_uri():
        click.echo(f"MLflow run: {mlflow_run.log(folder, found)}", err=True)
    lower = results.breaches(found, limits_of(flags))
    for sentence in lower:
        click.echo(sentence, err=True)
    if lower:
        raise SystemExit(LOWER)


@contextmanager
def resumable() -> "Iterator[None]":
    """End the command at Ctrl-C, and say how it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"Interrupted. {RESUME}", err=True)
        raise SystemExit(INTERRUPTED) from None


@contextmanager
def progress_bar(total: int, what: str) -> "Iterator[Any]":
    """Show progress on a terminal."""
    from tqdm import tqdm

    with tqdm(
        total=total, desc=what, unit=f" {what}", file=sys.stderr, disable=None, dynamic_ncols=True
    ) as bar:
        yield bar
