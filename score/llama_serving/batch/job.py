"""A batch job: inputs -> one file of records, whatever happens on the way.

OUT                 the records, in the order of the rows; there once all are done
OUT.errors          (OUT.errors.jsonl of OUT.jsonl) errors of OpenAI Batch files, if there are any
OUT.manifest.json   what the records were made of, and how many there are
OUT.journal         while the job is not done
"""

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TextIO

from llama_serving.batch import fingerprint, runner
from llama_serving.batch.journal import Counts, Entry, Journal, State
from llama_serving.batch.order import Todo, windows
from llama_serving.batch.reader import lines
from llama_serving.batch.sources import Digest, Source
from llama_serving.contract import rows
from llama_serving.contract.request import Parameters
from llama_serving.errors import SetupError
from llama_serving.model_files import ModelFiles
from llama_serving.service import Service, as_serving_error
from llama_serving.settings import Settings

STOPS: Final = (signal.SIGTERM, signal.SIGINT)
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
    share: float | None = None

    def passed(self, errors: int, rows_at_most: int | None) -> bool:
        """Whether there are certainly too many, where there are no more rows than that."""
        if self.count is not None:
            return errors > self.count
        return self.share is not None and rows_at_most is not None and errors > self.share * rows_at_most


@dataclass(frozen=True, slots=True)
class Outputs:
    """The files of a job."""

    records: Path

    @property
    def errors(self) -> Path:
        """Of OpenAI Batch files."""
        return self.records.with_name(f"{self.records.stem}.errors{self.records.suffix}")

    @property
    def manifest(self) -> Path:
        """What the records were made of."""
        return self.records.with_name(f"{self.records.name}.manifest.json")

    @property
    def journal(self) -> Path:
        """What is done so far."""
        return self.records.with_name(f"{self.records.name}.journal")


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done.

    Attributes:
        sources: the inputs, in order.
        digests: of them, in the same order.
        outputs: where the records go.
        defaults: parameters of rows that bring none of their own.
        about: what else the records depend on: the model, the settings, the parameters as given.
        limit: how many rows may fail.
        sync_s: seconds between two times that the journal is brought to the disk.
    """

    sources: tuple[Source, ...]
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
    names = ("dtype", "context", "engine", "max_body", "deadline_s")
    return {"model": fingerprint.of(files), "settings": {name: getattr(settings, name) for name in names}}


def finished(job: Job) -> Counts | None:
    """The counts of a job whose records are there already; None where they are not.

    Raises:
        SetupError: there is a file that is not this job's.
    """
    if not job.outputs.records.exists():
        return None
    try:
        manifest = json.loads(job.outputs.manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = {}
    if manifest.get("job") != job.described:
        raise SetupError(
            f"{job.outputs.records} is there already, and not of this job. Give another --output, or --overwrite."
        )
    return Counts(**manifest["counts"])


def forget(outputs: Outputs) -> None:
    """Remove what a job has left or made.

    Raises:
        SetupError: another process is writing it.
    """
    forget_journal(outputs)
    for path in (outputs.records, outputs.errors, outputs.manifest):
        path.unlink(missing_ok=True)


def forget_journal(outputs: Outputs) -> None:
    """Remove the journal, if there is one.

    Raises:
        SetupError: another process is writing it.
    """
    if outputs.journal.exists():
        Journal.check_free(outputs.journal)
        outputs.journal.unlink()


async def run(service: Service, job: Job, told: Callable[[Counts], None]) -> Result:
    """Do what is not done yet, and then put the records in their place.

    SIGTERM and SIGINT end it with all that is done on the disk, where this is the main thread; the same job then goes
    on from there.

    Args:
        service: the model.
        job: what is to be done.
        told: called with the counts after every row.

    Raises:
        SetupError: the journal is another job's, or in use, or can't be written.
        Unavailable: the engine has died. What is done is on the disk.
    """
    journal = Journal(job.outputs.journal, job.described)
    try:
        return await _run(service, job, journal, told)
    except OSError as error:
        raise SetupError(
            f"{error.filename or job.outputs.journal}: {error.strerror}. What is done is kept in "
            f"{job.outputs.journal}: mend it, and give the same command again."
        ) from error
    finally:
        journal.close()


async def _run(service: Service, job: Job, journal: Journal, told: Callable[[Counts], None]) -> Result:
    told(journal.counts)
    if (counts := finished(job)) is not None:  # while this one loaded its model
        job.outputs.journal.unlink()
        return Result(counts, counts.rows)
    result = await _Running(service, job, journal, told).run()
    if result.done:
        await asyncio.to_thread(_finish, job, journal)
    return result


def todos(
    sources: Iterable[Source], defaults: Parameters, max_bytes: int, done: Callable[[int], bool]
) -> Iterator[Todo]:
    """The rows that are not done, parsed, with their numbers over all sources."""
    number = 0
    for source in sources:
        for line in lines(source.path, source.name, max_bytes=max_bytes):
            if not done(number):
                yield _todo(number, line, defaults)
            number += 1


def _todo(number: int, line: Any, defaults: Parameters) -> Todo:
    if line.row is None:
        return Todo(number, line, None, line.error)
    try:
        return Todo(number, line, rows.request(line.row, defaults))
    except Exception as fault:  # one row's fault is one row's record
        return Todo(number, line, None, as_serving_error(fault))


class _Running:
    """One run of a job, from its journal's end on."""

    def __init__(self, service: Service, job: Job, journal: Journal, told: Callable[[Counts], None]) -> None:
        self._service, self._job, self._journal, self._told = service, job, journal, told
        self._ended = asyncio.Event()
        self._signal: signal.Signals | None = None

    async def run(self) -> Result:
        loop = asyncio.get_running_loop()
        numbers = STOPS if threading.current_thread() is threading.main_thread() else ()
        for number in numbers:
            loop.add_signal_handler(number, self._stop, number)
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
            for number in numbers:
                loop.remove_signal_handler(number)
            await asyncio.to_thread(self._journal.sync)
        return Result(
            self._journal.counts,
            self._journal.resumed,
            self._signal,
            too_many_errors=self._passed(self._at_most()),
        )

    async def _work(self) -> None:
        job, max_bytes = self._job, self._service.settings.max_body
        undone = todos(job.sources, job.defaults, max_bytes, self._journal.__contains__)
        await runner.run(self._service, windows(undone), self._take)

    async def _sync(self) -> None:
        while True:
            await asyncio.sleep(self._job.sync_s)
            await asyncio.to_thread(self._journal.sync)

    async def _end(self) -> None:
        await self._ended.wait()

    def _take(self, entry: Entry) -> None:
        self._journal.append(entry)
        self._told(self._journal.counts)
        if self._passed(self._job.rows_at_most):
            self._ended.set()

    def _stop(self, number: int) -> None:
        self._signal = signal.Signals(number)
        self._ended.set()

    def _passed(self, at_most: int | None) -> bool:
        return self._job.limit.passed(self._journal.counts.errors, at_most)

    def _at_most(self) -> int | None:
        """Once all is done, the rows are counted."""
        return self._job.rows_at_most if self._ended.is_set() else self._journal.counts.rows


def _finish(job: Job, journal: Journal) -> None:
    """Put the records in their place: all of them, or nothing."""
    outputs = job.outputs
    texts = {outputs.records: _temporary(outputs.records), outputs.errors: _temporary(outputs.errors),
             outputs.manifest: _temporary(outputs.manifest)}  # fmt: skip
    try:
        with _new(texts[outputs.records]) as records, _new(texts[outputs.errors]) as errors:
            apart = _sort_out(journal.entries(), records, errors)
        with _new(texts[outputs.manifest]) as manifest:
            json.dump(_manifest(job, journal.counts), manifest, ensure_ascii=False, indent=2)
            manifest.write("\n")
        if not apart:
            texts.pop(outputs.errors).unlink()
            outputs.errors.unlink(missing_ok=True)
        # The records last: where they are, everything is.
        for path in (outputs.errors, outputs.manifest, outputs.records):
            if path in texts:
                texts[path].replace(path)
    finally:
        for temporary in texts.values():
            temporary.unlink(missing_ok=True)
    _sync_folder(outputs.records.parent)
    outputs.journal.unlink()


def _sort_out(entries: Iterable[Entry], records: TextIO, errors: TextIO) -> int:
    """Write each record into its file; how many went into the second one."""
    apart = 0
    for entry in entries:
        one_apart = entry.state is State.ERROR_APART
        apart += one_apart
        (errors if one_apart else records).write(entry.record + "\n")
    return apart


def _manifest(job: Job, counts: Counts) -> dict[str, Any]:
    return {
        "job": job.described,
        "counts": asdict(counts),
        "rows": counts.rows,
        "version": version("llama-endpoints"),
    }


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


class _new:  # noqa: N801  (used as a function)
    """A text file that is on the disk when the block is left."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", newline="\n")

    def __enter__(self) -> TextIO:
        return self._file

    def __exit__(self, kind: object, *_: object) -> None:
        with self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
