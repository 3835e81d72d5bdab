"""Whether a series grows: the slope of a regression with its confidence interval.

A server that has just started grows: caches fill and the allocator takes what it keeps. The first quarter of the points is
therefore left out. The others form at most `BLOCKS` groups of neighbours, and each group counts by its median, so that single
outliers do not matter. Through these medians goes a line by least squares:

    slope = Sxy / Sxx      error^2 = (residuals^2 / (n - 2) / Sxx) * (1 + r) / (1 - r)

where r is the correlation of each residual with the one before it, from 0 to `MOST_CORRELATED`, plus (1 + 4 r) / n, by which few
points show too little of it (Kendall, 1954). Memory moves in steps, and neighbours are alike: without this factor the interval
would be too narrow. The interval is slope +- t * error, with Student's t
for n - 2 degrees of freedom at `CONFIDENCE`, by the expansion of Cornish and Fisher (Abramowitz and Stegun, 26.7.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

WARM_UP: Final = 0.25
BLOCKS: Final = 20
LEAST: Final = 6
"""Points below which nothing is said."""
MOST_CORRELATED: Final = 0.8
CONFIDENCE: Final = 0.99


@dataclass(frozen=True, slots=True)
class Trend:
    """A slope, and the interval that holds it at `CONFIDENCE`."""

    slope: float
    low: float
    high: float

    @property
    def flat(self) -> bool:
        """Whether no growth lies within the interval."""
        return self.low <= 0

    def exceeds(self, limit: float) -> bool:
        """Return whether the slope is certainly above a limit."""
        return self.low > limit

    def excludes(self, limit: float) -> bool:
        """Return whether the slope is certainly below a limit."""
        return self.high < limit


def trend(x: Sequence[float], y: Sequence[float]) -> Trend:
    """Return the slope of y over x. With too few points the interval is everything."""
    first = int(len(x) * WARM_UP)
    xs, ys = _medians(x[first:]), _medians(y[first:])
    n = len(xs)
    if n < LEAST or np.ptp(xs) == 0:
        return Trend(0.0, -np.inf, np.inf)
    dx, dy = xs - xs.mean(), ys - ys.mean()
    sxx = float(dx @ dx)
    slope = float(dx @ dy) / sxx
    residuals = dy - slope * dx
    r = _correlation(residuals)
    error = float(np.sqrt(residuals @ residuals / (n - 2) / sxx * (1 + r) / (1 - r)))
    half = student(n - 2) * error
    return Trend(slope, slope - half, slope + half)


def student(degrees: int, confidence: float = CONFIDENCE) -> float:
    """Return the two-sided quantile of Student's t, within 2 % from 4 degrees of freedom on."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )


def _medians(values: Sequence[float]) -> np.ndarray[Any, Any]:
    groups = np.array_split(np.asarray(values, dtype=float), min(BLOCKS, max(1, len(values))))
    return np.array([np.median(group) for group in groups if len(group)])


def _correlation(residuals: np.ndarray[Any, Any]) -> float:
    total = float(residuals @ residuals)
    if total == 0:
        return 0.0
    seen, n = max(0.0, float(residuals[1:] @ residuals[:-1]) / total), len(residuals)
    return min(MOST_CORRELATED, seen + (1 + 4 * seen) / n)
