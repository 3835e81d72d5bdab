"""`llama-endpoints batch --as-azure DEPLOYMENT.yml`: run a batch job as Azure ML would."""

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
from llama_endpoints.batch.azure_emulator import EmulatedJob, Tally
from llama_endpoints.download import azureml_cache
from llama_serving.catalog import NANO
from llama_serving.errors import SetupError
from llama_serving.model_files import ModelFiles

FAILED = 1


def as_azure(
    deployment: Path, *, model: str, inputs: Sequence[str], output: Path, flags: Mapping[str, str | None]
) -> int:
    """Run a job, print its progress and outputs, and return the exit code.

    Args:
        deployment: the deployment's file.
        model: file or folder of a model, an azureml: URI, or nano.
        inputs: one file or folder.
        output: a new folder.
        flags: settings by name without `LLAMA_`; they override the deployment's.

    Raises:
        SetupError: the deployment or model cannot be used, there are several inputs, or the job cannot start.
    """
    if len(inputs) != 1:
        raise SetupError("--as-azure takes one input, a file or a folder. Give --input once.")
    given = {f"LLAMA_{name.upper()}": value for name, value in flags.items() if value is not None}
    there, read = azureml_cache.resolve(model), BatchDeployment.read(deployment)
    with _model(model, there, read) as path:
        return _run(EmulatedJob(read, path, Path(inputs[0]), output, given))


@contextmanager
def _model(name: str, path: Path, deployment: BatchDeployment) -> Iterator[Path]:
    """Yield the folder of a model: `path`, or nano packaged for the duration of the job.

    Raises:
        SetupError: there is no model, or our batch driver cannot use it.
    """
    if name == NANO.name and not (path.is_file() or any(path.rglob("MLmodel"))):
        with tempfile.TemporaryDirectory(prefix="llama-nano-") as folder:
            yield _nano_in(Path(folder))
        return
    if deployment.runs_our_driver:
        ModelFiles.find(path)
    elif not path.exists():
        raise SetupError(f"{path} does not exist. Pass a model's file or folder, or nano.")
    yield path


def _nano_in(folder: Path) -> Path:
    from llama_endpoints.checkpoints.inspection import inspect
    from llama_endpoints.checkpoints.package import package
    from llama_endpoints.nano import FOLDER

    package(inspect(FOLDER, NANO), folder / NANO.name)
    return folder / NANO.name


def _run(job: EmulatedJob) -> int:
    _announce(job)
    with tqdm(total=len(job.files()), desc="files", unit=" files", file=sys.stderr, disable=None) as bar:

        def show(tally: Tally) -> None:
            bar.set_postfix_str(f"{tally.failed} failed, {tally.retries} retries", refresh=False)
            bar.update(tally.done - bar.n)

        tally = asyncio.run(azure_emulator.run(job, show, lambda text: bar.write(text, file=sys.stderr)))
    return _end(job, tally)


def _announce(job: EmulatedJob) -> None:
    has = job.deployment
    click.echo(
        f"{has.name}: {has.processes} processes, mini-batches of {has.mini_batch_size} files, {has.timeout_s} s each, "
        f"{has.max_retries} retries, error_threshold {has.error_threshold}, {has.output_action}",
        err=True,
    )
    if has.instances > 1:
        click.echo(f"Running one of its {has.instances} instances.", err=True)


def _end(job: EmulatedJob, tally: Tally) -> int:
    click.echo(
        f"{tally.files} files: {tally.done - tally.failed} succeeded, {tally.failed} failed, "
        f"{tally.files - tally.done} not done; run() returned {tally.items} items, {tally.retries} retries.",
        err=True,
    )
    for path in sorted(file for file in job.output.rglob("*") if file.is_file()):
        click.echo(f"{path}  {path.stat().st_size:,} bytes", err=True)
    if tally.stopped is not None:
        return 128 + tally.stopped
    if tally.aborted is not None:
        click.echo(f"The job failed: {tally.aborted}.", err=True)
        return FAILED
    return 0
