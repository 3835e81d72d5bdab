"""The thread and the handles that all engines share."""

import asyncio
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from llama_serving.contract.request import Completion, Parameters, ReplyShape, Request
from llama_serving.engine.handle import Handle, Token, publish
from llama_serving.engine.thread import EngineThread
from llama_serving.errors import QueueFull, Unavailable
from llama_serving.prompts.builder import Prompt
from llama_serving.prompts.tokenizer import Tokenizer
from llama_serving.service.output import SequenceOutput
from tests.support.draws import PATIENCE_S


@dataclass(frozen=True)
class Waiting:
    handle: Handle = field(default_factory=Handle)


@pytest.fixture
def idle() -> Any:
    """A thread that accepts sequences and never ends them."""

    def serve() -> None:
        while one.inbox.get() is not None:
            pass

    one: EngineThread[Waiting] = EngineThread(lambda: None, serve, max_open=3)
    one.start()
    yield one
    one.close()


def test_what_may_be_inside_is_bounded_and_room_is_made_by_ends(idle: EngineThread[Waiting]) -> None:
    sequences = [Waiting() for _ in range(4)]
    for sequence in sequences[:3]:
        idle.submit(sequence, 1)
    with pytest.raises(QueueFull) as refused:
        idle.submit(sequences[3], 1)
    assert refused.value.status == 429
    assert refused.value.retry_after
    idle.finish(sequences[1].handle, "stop")
    idle.submit(sequences[3], 1)
    assert (len(idle.open), idle.sequences, idle.tokens_in) == (3, 4, 4)


def test_a_thread_that_ends_by_itself_ends_all_sequences() -> None:
    started = threading.Event()

    def serve() -> None:
        started.wait(PATIENCE_S)

    one: EngineThread[Waiting] = EngineThread(lambda: None, serve)
    one.start()
    waiting, cancelled = Waiting(), Waiting()
    one.submit(waiting, 1)
    one.submit(cancelled, 1)
    cancelled.handle.cancel()
    started.set()
    with pytest.raises(Unavailable):
        list(waiting.handle)
    assert list(cancelled.handle) == []
    assert cancelled.handle.finish_reason == "cancelled"
    one._thread.join(PATIENCE_S)
    assert not one.alive
    with pytest.raises(Unavailable):
        one.submit(Waiting(), 1)


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


class TestArrivals:
    """Batches of tokens: those since the last iteration."""

    @staticmethod
    async def some(handle: Handle) -> list[list[int]]:
        """Each iteration's, while the engine runs: one token, then two, then two and the end."""
        turns = []
        handle.push(Token(0))
        async for tokens in handle.arrivals():
            turns.append([token.id for token in tokens])
            if len(turns) < 3:
                for number in range(2):
                    handle.push(Token(10 * len(turns) + number))
            if len(turns) == 2:
                handle.finish("stop")
        return turns

    def test_a_turn_takes_all_that_has_come(self) -> None:
        assert asyncio.run(self.some(Handle())) == [[0], [10, 11], [20, 21]]

    def test_a_fault_comes_behind_the_tokens(self) -> None:
        handle = Handle()
        handle.push(Token(1))
        handle.fail(Unavailable("It went."))
        turns: list[list[Token]] = []

        async def run() -> None:
            async for tokens in handle.arrivals():
                turns.append(tokens)  # noqa: PERF401  (those before the error count)

        with pytest.raises(Unavailable):
            asyncio.run(run())
        assert turns == [[Token(1)]]


@pytest.mark.parametrize(
    ("stops", "pieces"),
    [((), ["", "def f(", "x):", ""]), (("x",), ["", "def f(", "", ""]), (("f",), ["", "de", ""])],
)
def test_a_stream_has_a_piece_for_each_turn(
    stops: tuple[str, ...], pieces: list[str], nano_tokenizer: Tokenizer
) -> None:
    """Nothing follows a stop string, wherever in a batch of tokens it is complete."""
    handle = Handle()
    prompt = Prompt("", token_ids=(1,), stop_ids=frozenset(), before="")
    request = Request((Completion(""),), Parameters(stop=stops), ReplyShape.ROWS, ("",), "")
    sequence = SequenceOutput(handle, prompt, request, nano_tokenizer)
    turns = [nano_tokenizer.encode_continuation(text) for text in ("def f(", "x):")]

    async def run() -> list[str]:
        found = []
        for token in turns[0]:
            handle.push(Token(token))
        async for piece in sequence.apieces():
            found.append(piece)
            if len(found) == 2:
                for token in turns[1]:
                    handle.push(Token(token))
                handle.finish("stop")
        return found

    assert asyncio.run(run()) == pieces


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
