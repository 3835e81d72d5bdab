"""Intervals: the same seed gives the same one, they cover what they say, and a difference is paired."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_endpoints.evaluation.metrics.bootstrap import Estimate, difference, estimate
from llama_endpoints.evaluation.metrics.metric import Array, mean_metric, pass_metrics
from llama_endpoints.evaluation.score import Score, Verdict

MEAN = mean_metric("passed")


def table(*values: float) -> Array:
    return np.array([(value, 1.0) for value in values], dtype=np.float64).reshape(-1, 2)


@settings(max_examples=20)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=200))
def test_the_value_lies_in_its_interval_and_repeats(values: list[float]) -> None:
    found = estimate(MEAN, table(*values))
    assert -1e-12 <= found.low <= found.high <= 1 + 1e-12
    assert found.low - 1e-9 <= found.value <= found.high + 1e-9
    assert found.value == pytest.approx(sum(values) / len(values))
    assert estimate(MEAN, table(*values)) == found
    assert found.problems == len(values)


def test_it_is_about_as_wide_as_theory_says() -> None:
    """33.5 % of 164: 1.96 standard errors on each side."""
    found = estimate(MEAN, table(*[1.0] * 55, *[0.0] * 109))
    p = 55 / 164
    reach = 1.96 * math.sqrt(p * (1 - p) / 164)
    assert found.low == pytest.approx(p - reach, abs=0.01)
    assert found.high == pytest.approx(p + reach, abs=0.01)


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    found = [estimate(MEAN, table(*rng.binomial(1, 0.4, size=40)), confidence=0.8, seed=n) for n in range(100)]
    covered = sum(one.low <= 0.4 <= one.high for one in found) / len(found)
    assert abs(covered - 0.8) < 0.1


def test_all_or_nothing_has_the_exact_bound() -> None:
    """No spread among resamples is no certainty: the bound for 0 of 164 is Clopper and Pearson's."""
    from scipy.stats import binomtest

    for passed in (0, 164):
        exact = binomtest(passed, 164).proportion_ci(0.95, "exact")
        found = estimate(MEAN, table(*[1.0] * passed, *[0.0] * (164 - passed)))
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high))


def test_no_problem_is_no_number() -> None:
    found = estimate(MEAN, np.zeros((0, 2)))
    assert found.problems == 0
    assert all(map(math.isnan, (found.value, found.low, found.high)))


def test_samples_of_a_problem_stay_together() -> None:
    """Ten equal samples a problem are no more evidence than one."""

    def scores(each: int) -> list[list[Score]]:
        return [
            [Score(str(n), s, None, {"passed": float(n % 3 == 0)}, Verdict.PASSED) for s in range(each)]
            for n in range(60)
        ]

    metric = pass_metrics([1])[0]
    one, ten = (estimate(metric, metric.table(scores(each))) for each in (1, 10))
    assert one == ten


@given(st.lists(st.booleans(), min_size=1, max_size=100))
def test_equal_models_have_no_difference(passed: list[bool]) -> None:
    same = table(*map(float, passed))
    assert difference(MEAN, same, same) == Estimate(0.0, 0.0, 0.0, len(passed))


def test_pairs_show_what_two_intervals_hide() -> None:
    """5 of 164 problems lost, none won: both intervals overlap, that of the difference has no 0."""
    old = [float(n % 2) for n in range(164)]
    new = [0.0 if n in {1, 3, 5, 7, 9} else value for n, value in enumerate(old)]
    apart = [estimate(MEAN, table(*values)) for values in (old, new)]
    assert apart[1].high > apart[0].low
    found = difference(MEAN, table(*new), table(*old))
    assert found.value == pytest.approx(-5 / 164)
    assert found.high < 0
    back = difference(MEAN, table(*old), table(*new))
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low), abs=0.01)


def test_tables_of_other_problems_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="same problems"):
        difference(MEAN, table(1.0), table(1.0, 0.0))
