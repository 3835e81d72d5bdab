"""The exact sign test: its level is kept, and a planted loss is found."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.evaluation.metrics.metric import Array
from llama_endpoints.evaluation.metrics.sign_test import LEVEL, p_value


def tables(lost: int, won: int, same: int) -> tuple[Array, Array]:
    """New and old, with so many problems that are lost, won, and passed by both."""
    new, old = ([0.0] * lost + [1.0] * won + [1.0] * same), ([1.0] * lost + [0.0] * won + [1.0] * same)
    first, second = (np.array([(one, 1.0) for one in values]).reshape(-1, 2) for values in (new, old))
    return first, second


@pytest.mark.parametrize(
    ("lost", "won", "expected"), [(5, 0, 1 / 32), (4, 0, 1 / 16), (0, 5, 1 / 32), (8, 1, 10 / 512), (0, 0, 1)]
)
def test_it_is_the_tail_of_the_binomial(lost: int, won: int, expected: float) -> None:
    assert p_value(*tables(lost, won, 150)) == pytest.approx(expected)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 20))
def test_it_is_the_same_both_ways_and_counts_differences_alone(lost: int, won: int, same: int) -> None:
    found = p_value(*tables(lost, won, same))
    assert found is not None
    assert 0 < found <= 1
    assert p_value(*tables(won, lost, same + 5)) == pytest.approx(found)
    if lost > won:
        more = p_value(*tables(lost + 1, won, same))
        assert more is not None
        assert more < found


@given(st.integers(1, 60))
def test_equal_models_are_worse_no_more_often_than_the_level_says(differ: int) -> None:
    """Of all ways in which so many problems can go either way by chance."""
    false = sum(
        comb(differ, lost)
        for lost in range(differ + 1)
        if lost > differ - lost and (p_value(*tables(lost, differ - lost, 3)) or 0) <= LEVEL
    )
    assert false / 2**differ <= LEVEL


def test_values_between_have_none() -> None:
    half, whole = np.array([[0.5, 1.0]]), np.array([[1.0, 1.0]])
    assert p_value(half, whole) is None
    assert p_value(whole, half) is None
    assert p_value(np.array([[1.0, 7.0]]), whole) is None, "a weight of its own"
    assert p_value(np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 2.0, 4.0]])) is None
