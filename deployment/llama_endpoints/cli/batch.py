"""`llama-endpoints batch`: score files of rows into a file of records."""

import asyncio
import json
import logging
import os
import re
import signal
import sys
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llama_endpoints.batch.row_defaults import defaults_of
from llama_endpoints.cli.options import setting_options
from llama_serving.errors import ServingError, SetupError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llama_serving.batch.job import BatchJob, Limit, Result
    from llama_serving.batch.journal import Counts
    from llama_serving.model_files import ModelFiles
    from llama_serving.settings import Settings

CONCURRENCY: Final = "64"
"""The default of LLAMA_MAX_NUM_SEQS here. Batch jobs favour throughput over a row's latency."""
TOO_MANY_ERRORS: Final = 1
STOPS: Final = (signal.SIGTERM, signal.SIGINT)


@click.command()
@click.option(
    "--model",
    required=True,
    help="Folder of a packaged model, an azureml: URI, or nano. With --as-azure: any file or folder that the script can load.",
)
@click.option(
    "--input",
    "inputs",
    required=True,
    multiple=True,
    metavar="FILE|FOLDER|GLOB",
    help="JSONL or CSV file, optionally .gz. Repeatable.",
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="JSONL file to write. With --as-azure: a new folder.",
)
@click.option(
    "--parameters",
    default="{}",
    show_default=False,
    help="JSON object of parameters for rows without their own.",
)
@click.option("--max-errors", help="Stop with exit code 1 when more rows fail: a count, or a share such as 1%.")
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace an existing output. A journal of the same job is still resumed.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check every row, count tokens and estimate the time, without loading the model.",
)
@click.option(
    "--as-azure",
    "deployment",
    type=click.Path(path_type=Path),
    metavar="DEPLOYMENT.yml",
    help="Run this batch deployment as Azure ML would: its script, processes, mini-batches, retries and timeouts.",
)
@setting_options
@click.option("--concurrency", "max_num_seqs", help=f"LLAMA_MAX_NUM_SEQS: sequences at a time. Default: {CONCURRENCY}.")  # fmt: skip
def batch(  # noqa: PLR0913  (the options of a command)
    *, model: str, inputs: "Sequence[str]", output: Path, parameters: str, max_errors: str | None, overwrite: bool,
    dry_run: bool, deployment: Path | None, **flags: str | None,
) -> None:  # fmt: skip
    """Score files of rows. Write one record per row, in order.

    \b
    A row is any of {"input_string"}, {"prompt"}, {"messages"}, {"prefix", "suffix"}, with
    optional "parameters" and "id"; a whole request body; or a line of OpenAI's Batch format.
    A CSV has a column input_string.

    Progress is kept in OUTPUT.journal. After a crash, a full disk or Ctrl-C, run the same command
    again to resume. Exit codes: 0 done, even if rows failed; 1 too many rows failed, or the model
    stopped; 2 the job cannot start or continue (files, disk, settings); 128 + signal if a signal
    ended it.
    """  # noqa: D301  (click reads the backspace character as "do not wrap")
    if deployment is not None:
        from llama_endpoints.cli.batch_as_azure import as_azure

        _refuse_for_azure(
            parameters=parameters != "{}", max_errors=max_errors, overwrite=overwrite, dry_run=dry_run
        )
        raise SystemExit(as_azure(deployment, model=model, inputs=inputs, output=output, flags=flags))
    if output.is_dir():
        raise SetupError(f"{output} is a folder. Give the name of a file.")
    from llama_endpoints.cli.options import settings_of
    from llama_endpoints.download.resolve import model_files
    from llama_serving.batch import job as jobs
    from llama_serving.batch.journal import Journal
    from llama_serving.service.service import Service

    if not os.environ.get("LLAMA_MAX_NUM_SEQS", "").strip():
        flags["max_num_seqs"] = flags["max_num_seqs"] or CONCURRENCY
    files, settings = model_files(model), settings_of(flags)
    job = _job(inputs, output, parameters, jobs.about(files, settings), _limit(max_errors))
    if dry_run:
        raise SystemExit(_check(files, settings, job))
    if overwrite:
        jobs.make_room(job)
    counts = jobs.finished(job)
    if counts is not None:
        Journal.remove(job.outputs.journal)  # left by a run that was killed after its last step
        click.echo(f"{output} is done already: {_summary(counts)}.", err=True)
        return
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with closing(Service.start(files, settings)) as service:
        try:
            result = _with_bar(
                job.rows_at_most, lambda show: asyncio.run(jobs.run(service, job, show, stops=STOPS))
            )
        except ServingError as error:
            click.echo(f"{error.message} Progress is kept: run the same command again to resume.", err=True)
            raise SystemExit(1) from None
    raise SystemExit(_end(result, output))


def _refuse_for_azure(**options: object) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise SetupError(
            f"--as-azure cannot be combined with {' or '.join(given)}. Remove {'it' if len(given) == 1 else 'them'}."
        )


def _job(
    inputs: "Sequence[str]", output: Path, parameters: str, about: "Mapping[str, Any]", limit: "Limit"
) -> "BatchJob":
    from llama_serving.batch import inputs as sources
    from llama_serving.batch.job import BatchJob
    from llama_serving.batch.outputs import Outputs

    outputs = Outputs(output)
    found = sources.find(inputs, but=outputs.all)
    if not output.parent.is_dir():
        raise SetupError(f"The folder {output.parent} does not exist. Create it first.")
    defaults, given = defaults_of(parameters)
    size = sum(source.path.stat().st_size for source in found)
    with _bar(size, "reading", unit="B", unit_scale=True) as bar:
        digests = tuple(sources.digest(source, bar.update) for source in found)
    return BatchJob(found, digests, outputs, defaults, {**about, "parameters": given}, limit)


def _limit(text: str | None) -> "Limit":
    from llama_serving.batch.job import Limit

    if text is None:
        return Limit()
    if re.fullmatch(r"[0-9]{1,12}", text):
        return Limit(count=int(text))
    if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,6})?%", text) and float(text[:-1]) <= 100:
        return Limit(share=Fraction(text[:-1]) / 100)
    raise SetupError(f"Invalid --max-errors {text}: give a count such as 10, or a share such as 0.5%.")


def _bar(total: int | None, description: str, **options: Any) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=description, file=sys.stderr, disable=None, dynamic_ncols=True, **options)


def _with_bar(rows: int | None, run: "Callable[[Callable[[Counts], None]], Result]") -> "Result":
    with _bar(rows, "rows", unit=" rows", smoothing=0.05) as bar:
        began: list[tuple[float, int]] = []

        def show(counts: "Counts") -> None:
            if not began:
                began.append((bar.format_dict["elapsed"], counts.completion_tokens))
                bar.initial = bar.n = counts.rows  # rows of earlier runs do not count for the speed
                bar.refresh()
                return
            bar.update(counts.rows - bar.n)
            seconds = bar.format_dict["elapsed"] - began[0][0]
            tokens = counts.completion_tokens - began[0][1]
            bar.set_postfix_str(
                f"{tokens / max(seconds, 1e-9):.0f} tokens/s, {counts.errors} errors", refresh=False
            )

        return run(show)


def _end(result: "Result", output: Path) -> int:
    before = f", {result.resumed} of them from an earlier run" if result.resumed else ""
    if result.too_many_errors:
        click.echo(f"Stopped: {result.counts.errors} rows failed, more than --max-errors allows. {_summary(result.counts)}{before}; "
                   f"Progress is kept in {output}.journal.", err=True)  # fmt: skip
        return TOO_MANY_ERRORS
    if result.stopped is not None:
        click.echo(
            f"{result.stopped.name}: {_summary(result.counts)}{before}. Run the same command again to resume.",
            err=True,
        )
        return 128 + result.stopped
    click.echo(f"{output}: {_summary(result.counts)}{before}.", err=True)
    return 0


def _summary(counts: "Counts") -> str:
    return (
        f"{counts.rows} rows = {counts.ok} ok + {counts.errors} errors; "
        f"{counts.prompt_tokens} prompt tokens, {counts.completion_tokens} generated"
    )


def _check(files: "ModelFiles", settings: "Settings", job: "BatchJob") -> int:
    from llama_endpoints.batch import dry_run

    with _bar(job.rows_at_most, "checking", unit=" rows") as bar:
        found = dry_run.checked(files, settings, job, lambda text: bar.write(text, file=sys.stderr), bar.update)
    click.echo(json.dumps(found.to_dict(dry_run.seconds(files, settings, found))))
    return TOO_MANY_ERRORS if job.limit.passed(found.errors, found.rows) else 0
