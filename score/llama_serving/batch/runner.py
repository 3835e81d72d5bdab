"""Rows -> records, keeping the engine busy from the first row to the last. Knows no files."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Final

from llama_serving.batch.journal import Entry, EntryState
from llama_serving.batch.windows import Todo
from llama_serving.contract import rows
from llama_serving.contract.request import Generations, Request
from llama_serving.contract.rows import RowKind
from llama_serving.errors import GuardUnavailable, QueueFull, ServingError, Unavailable
from llama_serving.faults import as_serving_error
from llama_serving.service.service import Service

AHEAD: Final = 2
"""Rows submitted for each one that the engine can run, so that one is waiting whenever another ends."""
FULL_S: Final = 0.05
"""Seconds to wait if the engine's own queue is full, as rows with many sequences can make it."""
TRIES: Final = 5
"""How often a row is tried if the server fails during it; the row itself may be the cause."""
MOST_FAILED_STARTS: Final = 10
"""Consecutive failed restarts of our vLLM, about six minutes: then Azure tries the mini-batch elsewhere."""
SETTLE_S: Final = 2.0
"""Seconds; longer than an engine takes to notice that its server has gone."""
AGAIN_S: Final = 0.5
GUARD_S: Final = 1.0
"""Seconds before a row that a guard could not check is tried again; twice as many each time. Then the row fails, and not the job."""
AWAY_S: Final = 600.0
"""Seconds to wait for an upstream server; for our own vLLM it is LLAMA_VLLM_START_S."""


async def run(service: Service, windows: Iterator[list[Todo]], take: Callable[[Entry], None]) -> None:
    """Do all rows.

    Args:
        service: the model.
        windows: rows to do; read in a thread, one window ahead.
        take: called with each finished row, on the event loop, in the order of completion.

    Raises:
        Unavailable: the engine has died; other rows are not done.
        OSError: the rows cannot be read.
    """
    todos: asyncio.Queue[Todo | None] = asyncio.Queue(maxsize=1)
    workers = AHEAD * service.settings.max_num_seqs

    async def feed() -> None:
        window = await asyncio.to_thread(next, windows, None)
        while window is not None:
            following = asyncio.create_task(asyncio.to_thread(next, windows, None))
            for todo in window:
                await todos.put(todo)
            window = await following
        for _ in range(workers):
            await todos.put(None)

    async def work() -> None:
        while (todo := await todos.get()) is not None:
            take(await _done(service, todo))

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(feed())
            for _ in range(workers):
                group.create_task(work())
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None  # (the first one has cancelled the others)


async def _done(service: Service, todo: Todo) -> Entry:
    if todo.request is None:
        return failed(todo, todo.error or ServingError("The line could not be read."))
    try:
        generations = await _generations(service, todo.request)
    except GuardUnavailable as error:
        return failed(todo, error)
    except Unavailable:
        raise
    except Exception as fault:  # an error of one row belongs in its record
        return failed(todo, as_serving_error(fault))
    row = todo.line.row
    assert row is not None  # noqa: S101  (there is no request without one)
    record = rows.record(todo.line.place, row, todo.request, generations, service.variant.name)
    used = [sequence.usage for sequence in generations[0]]
    return Entry(
        todo.number,
        EntryState.OK,
        used[0].prompt_tokens,
        sum(one.completion_tokens for one in used),
        rows.dumps(record),
    )


async def _generations(service: Service, request: Request) -> Generations:
    tries = 0
    while True:
        seconds = service.settings.deadline_s
        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            return await service.agenerate(request, deadline=deadline)
        except QueueFull:
            await asyncio.sleep(FULL_S)
        except GuardUnavailable:
            tries += 1
            if tries == TRIES:
                raise
            await asyncio.sleep(GUARD_S * 2 ** (tries - 1))
        except Unavailable:
            tries += 1
            if tries == TRIES or not await _is_back(service):
                raise


async def _is_back(service: Service) -> bool:
    """Wait for the upstream server; return whether it came back in time.

    No result of the row was used, so it may be sent again.
    """
    stats = service.engine.stats()
    patience_s = service.settings.vllm_start_s if stats.engine == "vllm" else AWAY_S
    deadline = time.monotonic() + patience_s
    pause_s = SETTLE_S
    while stats.alive and stats.failed_starts < MOST_FAILED_STARTS and time.monotonic() < deadline:
        await asyncio.sleep(pause_s)
        stats = service.engine.stats()
        if stats.alive and not stats.away:
            return True
        pause_s = AGAIN_S
    return False


def failed(todo: Todo, error: ServingError) -> Entry:
    """Return the entry of a row that failed."""
    row = todo.line.row
    apart = row is not None and row.kind is RowKind.OPENAI_BATCH
    state = EntryState.ERROR_APART if apart else EntryState.ERROR
    return Entry(todo.number, state, 0, 0, rows.dumps(rows.error_record(todo.line.place, row, error)))
