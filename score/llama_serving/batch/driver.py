"""Azure ML's batch endpoint: the bodies of `batch_driver.py`'s init() and run(mini_batch).

Azure hands over files. With `output_action: append_row` it writes each returned string as a line, so that the output is
JSONL; with `summary_only` the driver writes a file for each input, and returns a line about each.
"""

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llama_serving.batch import job as jobs
from llama_serving.batch import runner, sources
from llama_serving.batch.journal import Counts, Entry
from llama_serving.batch.order import windows
from llama_serving.batch.outputs import Outputs
from llama_serving.batch.sources import Source
from llama_serving.contract.request import Parameters
from llama_serving.errors import SetupError
from llama_serving.model_files import ModelFiles
from llama_serving.service import Service, log_to_stderr
from llama_serving.settings import Settings

_log = logging.getLogger(__name__)

OUTPUT: Final = "AZUREML_BI_OUTPUT_PATH"
SYNC_S: Final = 20.0
"""The output is a mounted container, which may send a whole file again at each time."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What `init` leaves behind.

    Attributes:
        about: what records depend on, see `job.about`.
    """

    service: Service
    about: Mapping[str, Any]


_loaded: list[Loaded] = []


def init() -> None:
    """Loads the model below `AZUREML_MODEL_DIR`, once a process.

    Raises:
        SetupError: the model or a setting can't be used.
    """
    log_to_stderr()
    root = os.environ.get("AZUREML_MODEL_DIR")
    if not root:
        raise SetupError("AZUREML_MODEL_DIR is not set. Set it to the folder of the packaged model.")
    settings = Settings.from_environment()
    if settings.traces != "off":
        _log.warning("LLAMA_TRACES has no effect here: only our own server writes traces")
    files = ModelFiles.find(Path(root))
    _loaded[:] = [Loaded(Service.start(files, settings), jobs.about(files, settings))]


def run(mini_batch: Sequence[str]) -> list[str]:
    """One JSON record for each non-blank line of the files, in order; with `summary_only` one line for each file.

    Args:
        mini_batch: paths of JSONL or CSV files.

    Raises:
        Unavailable: the engine has died; Azure tries the mini-batch again.
    """
    if not _loaded:
        raise SetupError("init() has not run.")
    given = [Source(Path(path), Path(path).name) for path in mini_batch]
    if _loaded[0].service.settings.batch_output == "summary_only":
        return [_into_file(_loaded[0], source) for source in given]
    return records(_loaded[0].service, given)


def records(service: Service, given: Iterable[Source], defaults: Parameters | None = None) -> list[str]:
    """The records of some files; a bad row is a record with an error, and the rest goes on.

    Args:
        service: the model.
        given: the files.
        defaults: parameters for rows that bring none of their own.

    Raises:
        Unavailable: the engine has died.
    """
    given, counts, entries = list(given), Counts(), list[Entry]()

    def take(entry: Entry) -> None:
        counts.add(entry)
        entries.append(entry)

    rows = jobs.todos(given, defaults or Parameters(), service.settings.max_body)
    asyncio.run(runner.run(service, windows(rows), take))
    names = ", ".join(source.name for source in given)
    _log.info("%s: %d rows = %d ok + %d errors", names, counts.rows, counts.ok, counts.errors)
    return [entry.record for entry in sorted(entries, key=lambda entry: entry.row)]


def _into_file(loaded: Loaded, source: Source) -> str:
    """Write a file's records beside those of all other workers; what an earlier try has done is not done again."""
    folder = os.environ.get(OUTPUT)
    if not folder:
        raise SetupError(f"LLAMA_BATCH_OUTPUT is summary_only, and {OUTPUT} is not set. Azure sets it.")
    digest = sources.digest(source, lambda _: None)
    # Files of one name in two folders must not meet, and the same file must find its place again.
    mark = hashlib.sha256(f"{source.path} {digest.sha256}".encode(errors="surrogateescape")).hexdigest()[:8]
    output = Path(folder) / f"{source.path.name}.{mark}.jsonl"
    job = jobs.Job((source,), (digest,), Outputs(output), Parameters(), loaded.about, sync_s=SYNC_S)
    counts = (
        jobs.finished(job) or asyncio.run(jobs.run(loaded.service, job, lambda _: None)).counts
    )  # (no limit, no signal: done)
    _log.info("%s: %d rows = %d ok + %d errors", source.name, counts.rows, counts.ok, counts.errors)
    told = {
        "file": source.name,
        "output": output.name,
        "rows": counts.rows,
        "ok": counts.ok,
        "errors": counts.errors,
    }
    return json.dumps(told, ensure_ascii=False)
