"""Azure ML's batch endpoint: init() and run(mini_batch) of `batch_driver.py`.

Azure passes files. With `output_action: append_row` it writes each returned string as a line, so the output is JSONL. With
`summary_only` the driver writes a file for each input, and returns a line about each. In both cases finished rows are kept in
a journal in the output folder, so that after a timeout the next try resumes the mini-batch.
"""

import asyncio
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from llama_serving.batch import inputs, runner
from llama_serving.batch import job as jobs
from llama_serving.batch.inputs import InputFile
from llama_serving.batch.journal import Counts, Entry, InUse, JournalError
from llama_serving.batch.outputs import Outputs
from llama_serving.batch.windows import windows
from llama_serving.contract.json_lines import json_line
from llama_serving.contract.request import Parameters
from llama_serving.errors import SetupError
from llama_serving.faults import log_to_stderr
from llama_serving.hosts import gpu_assignment
from llama_serving.model_files import ModelFiles
from llama_serving.service.service import Service
from llama_serving.settings import Settings

_log = logging.getLogger(__name__)

OUTPUT: Final = "AZUREML_BI_OUTPUT_PATH"
INPUT: Final = "AZURE_ML_INPUT_"
"""Prefix of the variables that hold an input's folder."""
SYNC_S: Final = 20.0
"""Seconds; the output is a mounted container, which may upload a whole file for each sync."""
IN_USE_S: Final = 10.0
"""Seconds to wait for the previous try, which may still be ending on another machine."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Loaded:
    """The state that `init` creates.

    Attributes:
        files: of the model.
        service: of the model.
        about: what records depend on; see `job.about`.
    """

    files: ModelFiles
    service: Service
    about: Mapping[str, Any]

    @classmethod
    def of(cls, files: ModelFiles, settings: Settings) -> "Loaded":
        """Load the model."""
        return cls(files, Service.start(files, settings), jobs.about(files, settings))


_loaded: list[Loaded] = []


def init() -> None:
    """Load the model below `AZUREML_MODEL_DIR`, once for each process.

    Raises:
        SetupError: the model or a setting cannot be used.
    """
    log_to_stderr()
    settings = Settings.from_environment()
    if settings.traces != "off":
        _log.warning("LLAMA_TRACES has no effect here: only our own server writes traces")
    if settings.collect != "off":
        _log.warning("LLAMA_COLLECT has no effect here: a batch job's records are its output")
    files = ModelFiles.deployed()
    if settings.batch_gpus is not None:
        _log.info("GPUs of this process: %s", ", ".join(gpu_assignment.claim(settings.batch_gpus)))
    _loaded[:] = [Loaded.of(files, settings)]


def run(mini_batch: Sequence[str]) -> list[str]:
    """Return one JSON record for each non-blank line of the files, in order; with `summary_only` one line for each file.

    Azure counts each string fewer than files as a failed file, so empty strings are added if there are fewer rows.

    Args:
        mini_batch: paths of JSONL or CSV files.

    Raises:
        Unavailable: the engine has died; Azure tries the mini-batch again, with a new engine.
    """
    loaded, given = _alive(), [_source(Path(path)) for path in mini_batch]
    if loaded.service.settings.batch_output == "summary_only":
        return [_into_file(loaded, source) for source in given]
    records = _resumable(loaded, given)
    return records + [""] * (len(given) - len(records))


def _alive() -> Loaded:
    """Return the loaded state. Azure keeps a process whose `run` has failed, so a dead engine is replaced."""
    if not _loaded:
        raise SetupError("init() has not run.")
    loaded = _loaded[0]
    if not loaded.service.engine.stats().alive:
        _log.warning("the engine has died: loading the model again")
        loaded.service.close()
        _loaded[:] = [Loaded.of(loaded.files, loaded.service.settings)]
    return _loaded[0]


def _source(path: Path) -> InputFile:
    """Return a file, named by its path below the input's folder if Azure says which that is."""
    roots = [Path(value) for name, value in os.environ.items() if name.startswith(INPUT)]
    above = [root for root in roots if root in path.parents]
    name = path.relative_to(max(above, key=lambda root: len(root.parts))) if above else Path(path.name)
    return InputFile(path, name.as_posix().encode(errors="backslashreplace").decode())


def _resumable(loaded: Loaded, given: Sequence[InputFile]) -> list[str]:
    folder = os.environ.get(OUTPUT)
    if not folder or not given:
        return records(loaded.service, given)
    job = _job(loaded, given, lambda mark: Path(folder) / f".{mark}.jsonl")
    try:
        entries = _in_turn(lambda: asyncio.run(jobs.collect(loaded.service, job)))
    except JournalError as error:
        _log.warning("%s Without a journal, another try of this mini-batch starts from the beginning.", error)
        return records(loaded.service, given)
    return _counted(given, entries)


def records(service: Service, given: Iterable[InputFile], defaults: Parameters | None = None) -> list[str]:
    """Return the records of some files; an invalid row's record has an error.

    Args:
        service: the model.
        given: the files.
        defaults: parameters for rows that do not set them.

    Raises:
        Unavailable: the engine has died.
    """
    given, entries = list(given), list[Entry]()
    rows = jobs.todos(given, defaults or Parameters(), service.settings.max_body)
    asyncio.run(runner.run(service, windows(rows), entries.append))
    return _counted(given, sorted(entries, key=lambda entry: entry.row))


def _counted(given: Sequence[InputFile], entries: Iterable[Entry]) -> list[str]:
    counts, found = Counts(), list[str]()
    for entry in entries:
        counts.add(entry)
        found.append(entry.record)
    _log_counts(given, counts)
    return found


def _log_counts(given: Sequence[InputFile], counts: Counts) -> None:
    names = ", ".join(source.name for source in given)
    _log.info("%s: %d rows = %d ok + %d errors", names, counts.rows, counts.ok, counts.errors)


def _into_file(loaded: Loaded, source: InputFile) -> str:
    """Write a file's records into the folder that all workers share; finished rows are not repeated."""
    folder = os.environ.get(OUTPUT)
    if not folder:
        raise SetupError(f"LLAMA_BATCH_OUTPUT is summary_only, and {OUTPUT} is not set. Azure sets it.")
    job = _job(loaded, [source], lambda mark: Path(folder) / f"{source.path.name}.{mark}.jsonl")

    def counts_of() -> Counts:
        done = jobs.finished(job)
        return done or asyncio.run(jobs.run(loaded.service, job, lambda _: None)).counts

    counts = _in_turn(counts_of)
    _log_counts([source], counts)
    summary = {
        "file": source.name,
        "output": job.outputs.records.name,
        "rows": counts.rows,
        "ok": counts.ok,
        "errors": counts.errors,
    }
    return json_line(summary)


def _job(loaded: Loaded, given: Sequence[InputFile], output: Callable[[str], Path]) -> jobs.BatchJob:
    """Return the job of some files. `output` gets a key that is the same for each try of these files and this model."""
    digests = tuple(inputs.digest(source, lambda _: None) for source in given)
    made_of = [
        loaded.about,
        *((str(source.path), digest.sha256) for source, digest in zip(given, digests, strict=True)),
    ]
    mark = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:8]
    return jobs.BatchJob(
        tuple(given), digests, Outputs(output(mark)), Parameters(), loaded.about, sync_s=SYNC_S
    )


def _in_turn(do: Callable[[], _Result]) -> _Result:
    """Run `do`, waiting if another process holds the journal."""
    deadline = time.monotonic() + IN_USE_S
    while True:
        try:
            return do()
        except InUse:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
