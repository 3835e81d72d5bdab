"""Run a batch job locally as Azure ML would: the deployment's processes with its own script.

    OUTPUT/score/            the content of the job's output `score`
    OUTPUT/logs/0.txt …      the log of each process

Files are processed in mini-batches. One that fails or times out is retried by the next free process. Failed files are counted:
those of a mini-batch that failed at every try, and those for which `run` returned no item (as documented for
`ParallelRunConfig` of azureml-pipeline-steps, which runs batch deployments).
"""

import asyncio
import os
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Final

from llama_endpoints.batch.azure_deployment import BatchDeployment
from llama_endpoints.batch.azure_emulator_process import Failed, ScriptProcess
from llama_serving.errors import SetupError
from llama_serving.settings import Settings

OUTPUT: Final = "score"
LOGS: Final = "logs"
STOPS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_OF_VLLM: Final = frozenset(
    f"LLAMA_{one.name.upper()}" for one in fields(Settings) if one.name.startswith("vllm")
)


@dataclass(frozen=True, slots=True)
class EmulatedJob:
    """A job to run.

    Attributes:
        deployment: the deployment.
        model: a file or folder, as it would be registered.
        given: the input, a file or a folder.
        output: a new or empty folder.
        flags: variables that override the deployment's.
    """

    deployment: BatchDeployment
    model: Path
    given: Path
    output: Path
    flags: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def ours(self) -> dict[str, str]:
        """Return the deployment's variables; vLLM's only if no flag selects another engine."""
        named = self.flags.get("LLAMA_ENGINE")
        dropped = _OF_VLLM if named not in {None, "auto", "vllm"} else ()
        kept = {name: value for name, value in self.deployment.environment.items() if name not in dropped}
        return {**kept, **self.flags}

    def environment(self, models: Path) -> dict[str, str]:
        """Return all variables of a process, without this shell's settings for our other commands.

        Args:
            models: the parent folder of the model.
        """
        shell = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
        given = self.given.absolute()
        return {
            **shell,
            **self.ours,
            "AZUREML_MODEL_DIR": str(models),
            "AZUREML_BI_OUTPUT_PATH": str(self.output.absolute() / OUTPUT),
            "AZURE_ML_INPUT_input": str(given if given.is_dir() else given.parent),
        }

    def files(self) -> tuple[Path, ...]:
        """Return the files Azure would process: one file, or every file below a folder.

        Raises:
            SetupError: there is none.
        """
        path = self.given.absolute()
        files = (path,) if path.is_file() else tuple(sorted(file for file in path.rglob("*") if file.is_file()))
        if not files:
            raise SetupError(f"{self.given} is neither a file nor a folder with files.")
        return files

    def check(self) -> None:
        """Refuse a job that would lose or overwrite records.

        Raises:
            SetupError: the driver and the deployment disagree on who writes the records, or the output is in use.
        """
        action, driver = self.deployment.output_action, self.ours.get("LLAMA_BATCH_OUTPUT", "append_row")
        if self.deployment.runs_our_driver and driver != action:
            raise SetupError(
                f"output_action is {action}, but LLAMA_BATCH_OUTPUT is {driver}, so no records would be written. Set both "
                "to the same value; LLAMA_BATCH_OUTPUT in the deployment's settings.environment_variables."
            )
        if self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir())):
            raise SetupError(f"{self.output} is not an empty folder. Use another --output.")


@dataclass(slots=True)
class Tally:
    """The progress of a job.

    Attributes:
        files: number of files.
        done: files that are finished.
        failed: finished files that failed.
        retries: retries of mini-batches.
        items: items that `run` returned.
        aborted: why the job failed; None if it did not.
        stopped: the signal that ended it; None if there was none.
    """

    files: int
    done: int = 0
    failed: int = 0
    retries: int = 0
    items: int = 0
    aborted: str | None = None
    stopped: signal.Signals | None = None


@dataclass(frozen=True, slots=True)
class MiniBatch:
    """Files of one call of `run`, and its failed tries."""

    number: int
    files: tuple[Path, ...]
    failures: int = 0


async def run(job: EmulatedJob, on_change: Callable[[Tally], None], say: Callable[[str], None]) -> Tally:
    """Run a job to its end. SIGINT, SIGTERM and SIGHUP end it and its processes.

    Args:
        job: the job.
        on_change: called with every change of the tally.
        say: called with a sentence for each failure.

    Raises:
        SetupError: the job cannot start, or the disk is full.
    """
    job.check()
    files = job.files()
    (job.output / OUTPUT).mkdir(parents=True)
    (job.output / LOGS).mkdir()
    try:
        with tempfile.TemporaryDirectory(prefix="llama-azure-") as scratch:
            return await _EmulatedRun(job, files, Path(scratch), on_change, say).run()
    except OSError as error:
        raise SetupError(f"{error.filename or job.output}: {error.strerror}.") from error


class _EmulatedRun:
    def __init__(
        self,
        job: EmulatedJob,
        files: Sequence[Path],
        scratch: Path,
        on_change: Callable[[Tally], None],
        say: Callable[[str], None],
    ) -> None:
        self._job, self._deployment, self._scratch = job, job.deployment, scratch
        self._on_change, self._say = on_change, say
        self._tally = Tally(len(files))
        self._waiting: asyncio.Queue[MiniBatch] = asyncio.Queue()
        size = job.deployment.mini_batch_size
        for number, at in enumerate(range(0, len(files), size)):
            self._waiting.put_nowait(MiniBatch(number, tuple(files[at : at + size])))
        self._ended = asyncio.Event()
        self._able = job.deployment.processes
        self._started: list[ScriptProcess] = []

    async def run(self) -> Tally:
        loop = asyncio.get_running_loop()
        for number in STOPS:
            loop.add_signal_handler(number, self._stop, number)
        processes = [asyncio.create_task(self._process(number)) for number in range(self._able)]
        for process in processes:
            process.add_done_callback(self._look_at)
        ends = [asyncio.create_task(self._waiting.join()), asyncio.create_task(self._ended.wait())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*processes, *ends):
                task.cancel()
            outcomes = await asyncio.gather(*processes, *ends, return_exceptions=True)
            for started in self._started:  # one may already be ending
                await started.end()
            for number in STOPS:
                loop.remove_signal_handler(number)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        self._look_for_output()
        return self._tally

    def _look_for_output(self) -> None:
        """Abort if a job that appends rows has written none, even if failures are ignored."""
        ended = self._tally.aborted is not None or self._tally.stopped is not None
        if not ended and self._deployment.output_action == "append_row" and not self._tally.items:
            self._tally.aborted = "run() returned no items, so there is no output"

    async def _process(self, number: int) -> None:
        """Keep one process running, and replace it when it ends, until one cannot start."""
        models = self._models()
        log = self._job.output / LOGS / f"{number}.txt"
        while True:
            try:
                process = await ScriptProcess.start(
                    self._deployment.script,
                    level=self._deployment.logging_level,
                    environment=self._job.environment(models),
                    log=log,
                )
            except Failed as failed:
                self._unable(f"init() failed: {failed} (the log is {log})")
                return
            self._started.append(process)
            try:
                while await self._try(process, await self._waiting.get()):
                    pass
            finally:
                await process.end()

    def _models(self) -> Path:
        """Return the parent folder of the model, which Azure passes, with the model under its registered name."""
        models = self._scratch / "models"
        models.mkdir(exist_ok=True)
        model = Path(os.path.abspath(self._job.model))  # noqa: PTH100  (keeps a link's own name)
        link = models / (model.name or "model")
        if not link.is_symlink():
            link.symlink_to(model, target_is_directory=model.is_dir())
        return models

    async def _try(self, process: ScriptProcess, batch: MiniBatch) -> bool:
        """Run a mini-batch. Return whether the process can be used again."""
        results = self._scratch / f"{batch.number}.{batch.failures}.txt"
        try:
            items = await process.run(batch.files, results, timeout_s=self._deployment.timeout_s)
        except Failed as failed:
            self._retry(batch, str(failed))
            return failed.alive
        else:
            self._take(batch, items, results)
            return True
        finally:
            results.unlink(missing_ok=True)
            self._on_change(self._tally)
            self._waiting.task_done()

    def _take(self, batch: MiniBatch, items: int, results: Path) -> None:
        if self._deployment.output_action == "append_row":
            with (self._job.output / OUTPUT / self._deployment.output_file_name).open("ab") as file:
                file.write(results.read_bytes())
        self._tally.items += items
        self._done(batch, max(0, len(batch.files) - items), "run() returned no item for them")

    def _retry(self, batch: MiniBatch, why: str) -> None:
        failures, tries = batch.failures + 1, self._deployment.max_retries + 1
        self._say(f"mini-batch {batch.number} ({_shown(batch.files)}), try {failures} of {tries}: {why}.")
        if failures < tries:
            self._tally.retries += 1
            self._waiting.put_nowait(replace(batch, failures=failures))
        else:
            self._done(batch, len(batch.files), why)

    def _done(self, batch: MiniBatch, failed: int, why: str) -> None:
        self._tally.done += len(batch.files)
        self._tally.failed += failed
        if failed:
            self._say(f"{failed} of {len(batch.files)} files failed ({_shown(batch.files)}): {why}.")
        allowed = self._deployment.error_threshold
        if 0 <= allowed < self._tally.failed:
            self._abort(f"{self._tally.failed} files failed, but error_threshold allows {allowed}")

    def _unable(self, why: str) -> None:
        self._say(f"{why}.")
        self._able -= 1
        if not self._able:
            self._abort(why)

    def _look_at(self, process: "asyncio.Task[None]") -> None:
        if not process.cancelled() and process.exception():
            self._ended.set()

    def _abort(self, why: str) -> None:
        self._tally.aborted = why
        self._ended.set()

    def _stop(self, number: int) -> None:
        self._tally.stopped = signal.Signals(number)
        self._ended.set()


def _shown(files: Sequence[Path]) -> str:
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"{files[0].name}{more}"
