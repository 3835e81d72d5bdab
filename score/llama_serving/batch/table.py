"""Rows of a table -> their records: what Spark hands over, all of it at once."""

import asyncio
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from llama_serving.batch import reader, runner
from llama_serving.batch.job import todo
from llama_serving.batch.journal import Entry
from llama_serving.batch.order import Todo, windows
from llama_serving.contract.request import Parameters
from llama_serving.contract.rows import Place
from llama_serving.errors import BadRequest, BodyTooLarge, ServingError
from llama_serving.service import Service

Cell = tuple[Place, bytes | None]
"""A row as JSON, and where it stands; None where there is nothing."""


def records(service: Service, rows: Iterable[Cell], defaults: Parameters) -> list[str]:
    """One JSON record for each row, in order; a bad row is a record with an error.

    Args:
        service: the model.
        rows: lines of JSONL.
        defaults: parameters of rows that bring none of their own.

    Raises:
        Unavailable: the engine has died.
    """
    entries = list[Entry]()
    work = runner.run(service, windows(_todos(rows, defaults, service.settings.max_body)), entries.append)
    with ThreadPoolExecutor(1) as apart:  # in a notebook this thread has a loop that runs
        apart.submit(asyncio.run, work).result()
    return [entry.record for entry in sorted(entries, key=lambda entry: entry.row)]


def _todos(rows: Iterable[Cell], defaults: Parameters, max_bytes: int) -> Iterator[Todo]:
    for number, (place, raw) in enumerate(rows):
        yield todo(number, reader.line(place, _checked(raw, max_bytes)), defaults)


def _checked(raw: bytes | None, max_bytes: int) -> bytes | ServingError:
    if raw is None or not raw.strip():
        return BadRequest("The row is empty. Send one with a prompt, or leave it out.", code="missing_field")
    return BodyTooLarge(f"The row has more than {max_bytes} bytes.") if len(raw) > max_bytes else raw
