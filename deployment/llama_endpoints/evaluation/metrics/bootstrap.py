"""Confidence intervals: the percentile bootstrap over problems. Pure; the same seed gives the same interval.

A problem is drawn with all its samples, since samples of one problem are not independent (Efron and Tibshirani 1993, chapter 13).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from llama_endpoints.evaluation.metrics.metric import Array, Metric

CONFIDENCE: Final = 0.95
SEED: Final = 0
_MOST: Final = 10_000
_FEWEST: Final = 1_000
_DRAWS: Final = 100_000_000
"""About this many draws at most, so that an interval takes seconds with 100,000 problems, too."""
_AT_ONCE: Final = 4_000_000
"""Draws that are in memory together: 32 MB."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval.

    Attributes:
        value: of all problems; NaN where there are none.
        low: lower end of the interval.
        high: upper end of the interval.
        problems: how many count.
        confidence: of the interval, 0 to 1.
    """

    value: float
    low: float
    high: float
    problems: int
    confidence: float = CONFIDENCE


def estimate(metric: Metric, table: Array, *, confidence: float = CONFIDENCE, seed: int = SEED) -> Estimate:
    """Return a metric's value and interval from its table, a row a problem.

    Where all problems failed, or none did, resamples have no spread; a rate then gets the exact bound (Clopper and Pearson 1934).
    """
    count = len(table)
    if not count:
        return Estimate(float("nan"), float("nan"), float("nan"), 0, confidence)
    value = float(metric.combine(table.sum(axis=0)[None])[0])
    if metric.rate and value in {0.0, 1.0}:
        reach = ((1 - confidence) / 2) ** (1 / count)
        low, high = (0.0, 1 - reach) if value == 0.0 else (reach, 1.0)
        return Estimate(value, low, high, count, confidence)
    values = np.concatenate([metric.combine(weights @ table) for weights in _weights(count, seed)])
    return Estimate(value, *_ends(values, confidence), count, confidence)


def difference(
    metric: Metric, new: Array, old: Array, *, confidence: float = CONFIDENCE, seed: int = SEED
) -> Estimate:
    """Return the metric's difference, new minus old, of tables whose rows are the same problems in the same order."""
    count = len(new)
    if len(old) != count:
        raise ValueError("paired tables have the same problems")
    if not count:
        return Estimate(float("nan"), float("nan"), float("nan"), 0, confidence)
    value = float((metric.combine(new.sum(axis=0)[None]) - metric.combine(old.sum(axis=0)[None]))[0])
    values = np.concatenate([
        metric.combine(weights @ new) - metric.combine(weights @ old) for weights in _weights(count, seed)
    ])  # fmt: skip
    return Estimate(value, *_ends(values, confidence), count, confidence)


def _weights(count: int, seed: int) -> Iterator[Array]:
    """Yield resamples, many at once: how often each problem was drawn."""
    rng = np.random.default_rng(seed)
    left = max(_FEWEST, min(_MOST, _DRAWS // count))
    at_once = max(1, _AT_ONCE // count)
    while left:
        size = min(left, at_once)
        yield rng.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)
        left -= size


def _ends(values: Array, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(values, (tail, 1 - tail), method="inverted_cdf")
    return float(low), float(high)
