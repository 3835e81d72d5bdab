"""Azure ML's batch endpoint: the bodies of `batch_driver.py`'s init() and run(mini_batch).

Azure hands over files; `append_row` writes each returned string as a line, so the output is JSONL.
"""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llama_serving.batch.reader import Line, lines
from llama_serving.contract import rows
from llama_serving.contract.request import Parameters
from llama_serving.errors import ServingError, SetupError, Unavailable
from llama_serving.model_files import ModelFiles
from llama_serving.service import Service, as_serving_error, log_to_stderr
from llama_serving.settings import Settings

_log = logging.getLogger(__name__)
_services: list[Service] = []


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
    _services[:] = [Service.start(ModelFiles.find(Path(root)), settings)]


def run(mini_batch: Sequence[str]) -> list[str]:
    """One JSON record for each non-blank line of the files, in order.

    Args:
        mini_batch: paths of JSONL or CSV files.

    Raises:
        Unavailable: the engine has died; Azure tries the mini-batch again.
    """
    if not _services:
        raise SetupError("init() has not run.")
    return [rows.dumps(record) for path in mini_batch for record in score_file(_services[0], Path(path))]


def score_file(
    service: Service, path: Path, *, defaults: Parameters | None = None, name: str | None = None
) -> Iterator[dict[str, Any]]:
    """The records of one file; a bad row is a record with an error, and the rest goes on.

    Args:
        service: the model.
        path: the file.
        defaults: parameters for rows that bring none of their own.
        name: what to call the file in the records; its own name by default.

    Raises:
        Unavailable: the engine has died.
    """
    count, ok, errors = 0, 0, 0
    for line in lines(path, name or path.name, max_bytes=service.settings.max_body):
        count += 1
        record, answered = _score(service, line, defaults or Parameters())
        if answered:
            ok += 1
        else:
            errors += 1
        yield record
    _log.info("%s: %d rows = %d ok + %d errors", path.name, count, ok, errors)


def _score(service: Service, line: Line, defaults: Parameters) -> tuple[dict[str, Any], bool]:
    if line.row is None:
        error = line.error or ServingError("The line could not be read.")
        return rows.error_record(line.place, None, error), False
    try:
        asked = rows.request(line.row, defaults)
        seconds = service.settings.deadline_s
        deadline = None if seconds is None else time.monotonic() + seconds
        generations = service.generate(asked, deadline=deadline)
    except Unavailable:
        raise
    except Exception as fault:  # one row's fault is one row's record
        return rows.error_record(line.place, line.row, as_serving_error(fault)), False
    return rows.record(line.place, line.row, asked, generations, service.variant.name), True
