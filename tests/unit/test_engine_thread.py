"""What all engines share: the thread with its inbox, and handles."""

import asyncio
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from llama_serving.engine.base import Handle, Token, publish
from llama_serving.engine.thread import EngineThread
from llama_serving.errors import QueueFull, Unavailable
from tests.unit.conftest import PATIENCE_S


@dataclass(frozen=True)
class Job:
    handle: Handle = field(default_factory=Handle)


@pytest.fixture
def idle() -> Any:
    """A thread that takes things in and does nothing about them."""

    def serve() -> None:
        while one.inbox.get() is not None:
            pass

    one: EngineThread[Job] = EngineThread(lambda: None, serve, most=3)
    one.start()
    yield one
    one.close()


def test_what_may_be_inside_is_bounded_and_room_is_made_by_ends(idle: EngineThread[Job]) -> None:
    jobs = [Job() for _ in range(4)]
    for job in jobs[:3]:
        idle.take(job, 1)
    with pytest.raises(QueueFull) as refused:
        idle.take(jobs[3], 1)
    assert refused.value.status == 429
    assert refused.value.retry_after
    idle.finish(jobs[1].handle, "stop")
    idle.take(jobs[3], 1)
    assert (len(idle.open), idle.sequences, idle.tokens_in) == (3, 4, 4)


def test_a_thread_that_ends_by_itself_ends_everybody() -> None:
    started = threading.Event()

    def serve() -> None:
        started.wait(PATIENCE_S)

    one: EngineThread[Job] = EngineThread(lambda: None, serve)
    one.start()
    waiting, cancelled = Job(), Job()
    one.take(waiting, 1)
    one.take(cancelled, 1)
    cancelled.handle.cancel()
    started.set()
    with pytest.raises(Unavailable):
        list(waiting.handle)
    assert list(cancelled.handle) == []
    assert cancelled.handle.finish_reason == "cancelled"
    one._thread.join(PATIENCE_S)
    assert not one.alive
    with pytest.raises(Unavailable):
        one.take(Job(), 1)


def test_an_event_loop_is_woken_once_for_all_of_its_handles(monkeypatch: pytest.MonkeyPatch) -> None:
    handles = [Handle() for _ in range(5)]

    async def tokens(handle: Handle) -> list[int]:
        return [token.id async for token in handle]

    async def run() -> tuple[list[list[int]], int]:
        loop = asyncio.get_running_loop()
        tasks = [asyncio.ensure_future(tokens(handle)) for handle in handles]
        await asyncio.sleep(0)
        woken, call = [], loop.call_soon_threadsafe

        def counted(*arguments: Any, **options: Any) -> Any:
            woken.append(arguments)
            return call(*arguments, **options)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        for step in range(3):
            publish((handle, Token(10 * step + n)) for n, handle in enumerate(handles))
        wakes = len(woken)
        for handle in handles:
            handle.finish("stop")
        return list(await asyncio.gather(*tasks)), wakes

    answers, wakes = asyncio.run(run())
    assert wakes == 3
    assert answers == [[n, 10 + n, 20 + n] for n in range(5)]


def test_who_waits_for_the_end_is_woken_by_the_end_alone() -> None:
    handle = Handle()
    woken: list[int] = []
    ended = Handle._ended

    class Counted(Handle):
        @property
        def _ended(self) -> bool:
            woken.append(1)
            return bool(ended.__get__(self))

    handle.__class__ = Counted
    waiter = threading.Thread(target=handle.wait)
    waiter.start()
    while not woken:
        time.sleep(0.001)
    for number in range(50):
        handle.push(Token(number))
    assert len(woken) == 1
    handle.finish("stop")
    waiter.join(PATIENCE_S)
    assert not waiter.is_alive()
    assert [token.id for token in handle] == list(range(50))
