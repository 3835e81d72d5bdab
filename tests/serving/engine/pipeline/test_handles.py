"""The consumer's side, by threads and by event loops."""

import asyncio
from dataclasses import replace

import pytest

from llama_serving.engine.base import Engine
from llama_serving.engine.handle import Handle, Token
from llama_serving.errors import InternalError
from tests.support.draws import BeforeDraw, Gate
from tests.support.pipeline_engines import (
    GREEDY,
    PROMPT,
    SAMPLED,
    VOCAB,
    collected,
    ids_of,
    run,
)


def test_the_first_end_of_a_sequence_counts() -> None:
    handle = Handle()
    handle.push(Token(7))
    handle.finish("length")
    handle.fail(InternalError("too late"))
    handle.finish("cancelled")
    assert (ids_of(handle), handle.finish_reason) == ([7], "length")


def test_a_failed_sequence_stays_failed() -> None:
    handle = Handle()
    handle.push(Token(7))
    handle.fail(InternalError("first"))
    handle.fail(InternalError("second"))
    handle.finish("length")
    tokens = iter(handle)
    assert next(tokens).id == 7
    with pytest.raises(InternalError, match="first"):
        next(tokens)
    assert handle.finish_reason is None


def test_an_event_loop_gets_the_same_tokens(engine: Engine) -> None:
    expected, _ = run(engine, PROMPT, SAMPLED)
    handle = engine.submit(PROMPT, SAMPLED)
    assert asyncio.run(collected(handle)) == expected
    assert handle.finish_reason == "length"
    assert handle._waiter is None, "a loop that listens no more is still registered"


def test_two_consumers_share_an_event_loop(engine: Engine) -> None:
    params = [replace(SAMPLED, index=index) for index in range(2)]
    expected = [run(engine, PROMPT, one)[0] for one in params]

    async def both() -> list[list[int]]:
        return list(await asyncio.gather(*(collected(engine.submit(PROMPT, one)) for one in params)))

    assert asyncio.run(both()) == expected


def test_tokens_come_as_they_are_drawn_and_the_loop_stays_free(engine: Engine, before_draw: BeforeDraw) -> None:
    gate = Gate(seed=1, position=3)
    before_draw(gate)

    async def consume() -> tuple[int, int]:
        tokens = aiter(engine.submit(PROMPT, replace(GREEDY, seed=1)))
        early = [await anext(tokens) for _ in range(3)]
        task = asyncio.ensure_future(anext(tokens))
        await asyncio.sleep(0)
        assert not task.done()
        gate.open()
        late = [await task, *[token async for token in tokens]]
        return len(early), len(late)

    assert asyncio.run(consume()) == (3, 21)


def test_a_fault_reaches_an_event_loop(engine: Engine) -> None:
    with pytest.raises(InternalError):
        asyncio.run(collected(engine.submit((1, VOCAB), GREEDY)))


def test_an_event_loop_may_cancel_its_wait(engine: Engine, before_draw: BeforeDraw) -> None:
    gate = Gate(seed=1)
    before_draw(gate)
    handle = engine.submit(PROMPT, replace(GREEDY, seed=1))

    async def give_up() -> None:
        task = asyncio.ensure_future(collected(handle))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    gate.open()
    assert len(ids_of(handle)) == 24


def test_a_loop_that_closed_while_it_waited_harms_nobody(engine: Engine, before_draw: BeforeDraw) -> None:
    gate = Gate(seed=1, position=2)
    before_draw(gate)
    handle = engine.submit(PROMPT, replace(GREEDY, seed=1))
    loop = asyncio.new_event_loop()
    tokens = aiter(handle)
    loop.run_until_complete(anext(tokens))
    loop.close()
    gate.open()
    assert len(run(engine, PROMPT, GREEDY)[0]) == 24
    assert handle.finish_reason == "length"
    assert engine.stats().alive
    assert handle._waiter is not None, "the loop that is gone was still registered"
