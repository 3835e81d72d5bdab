"""`llama-endpoints batch`: files of rows -> a file of records."""

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
from llama_endpoints.cli.setting_options import setting_options
from llama_serving.errors import ServingError, SetupError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llama_serving.batch.job import BatchJob, Limit, Result
    from llama_serving.batch.journal import Counts
    from llama_serving.model_files import ModelFiles
    from llama_serving.settings import Settings

CONCURRENCY: Final = "64"
"""Sequences at a time, where LLAMA_MAX_NUM_SEQS does not say: nobody waits for a single row."""
TOO_MANY_ERRORS: Final = 1
STOPS: Final = (signal.SIGTERM, signal.SIGINT)


@click.command()
@click.option(
    "--model",
    required=True,
    help="Folder of a packaged model, azureml:...; or nano. With --as-azure any model's file or folder that the script can load.",
)
@click.option(
    "--input",
    "inputs",
    required=True,
    multiple=True,
    metavar="FILE|FOLDER|GLOB",
    help="JSONL or CSV, also .gz; may be repeated.",
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="File for the records, JSONL. With --as-azure a new folder.",
)
@click.option(
    "--parameters", default="{}", help="JSON object: parameters of rows that bring none of their own."
)
@click.option(
    "--max-errors", help="Stop with exit code 1 when more rows fail: a number, or a share such as 1%."
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace what is there. A journal of the very same job is still gone on with.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check every row, count tokens and say how long it would take; the model is not loaded.",
)
@click.option(
    "--as-azure",
    "deployment",
    type=click.Path(path_type=Path),
    metavar="DEPLOYMENT.yml",
    help="Run this batch deployment as Azure ML would: its script, processes, mini-batches, retries, timeouts.",
)
@setting_options
@click.option("--concurrency", "max_num_seqs", help=f"LLAMA_MAX_NUM_SEQS: sequences at a time; {CONCURRENCY} by default.")  # fmt: skip
def batch(  # noqa: PLR0913  (the options of a command)
    *, model: str, inputs: "Sequence[str]", output: Path, parameters: str, max_errors: str | None, overwrite: bool,
    dry_run: bool, deployment: Path | None, **flags: str | None,
) -> None:  # fmt: skip
    """Score files of rows: one record for each row, in order, none lost and none twice.

    \b
    A row is any of {"input_string"}, {"prompt"}, {"messages"}, {"prefix", "suffix"}, with
    optional "parameters" and "id"; a whole request body; or a line of OpenAI's Batch format.
    A CSV has a column input_string.

    What is done is kept in OUTPUT.journal. Killed, out of disk or stopped with Ctrl-C, the
    same command goes on where it ended. Exit codes: 0 done, whatever rows failed; 1 too many
    failed, or the model stopped; 2 it can't begin or go on (files, disk, settings);
    128 + signal where one ended it.
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
        Journal.remove(job.outputs.journal)  # of a run that was killed with everything in its place
        click.echo(f"{output} is done already: {_told(counts)}.", err=True)
        return
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with closing(Service.start(files, settings)) as service:
        try:
            result = _with_bar(
                job.rows_at_most, lambda told: asyncio.run(jobs.run(service, job, told, stops=STOPS))
            )
        except ServingError as error:
            click.echo(f"{error.message} What is done is kept: give the same command again to go on.", err=True)
            raise SystemExit(1) from None
    raise SystemExit(_end(result, output))


def _refuse_for_azure(**options: object) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise SetupError(f"A job of Azure's has no {' and no '.join(given)}. Leave it out with --as-azure.")


def _job(
    inputs: "Sequence[str]", output: Path, parameters: str, about: "Mapping[str, Any]", limit: "Limit"
) -> "BatchJob":
    from llama_serving.batch import inputs as sources
    from llama_serving.batch.job import BatchJob
    from llama_serving.batch.outputs import Outputs

    outputs = Outputs(output)
    found = sources.find(inputs, but=outputs.all)
    if not output.parent.is_dir():
        raise SetupError(f"{output.parent} is no folder. Make it first.")
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
    raise SetupError(f"--max-errors {text} is neither a number nor a share. Give one such as 10, or 0.5%.")


def _bar(total: int | None, description: str, **options: Any) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=description, file=sys.stderr, disable=None, dynamic_ncols=True, **options)


def _with_bar(rows: int | None, run: "Callable[[Callable[[Counts], None]], Result]") -> "Result":
    with _bar(rows, "rows", unit=" rows", smoothing=0.05) as bar:
        began: list[tuple[float, int]] = []

        def told(counts: "Counts") -> None:
            if not began:
                began.append((bar.format_dict["elapsed"], counts.completion_tokens))
                bar.initial = bar.n = counts.rows  # (what was done before took no time now)
                bar.refresh()
                return
            bar.update(counts.rows - bar.n)
            seconds = bar.format_dict["elapsed"] - began[0][0]
            tokens = counts.completion_tokens - began[0][1]
            bar.set_postfix_str(
                f"{tokens / max(seconds, 1e-9):.0f} tokens/s, {counts.errors} errors", refresh=False
            )

        return run(told)


def _end(result: "Result", output: Path) -> int:
    before = f", {result.resumed} of them before" if result.resumed else ""
    if result.too_many_errors:
        click.echo(f"Stopped: {result.counts.errors} rows failed, more than --max-errors allows. {_told(result.counts)}{before}; "
                   f"they are kept in {output}.journal.", err=True)  # fmt: skip
        return TOO_MANY_ERRORS
    if result.stopped is not None:
        click.echo(
            f"{result.stopped.name}: {_told(result.counts)}{before}. Give the same command again to go on.",
            err=True,
        )
        return 128 + result.stopped
    click.echo(f"{output}: {_told(result.counts)}{before}.", err=True)
    return 0


def _told(counts: "Counts") -> str:
    return (
        f"{counts.rows} rows = {counts.ok} ok + {counts.errors} errors; "
        f"{counts.prompt_tokens} tokens of prompts, {counts.completion_tokens} generated"
    )


def _check(files: "ModelFiles", settings: "Settings", job: "BatchJob") -> int:
    from llama_endpoints.batch import dry_run

    with _bar(job.rows_at_most, "checking", unit=" rows") as bar:
        found = dry_run.checked(files, settings, job, lambda text: bar.write(text, file=sys.stderr), bar.update)
    click.echo(json.dumps(found.told(dry_run.seconds(files, settings, found))))
    return TOO_MANY_ERRORS if job.limit.passed(found.errors, found.rows) else 0
