"""Metrics: the scores of all problems -> one number. Pure.

Each metric is a function of sums over problems. So a bootstrap, which draws problems, needs a problem's numbers once, and weights.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llama_endpoints.evaluation.score import Score

ByProblem = Sequence[Sequence[Score]]
"""Scores of the samples of each problem. A bootstrap draws problems from it."""
Array = np.ndarray[Any, np.dtype[np.float64]]
Terms = Callable[[Sequence[Score]], Sequence[float]]


def quotient(sums: Array) -> Array:
    """Return the first number by the second, in each row."""
    return np.asarray(sums[:, 0] / sums[:, 1])


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of a task.

    Attributes:
        name: such as `pass@1`.
        terms: the numbers of one problem, from its samples' scores, whose sums over problems make the metric.
        combine: the metric of each row of sums.
        higher_is_better: whether a greater value is a better model.
        rate: whether it is a mean over problems of values between 0 and 1.
        groups: whether the metric is also reported for each group, as `NAME (GROUP)`.
    """

    name: str
    terms: Terms
    combine: Callable[[Array], Array] = quotient
    higher_is_better: bool = True
    rate: bool = False
    groups: bool = True

    def table(self, problems: ByProblem) -> Array:
        """Return the numbers of each problem, in a row."""
        return np.array([list(self.terms(scores)) for scores in problems], dtype=np.float64)

    def value(self, problems: ByProblem) -> float:
        """Return the metric over some problems; there is at least one, and each has a sample."""
        table = self.table(problems)
        return float(self.combine(np.array([[math.fsum(column) for column in table.T]]))[0])


def of_groups(metric: Metric, problems: ByProblem) -> list[tuple[Metric, ByProblem]]:
    """Return the metric with all problems, and then with each group's."""
    groups = list(dict.fromkeys(scores[0].group for scores in problems if scores[0].group is not None))
    if not metric.groups:
        groups = []
    parts = [
        (replace(metric, name=f"{metric.name} ({group})"), [one for one in problems if one[0].group == group])
        for group in groups
    ]
    return [(metric, problems), *parts]


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Return the unbiased estimate of the probability that at least one of k samples passes (arXiv 2107.03374, section 2.1).

    1 - C(n - c, k) / C(n, k), for n samples of which c pass.

    Raises:
        ValueError: k is not from 1 to the number of samples, or more pass than there are.
    """
    if not 1 <= k <= samples or not 0 <= passed <= samples:
        raise ValueError(f"pass@{k} of {passed} passed in {samples} samples is not defined.")
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def pass_metrics(ks: Sequence[int]) -> tuple[Metric, ...]:
    """Return pass@k for each k: the mean over problems of the estimate from each one's samples."""

    def of(k: int) -> Terms:
        return lambda scores: (_pass(scores, k), 1.0)

    return tuple(Metric(f"pass@{k}", of(k), rate=True) for k in ks)


def mean_metric(
    name: str, key: str | None = None, *, higher_is_better: bool = True, rate: bool = True
) -> Metric:
    """Return the mean over problems of the mean of a value over each one's samples.

    Args:
        name: of the metric.
        key: of the value in `Score.values`; the name if it is None.
        higher_is_better: whether a greater value is a better model.
        rate: whether all values lie between 0 and 1.
    """
    wanted = key or name

    def terms(scores: Sequence[Score]) -> Sequence[float]:
        return math.fsum(score.values[wanted] for score in scores) / len(scores), 1.0

    return Metric(name, terms, higher_is_better=higher_is_better, rate=rate)


def _pass(scores: Sequence[Score], k: int) -> float:
    return pass_at_k(len(scores), sum(score.values["passed"] >= 1.0 for score in scores), k)
