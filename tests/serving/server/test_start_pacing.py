"""Start pacing: few requests start in one iteration of the loop, in order, and none is lost."""

import asyncio

import pytest

from llama_serving.server.start_pacing import StartPacer


async def passes_of(
    count: int, per_iteration: int, cancelled: frozenset[int] = frozenset()
) -> list[tuple[int, int]]:
    """Return (number, iteration of the loop in which it started), in the order of starting."""
    pacer, began, passed = StartPacer(per_iteration), list[tuple[int, int]](), 0

    async def one(number: int) -> None:
        await pacer.wait()
        began.append((number, passed))

    tasks = [asyncio.create_task(one(number)) for number in range(count)]
    for _ in range(4 * count):
        await asyncio.sleep(0)
        passed += 1
        if passed == 1:
            for number in cancelled:
                tasks[number].cancel()
    assert all(task.done() for task in tasks)
    return began


def test_no_more_than_a_few_begin_in_a_pass() -> None:
    began = asyncio.run(passes_of(50, 8))
    assert [number for number, _ in began] == list(range(50))
    each = [sum(at == one for _, at in began) for one in range(began[-1][1] + 1)]
    assert max(each) == 8
    assert began[-1][1] <= 50 // 8 + 2


def test_a_single_request_does_not_wait() -> None:
    async def alone() -> bool:
        waiting = StartPacer(1).wait()
        with pytest.raises(StopIteration):
            waiting.send(None)
        return True

    assert asyncio.run(alone())


def test_a_cancelled_one_takes_no_turn() -> None:
    gone = frozenset(range(8, 40))
    began = asyncio.run(passes_of(50, 8, gone))
    assert [number for number, _ in began] == [number for number in range(50) if number not in gone]
    assert began[-1][1] <= 5
