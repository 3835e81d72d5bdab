"""`llama-endpoints batch --as-azure DEPLOYMENT.yml`: a batch job as Azure ML would run it."""

import asyncio
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from tqdm import tqdm

from llama_endpoints.batch import azure_emulator
from llama_endpoints.batch.azure_deployment import BatchDeployment
from llama_endpoints.batch.azure_emulator import Job, Tally
from llama_endpoints.download import azureml_cache
from llama_serving.catalog import NANO
from llama_serving.errors import SetupError
from llama_serving.model_files import ModelFiles

FAILED = 1


def as_azure(
    deployment: Path, *, model: str, inputs: Sequence[str], output: Path, flags: Mapping[str, str | None]
) -> int:
    """Run a job, show how it goes and what it leaves; the exit code.

    Args:
        deployment: its file.
        model: file or folder of a model, one of Azure's names of it, or nano.
        inputs: one file or folder.
        output: a new folder.
        flags: settings by their names without `LLAMA_`; they win over the deployment's.

    Raises:
        SetupError: the deployment or the model can't be used, there are several inputs, or the job can't begin.
    """
    if len(inputs) != 1:
        raise SetupError(
            "A job of Azure's has one input, a file or a folder. Give --input once with --as-azure."
        )
    given = {f"LLAMA_{name.upper()}": value for name, value in flags.items() if value is not None}
    there, read = azureml_cache.here(model), BatchDeployment.read(deployment)
    with _model(model, there, read) as path:
        return _run(Job(read, path, Path(inputs[0]), output, given))


@contextmanager
def _model(name: str, path: Path, deployment: BatchDeployment) -> Iterator[Path]:
    """Where the model `name` lies, if it is not at `path`: nano is packaged for the time of the job.

    Raises:
        SetupError: there is none, or our driver can't use it.
    """
    if name == NANO.name and not (path.is_file() or any(path.rglob("MLmodel"))):
        with tempfile.TemporaryDirectory(prefix="llama-nano-") as folder:
            yield _nano_in(Path(folder))
        return
    if deployment.runs_our_driver:
        ModelFiles.find(path)
    elif not path.exists():
        raise SetupError(f"{path} is not there. Name a model's file or folder, or nano.")
    yield path


def _nano_in(folder: Path) -> Path:
    from llama_endpoints.checkpoints.inspection import inspect
    from llama_endpoints.checkpoints.package import package
    from llama_endpoints.nano import FOLDER

    package(inspect(FOLDER, NANO), folder / NANO.name)
    return folder / NANO.name


def _run(job: Job) -> int:
    _announce(job)
    with tqdm(total=len(job.files()), desc="files", unit=" files", file=sys.stderr, disable=None) as bar:

        def told(tally: Tally) -> None:
            bar.set_postfix_str(f"{tally.failed} failed, {tally.retries} retries", refresh=False)
            bar.update(tally.done - bar.n)

        tally = asyncio.run(azure_emulator.run(job, told, lambda text: bar.write(text, file=sys.stderr)))
    return _end(job, tally)


def _announce(job: Job) -> None:
    has = job.deployment
    click.echo(
        f"{has.name}: {has.processes} processes, mini-batches of {has.mini_batch_size} files, {has.timeout_s} s each, "
        f"{has.max_retries} retries, error_threshold {has.error_threshold}, {has.output_action}",
        err=True,
    )
    if has.instances > 1:
        click.echo(f"One of its {has.instances} instances runs here.", err=True)


def _end(job: Job, tally: Tally) -> int:
    click.echo(
        f"{tally.files} files: {tally.done - tally.failed} succeeded, {tally.failed} failed, "
        f"{tally.files - tally.done} not done; {tally.items} items of run(), {tally.retries} retries.",
        err=True,
    )
    for path in sorted(file for file in job.output.rglob("*") if file.is_file()):
        click.echo(f"{path}  {path.stat().st_size:,} bytes", err=True)
    if tally.stopped is not None:
        return 128 + tally.stopped
    if tally.aborted is not None:
        click.echo(f"The job has failed: {tally.aborted}.", err=True)
        return FAILED
    return 0
