"""Rows of a table -> their records, all at once, for Spark."""

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from llama_serving.batch import reader, runner
from llama_serving.batch.job import todo
from llama_serving.batch.journal import Entry
from llama_serving.batch.windows import Todo, windows
from llama_serving.contract.request import Parameters
from llama_serving.contract.rows import RowLocation
from llama_serving.errors import BadRequest, BodyTooLarge, ServingError
from llama_serving.service.service import Service

Cell = tuple[RowLocation, bytes | None]
"""A row as JSON, or None if it is empty, with its location."""


def records(service: Service, rows: Iterable[Cell], defaults: Parameters) -> list[str]:
    """Return one JSON record for each row, in order; an invalid row's record has an error.

    Args:
        service: the model.
        rows: lines of JSONL.
        defaults: parameters for rows that do not set them.

    Raises:
        Unavailable: the engine has died.
    """
    entries = list[Entry]()
    work = runner.run(service, windows(_todos(rows, defaults, service.settings.max_body)), entries.append)
    _run_apart(work)
    return [entry.record for entry in sorted(entries, key=lambda entry: entry.row)]


def _run_apart(work: Coroutine[None, None, None]) -> None:
    """Run in a new thread, since a notebook's thread has a running loop. An interrupt cancels the work."""
    stopped, running = threading.Event(), list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]]()

    async def main() -> None:
        task = asyncio.create_task(work)
        running.append((asyncio.get_running_loop(), task))
        if stopped.is_set():
            task.cancel()
        await task

    with ThreadPoolExecutor(1) as apart:
        try:
            apart.submit(asyncio.run, main()).result()
        except BaseException:
            stopped.set()
            for loop, task in running:
                with suppress(RuntimeError):  # the loop is closed: the work is over
                    loop.call_soon_threadsafe(task.cancel)
            raise


def _todos(rows: Iterable[Cell], defaults: Parameters, max_bytes: int) -> Iterator[Todo]:
    for number, (place, raw) in enumerate(rows):
        yield todo(number, reader.line(place, _checked(raw, max_bytes)), defaults)


def _checked(raw: bytes | None, max_bytes: int) -> bytes | ServingError:
    if raw is None or not raw.strip():
        return BadRequest("The row is empty. Send one with a prompt, or leave it out.", code="missing_field")
    return (
        BodyTooLarge(f"The row has more than {max_bytes} bytes.")
        if len(raw.rstrip(b"\r\n")) > max_bytes
        else raw
    )
