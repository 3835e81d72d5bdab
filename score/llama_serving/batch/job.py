"""A batch job: inputs -> one file of records, resumable after any interruption."""

import asyncio
import json
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from llama_serving.batch import runner
from llama_serving.batch.inputs import Digest, InputFile
from llama_serving.batch.journal import Counts, Entry, Journal, JournalError, KeptJournal
from llama_serving.batch.outputs import Outputs, place
from llama_serving.batch.reader import Line, lines
from llama_serving.batch.windows import Todo, windows
from llama_serving.contract import rows
from llama_serving.contract.request import Parameters
from llama_serving.errors import SetupError
from llama_serving.faults import as_serving_error
from llama_serving.model_files import ModelFiles
from llama_serving.service import fingerprint
from llama_serving.service.guards import configuration
from llama_serving.service.service import Service
from llama_serving.settings import Settings

SYNC_S: Final = 0.5
"""Most seconds between two syncs of the journal: rows since the last one are repeated after a crash."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How many rows may fail.

    Attributes:
        count: most errors; None is no limit.
        share: most errors as a share of all rows.
    """

    count: int | None = None
    share: Fraction | None = None

    def passed(self, errors: int, rows_at_most: int | None) -> bool:
        """Return whether the limit is certainly exceeded, given that there are at most `rows_at_most` rows."""
        if self.count is not None:
            return errors > self.count
        return self.share is not None and rows_at_most is not None and errors > self.share * rows_at_most


@dataclass(frozen=True, slots=True)
class BatchJob:
    """The description of a job.

    Attributes:
        sources: the inputs, in order.
        digests: of the inputs, in the same order.
        outputs: paths of the job's files.
        defaults: parameters for rows that do not set them.
        about: what else the records depend on: the model, the settings, the given parameters.
        limit: how many rows may fail.
        sync_s: most seconds between two syncs of the journal.
    """

    sources: tuple[InputFile, ...]
    digests: tuple[Digest, ...]
    outputs: Outputs
    defaults: Parameters
    about: Mapping[str, Any]
    limit: Limit = field(default_factory=Limit)
    sync_s: float = SYNC_S

    @property
    def described(self) -> dict[str, Any]:
        """Return the description that a journal must have to be resumed."""
        inputs = {one.name: {"place": place, "bytes": one.bytes, "sha256": one.sha256}
                  for place, one in enumerate(self.digests)}  # fmt: skip
        return {"inputs": inputs, **self.about}

    @property
    def rows_at_most(self) -> int | None:
        """Number of lines in all inputs, which rows cannot exceed; None if unknown."""
        counts = [one.lines for one in self.digests]
        return None if None in counts else sum(count for count in counts if count is not None)


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a run.

    Attributes:
        counts: of all rows that are done.
        resumed: rows that an earlier run has done.
        stopped: the signal that ended the run, if any.
        too_many_errors: the run ended because the limit was exceeded.
    """

    counts: Counts
    resumed: int
    stopped: signal.Signals | None = None
    too_many_errors: bool = False

    @property
    def done(self) -> bool:
        """Whether the records are complete."""
        return self.stopped is None and not self.too_many_errors


def about(files: ModelFiles, settings: Settings) -> dict[str, Any]:
    """Return what records depend on, besides the rows and the parameters.

    Raises:
        SetupError: the file of guards can't be read.
    """
    names = (
        *("dtype", "context", "engine", "backend", "quantization", "kv_memory", "max_body", "deadline_s"),
        *("vllm_tensor_parallel", "vllm_pipeline_parallel", "vllm_speculative_tokens", "vllm_kv_dtype"),
    )
    found = {"model": fingerprint.of(files), "settings": {name: getattr(settings, name) for name in names}}
    return (
        found
        if settings.guards is None
        else {**found, "guards": {"sha256": configuration.digest(settings.guards)}}
    )


def finished(job: BatchJob) -> Counts | None:
    """Return the counts of a job whose records exist already; None if they do not.

    Raises:
        SetupError: a file of another job is in the way.
    """
    outputs = job.outputs
    strays = [path for path in (outputs.records, outputs.errors, outputs.manifest) if path.exists()]
    if not strays or (outputs.records not in strays and outputs.journal.exists()):
        return None
    if outputs.records in strays and (manifest := _read(outputs.manifest)).get("job") == job.described:
        return Counts(**manifest["counts"])
    raise SetupError(
        f"{strays[0]} exists already and belongs to another job. Give another --output, or --overwrite."
    )


def make_room(job: BatchJob) -> None:
    """Remove files that are in the way of a job, except a journal of the same job, which is resumed.

    Raises:
        SetupError: another process is writing there.
    """
    if Journal.job_of(job.outputs.journal) != job.described:
        Journal.remove(job.outputs.journal)
    for path in (job.outputs.records, job.outputs.errors, job.outputs.manifest):
        path.unlink(missing_ok=True)


def _read(manifest: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


async def run(
    service: Service, job: BatchJob, on_row: Callable[[Counts], None], *, stops: Sequence[signal.Signals] = ()
) -> Result:
    """Do the remaining rows, then write the records.

    Args:
        service: the model.
        job: the job.
        on_row: called with the counts after every row.
        stops: signals that end the run after syncing, so that the same job can be resumed. Only give them in the main
            thread of a process of our own.

    Raises:
        JournalError: the journal is in use, or it or the outputs cannot be written.
        SetupError: the journal belongs to another job, or an input cannot be read.
        Unavailable: the engine has died. Finished rows are on the disk.
    """
    with _journal(job) as journal:
        return await _run(_JobRun(service, job, journal, on_row), stops)


async def collect(service: Service, job: BatchJob) -> list[Entry]:
    """Do the remaining rows and return all entries, in order. The journal is removed and no other file is written.

    Raises:
        JournalError: the journal is in use, or cannot be opened. Nothing was done.
        SetupError: the journal belongs to another job, or an input cannot be read.
        Unavailable: the engine has died. Finished rows are in the journal.
    """
    try:
        opened = KeptJournal(job.outputs.journal, job.described)
    except OSError as error:
        raise JournalError(f"{job.outputs.journal} can't be read: {error.strerror}.") from error
    with closing(opened) as journal:
        await _JobRun(service, job, journal, lambda _: None).run(())
        entries = list(journal.entries())
        journal.discard()
    return entries


@contextmanager
def _journal(job: BatchJob) -> Iterator[Journal]:
    try:
        with closing(Journal(job.outputs.journal, job.described)) as journal:
            yield journal
    except OSError as error:
        raise JournalError(
            f"{error.filename or job.outputs.records}: {error.strerror}. Finished rows are kept in "
            f"{job.outputs.journal}: free some space, then run the same command again."
        ) from error


async def _run(running: "_JobRun", stops: Sequence[signal.Signals]) -> Result:
    job, journal = running.job, running.journal
    running.on_row(journal.counts)
    if (counts := finished(job)) is not None:  # (another process finished it while this one loaded its model)
        job.outputs.journal.unlink()
        return Result(counts, counts.rows)
    result = await running.run(stops)
    if result.done:
        await asyncio.to_thread(running.place)
    return result


def todos(
    sources: Iterable[InputFile],
    defaults: Parameters,
    max_bytes: int,
    *,
    done: Callable[[int], bool] = lambda _: False,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Todo]:
    """Yield the remaining rows, parsed and numbered over all sources, until `stop` is set.

    Raises:
        SetupError: a source cannot be read.
    """
    number = 0
    for source in sources:
        try:
            for line in lines(source.path, source.name, max_bytes=max_bytes):
                if stop():
                    return
                if not done(number):
                    yield todo(number, line, defaults)
                number += 1
        except OSError as error:
            raise SetupError(
                f"{source.path} can't be read any further: {error.strerror}. Finished rows are kept: repair the input, "
                "then run the same command again."
            ) from error


def todo(number: int, line: Line, defaults: Parameters) -> Todo:
    """Parse a line."""
    if line.row is None:
        return Todo(number, line, None, line.error)
    try:
        return Todo(number, line, rows.request(line.row, defaults))
    except Exception as fault:  # an error of one row belongs in its record
        return Todo(number, line, None, as_serving_error(fault))


class _JobRun:
    """One run of a job, resumed from its journal."""

    def __init__(
        self, service: Service, job: BatchJob, journal: Journal, on_row: Callable[[Counts], None]
    ) -> None:
        self.job, self.journal, self.on_row = job, journal, on_row
        self._service = service
        self._ended = asyncio.Event()
        self._signal: signal.Signals | None = None

    def place(self) -> None:
        """Write the records of the finished job, then remove its journal."""
        job = self.job
        place(job.outputs, job.described, self.journal, self._service.receipts.shared())

    async def run(self, stops: Sequence[signal.Signals]) -> Result:
        loop = asyncio.get_running_loop()
        for number in stops:
            loop.add_signal_handler(number, self._stop, number)
        self._look_at_errors()
        working = asyncio.create_task(self._work())
        syncing = asyncio.create_task(self._sync())
        ending = asyncio.create_task(self._end())
        tasks = (working, syncing, ending)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for number in stops:
                loop.remove_signal_handler(number)
            await asyncio.to_thread(self.journal.sync)
        return Result(
            self.journal.counts,
            self.journal.resumed,
            self._signal,
            too_many_errors=self._passed(self._at_most()),
        )

    async def _work(self) -> None:
        job, max_bytes = self.job, self._service.settings.max_body
        undone = todos(
            job.sources, job.defaults, max_bytes, done=self.journal.__contains__, stop=self._ended.is_set
        )
        await runner.run(self._service, windows(undone), self._take)

    async def _sync(self) -> None:
        pause = SYNC_S
        while True:
            await asyncio.sleep(min(pause, self.job.sync_s))
            await asyncio.to_thread(self.journal.sync)
            pause *= 2  # (short at first, so that a job that ends early can be resumed, too)

    async def _end(self) -> None:
        await self._ended.wait()

    def _take(self, entry: Entry) -> None:
        self.journal.append(entry)
        self.on_row(self.journal.counts)
        self._look_at_errors()

    def _look_at_errors(self) -> None:
        if self._passed(self.job.rows_at_most):
            self._ended.set()

    def _stop(self, number: int) -> None:
        self._signal = signal.Signals(number)
        self._ended.set()

    def _passed(self, at_most: int | None) -> bool:
        return self.job.limit.passed(self.journal.counts.errors, at_most)

    def _at_most(self) -> int | None:
        """Number of rows, once all are done; before, at most as many as lines."""
        return self.job.rows_at_most if self._ended.is_set() else self.journal.counts.rows
