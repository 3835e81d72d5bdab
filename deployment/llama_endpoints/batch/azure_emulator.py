"""A batch job as Azure ML would run it, on this machine: the deployment's own processes around its own script.

    OUTPUT/score/            what the job's output `score` would hold
    OUTPUT/logs/0.txt …      what each process said

Files are handed out by mini-batches; one that fails, or is not done in its time, is tried again by whoever is free. Files
that failed are counted: those of a mini-batch that failed at every try, and those that `run` returned no item for
(`ParallelRunConfig` of azureml-pipeline-steps, which runs batch deployments, says so).
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
from llama_endpoints.batch.azure_emulator_process import Failed, Process
from llama_serving.errors import SetupError
from llama_serving.settings import Settings

OUTPUT: Final = "score"
LOGS: Final = "logs"
STOPS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_OF_VLLM: Final = frozenset(
    f"LLAMA_{one.name.upper()}" for one in fields(Settings) if one.name.startswith("vllm")
)


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done.

    Attributes:
        deployment: how.
        model: a file or a folder, as it would be registered.
        given: the input, a file or a folder.
        output: a folder that is empty or not there.
        flags: variables that win over the deployment's.
    """

    deployment: BatchDeployment
    model: Path
    given: Path
    output: Path
    flags: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def ours(self) -> dict[str, str]:
        """The variables that the deployment gives its processes; those of vLLM only where no flag names another engine."""
        named = self.flags.get("LLAMA_ENGINE")
        dropped = _OF_VLLM if named not in {None, "auto", "vllm"} else ()
        kept = {name: value for name, value in self.deployment.environment.items() if name not in dropped}
        return {**kept, **self.flags}

    def environment(self, models: Path) -> dict[str, str]:
        """All variables of a process. What this shell has set for our other commands is not among them.

        Args:
            models: the folder that the model's is in.
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
        """What Azure would hand out: a file, or every file below a folder, whatever its name.

        Raises:
            SetupError: there is none.
        """
        path = self.given.absolute()
        files = (path,) if path.is_file() else tuple(sorted(file for file in path.rglob("*") if file.is_file()))
        if not files:
            raise SetupError(
                f"{self.given} is no file, and no folder with files. A job of Azure's has one of both."
            )
        return files

    def check(self) -> None:
        """Refuse what would lose records, or write over something.

        Raises:
            SetupError: driver and deployment don't agree on who writes the records, or the output is in use.
        """
        action, driver = self.deployment.output_action, self.ours.get("LLAMA_BATCH_OUTPUT", "append_row")
        if self.deployment.runs_our_driver and driver != action:
            raise SetupError(
                f"output_action is {action}, and LLAMA_BATCH_OUTPUT is {driver}: no records would be written. Set "
                "both to the same, the second one in the deployment's settings.environment_variables."
            )
        if self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir())):
            raise SetupError(
                f"{self.output} is no empty folder. Give another --output: a job has one of its own."
            )


@dataclass(slots=True)
class Tally:
    """What became of the files.

    Attributes:
        files: all.
        done: those that are not tried any more.
        failed: of these.
        retries: tries of mini-batches beyond the first.
        items: that `run` returned.
        aborted: why the job has failed.
        stopped: the signal that ended it.
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
    """Some files, and how many tries of them have failed."""

    number: int
    files: tuple[Path, ...]
    failures: int = 0


async def run(job: Job, told: Callable[[Tally], None], say: Callable[[str], None]) -> Tally:
    """Run a job to its end. SIGINT, SIGTERM and SIGHUP end it, and all its processes.

    Args:
        job: what is to be done.
        told: called with the tally whenever it changed.
        say: called with a sentence when something failed.

    Raises:
        SetupError: it can't begin, or what it wrote did not fit on the disk.
    """
    job.check()
    files = job.files()
    (job.output / OUTPUT).mkdir(parents=True)
    (job.output / LOGS).mkdir()
    try:
        with tempfile.TemporaryDirectory(prefix="llama-azure-") as scratch:
            return await _Running(job, files, Path(scratch), told, say).run()
    except OSError as error:
        raise SetupError(f"{error.filename or job.output}: {error.strerror}.") from error


class _Running:
    def __init__(
        self,
        job: Job,
        files: Sequence[Path],
        scratch: Path,
        told: Callable[[Tally], None],
        say: Callable[[str], None],
    ) -> None:
        self._job, self._deployment, self._scratch, self._told, self._say = (
            job,
            job.deployment,
            scratch,
            told,
            say,
        )
        self._tally = Tally(len(files))
        self._waiting: asyncio.Queue[MiniBatch] = asyncio.Queue()
        size = job.deployment.mini_batch_size
        for number, at in enumerate(range(0, len(files), size)):
            self._waiting.put_nowait(MiniBatch(number, tuple(files[at : at + size])))
        self._ended = asyncio.Event()
        self._able = job.deployment.processes
        self._started: list[Process] = []

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
            for started in self._started:  # (one may have been about to be ended)
                await started.end()
            for number in STOPS:
                loop.remove_signal_handler(number)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        self._look_for_output()
        return self._tally

    def _look_for_output(self) -> None:
        """A job that is to append rows is complete only when there is a file of them, whatever failures are ignored."""
        ended = self._tally.aborted is not None or self._tally.stopped is not None
        if not ended and self._deployment.output_action == "append_row" and not self._tally.items:
            self._tally.aborted = "run() has returned no item at all, so there is no output"

    async def _process(self, number: int) -> None:
        """One of the places for a process: whatever becomes of it, there is a next one, until one can't begin."""
        models = self._models()
        log = self._job.output / LOGS / f"{number}.txt"
        while True:
            try:
                process = await Process.start(
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
        """Azure names the folder that the model's file or folder is in, by the name that it was registered with."""
        models = self._scratch / "models"
        models.mkdir(exist_ok=True)
        model = Path(os.path.abspath(self._job.model))  # noqa: PTH100  (a link keeps its own name)
        link = models / (model.name or "model")
        if not link.is_symlink():
            link.symlink_to(model, target_is_directory=model.is_dir())
        return models

    async def _try(self, process: Process, batch: MiniBatch) -> bool:
        """Whether the process can be asked again."""
        results = self._scratch / f"{batch.number}.{batch.failures}.txt"
        try:
            items = await process.run(batch.files, results, timeout_s=self._deployment.timeout_s)
        except Failed as failed:
            self._again(batch, str(failed))
            return failed.alive
        else:
            self._take(batch, items, results)
            return True
        finally:
            results.unlink(missing_ok=True)
            self._told(self._tally)
            self._waiting.task_done()

    def _take(self, batch: MiniBatch, items: int, results: Path) -> None:
        if self._deployment.output_action == "append_row":
            with (self._job.output / OUTPUT / self._deployment.output_file_name).open("ab") as file:
                file.write(results.read_bytes())
        self._tally.items += items
        self._done(batch, max(0, len(batch.files) - items), "run() returned no item for them")

    def _again(self, batch: MiniBatch, why: str) -> None:
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
            self._say(f"{failed} of {len(batch.files)} files have failed ({_shown(batch.files)}): {why}.")
        allowed = self._deployment.error_threshold
        if 0 <= allowed < self._tally.failed:
            self._abort(f"{self._tally.failed} files failed, and error_threshold allows {allowed}")

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
