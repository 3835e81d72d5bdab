"""A batch job: inputs -> one file of records, whatever happens on the way."""

import asyncio
import json
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from llama_serving.batch import fingerprint, runner
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
from llama_serving.service.service import Service
from llama_serving.settings import Settings

SYNC_S: Final = 0.5
"""What a stroke of lightning may cost: the rows of so many seconds are done again."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How many rows may fail.

    Attributes:
        count: so many at most; None is any number.
        share: of all rows, at most.
    """

    count: int | None = None
    share: Fraction | None = None

    def passed(self, errors: int, rows_at_most: int | None) -> bool:
        """Whether there are certainly too many, where there are no more rows than that."""
        if self.count is not None:
            return errors > self.count
        return self.share is not None and rows_at_most is not None and errors > self.share * rows_at_most


@dataclass(frozen=True, slots=True)
class BatchJob:
    """What is to be done.

    Attributes:
        sources: the inputs, in order.
        digests: of them, in the same order.
        outputs: where the records go.
        defaults: parameters of rows that bring none of their own.
        about: what else the records depend on: the model, the settings, the parameters as given.
        limit: how many rows may fail.
        sync_s: seconds between two times that the journal is brought to the disk, at most.
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
        """What a journal must be of, to be gone on with."""
        inputs = {one.name: {"place": place, "bytes": one.bytes, "sha256": one.sha256}
                  for place, one in enumerate(self.digests)}  # fmt: skip
        return {"inputs": inputs, **self.about}

    @property
    def rows_at_most(self) -> int | None:
        """No input has more rows than lines; None where nobody counted them."""
        counts = [one.lines for one in self.digests]
        return None if None in counts else sum(count for count in counts if count is not None)


@dataclass(frozen=True, slots=True)
class Result:
    """How far it came.

    Attributes:
        counts: of all rows that are done.
        resumed: rows that were done before.
        stopped: the signal that ended it, if one did.
        too_many_errors: it ended for that.
    """

    counts: Counts
    resumed: int
    stopped: signal.Signals | None = None
    too_many_errors: bool = False

    @property
    def done(self) -> bool:
        """The records are there."""
        return self.stopped is None and not self.too_many_errors


def about(files: ModelFiles, settings: Settings) -> dict[str, Any]:
    """What records depend on, beside the rows and the parameters."""
    names = (
        *("dtype", "context", "engine", "backend", "quantization", "kv_memory", "max_body", "deadline_s"),
        *("vllm_tensor_parallel", "vllm_pipeline_parallel", "vllm_speculative_tokens", "vllm_kv_dtype"),
    )
    return {"model": fingerprint.of(files), "settings": {name: getattr(settings, name) for name in names}}


def finished(job: BatchJob) -> Counts | None:
    """The counts of a job whose records are there already; None where they are not.

    Raises:
        SetupError: there is a file that is not this job's.
    """
    outputs = job.outputs
    strays = [path for path in (outputs.records, outputs.errors, outputs.manifest) if path.exists()]
    if not strays or (outputs.records not in strays and outputs.journal.exists()):
        return None
    if outputs.records in strays and (manifest := _read(outputs.manifest)).get("job") == job.described:
        return Counts(**manifest["counts"])
    raise SetupError(
        f"{strays[0]} is there already, and not of this job. Give another --output, or --overwrite."
    )


def make_room(job: BatchJob) -> None:
    """Remove what is in the way of a job; a journal of the very same job stays, and is gone on with.

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
    service: Service, job: BatchJob, told: Callable[[Counts], None], *, stops: Sequence[signal.Signals] = ()
) -> Result:
    """Do what is not done yet, and then put the records in their place.

    Args:
        service: the model.
        job: what is to be done.
        told: called with the counts after every row.
        stops: signals that end it, with all that is done on the disk; the same job then goes on from there. (In the
            main thread of a process that is ours alone.)

    Raises:
        JournalError: the journal is in use, or it or the outputs can't be written.
        SetupError: the journal is another job's, or an input can't be read on.
        Unavailable: the engine has died. What is done is on the disk.
    """
    with _journal(job) as journal:
        return await _run(_JobRun(service, job, journal, told), stops)


async def collect(service: Service, job: BatchJob) -> list[Entry]:
    """Do what is not done yet; all entries, in order. The journal is gone then, and no other file was written.

    Raises:
        JournalError: the journal is in use, or can't be opened. Nothing was done.
        SetupError: it is another job's, or an input can't be read on.
        Unavailable: the engine has died. What is done is in the journal.
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
            f"{error.filename or job.outputs.records}: {error.strerror}. What is done is kept in "
            f"{job.outputs.journal}: make room, and give the same command again."
        ) from error


async def _run(running: "_JobRun", stops: Sequence[signal.Signals]) -> Result:
    job, journal = running.job, running.journal
    running.told(journal.counts)
    if (counts := finished(job)) is not None:  # while this one loaded its model
        job.outputs.journal.unlink()
        return Result(counts, counts.rows)
    result = await running.run(stops)
    if result.done:
        await asyncio.to_thread(place, job.outputs, job.described, journal)
    return result


def todos(
    sources: Iterable[InputFile],
    defaults: Parameters,
    max_bytes: int,
    *,
    done: Callable[[int], bool] = lambda _: False,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Todo]:
    """The rows that are not done, parsed, with their numbers over all sources, until `stop`.

    Raises:
        SetupError: a source can't be read on.
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
                f"{source.path} can't be read on: {error.strerror}. What is done is kept: mend it, and give the same "
                "command again."
            ) from error


def todo(number: int, line: Line, defaults: Parameters) -> Todo:
    """What is to be done about a line."""
    if line.row is None:
        return Todo(number, line, None, line.error)
    try:
        return Todo(number, line, rows.request(line.row, defaults))
    except Exception as fault:  # one row's fault is one row's record
        return Todo(number, line, None, as_serving_error(fault))


class _JobRun:
    """One run of a job, from its journal's end on."""

    def __init__(
        self, service: Service, job: BatchJob, journal: Journal, told: Callable[[Counts], None]
    ) -> None:
        self.job, self.journal, self.told = job, journal, told
        self._service = service
        self._ended = asyncio.Event()
        self._signal: signal.Signals | None = None

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
            pause *= 2  # a job that is ended early has something to go on from, too

    async def _end(self) -> None:
        await self._ended.wait()

    def _take(self, entry: Entry) -> None:
        self.journal.append(entry)
        self.told(self.journal.counts)
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
        """Once all is done, the rows are counted."""
        return self.job.rows_at_most if self._ended.is_set() else self.journal.counts.rows
