"""Free numbers as extents: none is lost, and neighbours stay together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_serving.engine.batching.free_extents import FreeExtents


def neighbours(numbers: list[int]) -> bool:
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_where_there_is_a_run_it_is_taken_and_pieces_of_it_join_again() -> None:
    free = FreeExtents(10)
    first, second, third = free.allocate(3), free.allocate(4), free.allocate(2)
    assert (first, second, third, len(free)) == ([0, 1, 2], [3, 4, 5, 6], [7, 8], 1)
    for one in (4, 1, 6, 0, 2, 3, 5):
        free.free(one)
    assert free.allocate(7) == [0, 1, 2, 3, 4, 5, 6]


def test_a_run_is_found_behind_shorter_ones() -> None:
    free = FreeExtents(12)
    free.allocate(12)
    for one in (0, 2, 4, 7, 8, 9):
        free.free(one)
    assert free.allocate(3) == [7, 8, 9]


def test_without_such_a_run_shorter_ones_are_put_together() -> None:
    free = FreeExtents(6)
    free.allocate(6)
    for one in (5, 0, 2):
        free.free(one)
    assert free.allocate(3) == [0, 2, 5]
    with pytest.raises(ValueError, match="1 requested, 0 free"):
        free.allocate(1)


@given(size=st.integers(0, 40), moves=st.lists(st.tuples(st.booleans(), st.integers(0, 50)), max_size=60))
def test_it_is_the_set_that_it_looks_like(size: int, moves: list[tuple[bool, int]]) -> None:
    free, inside = FreeExtents(size), set(range(size))
    for taking, number in moves:
        if taking and number <= len(inside):
            longest = max((sum(1 for _ in _run(inside, one)) for one in inside), default=0)
            taken = free.allocate(number)
            assert taken == sorted(taken)
            assert set(taken) <= inside
            assert len(set(taken)) == number
            assert number == 0 or number > longest or neighbours(taken)
            inside -= set(taken)
        elif not taking and number < size and number not in inside:
            free.free(number)
            inside.add(number)
        assert len(free) == len(inside)
    assert set(free.allocate(len(inside))) == inside


def _run(inside: set[int], one: int) -> list[int]:
    run = []
    while one in inside:
        run.append(one)
        one += 1
    return run
