"""Metrics: the scores of all problems -> one number."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llama_endpoints.evaluation.score import Score

ByProblem = Sequence[Sequence[Score]]
"""Scores of the samples of each problem. A bootstrap draws problems from it."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of a task.

    Attributes:
        name: such as `pass@1`.
        value: returns the metric over some problems; there is at least one, and each has a sample.
        higher_is_better: whether a greater value is a better model.
        groups: whether the metric is also reported for each group, as `NAME (GROUP)`.
    """

    name: str
    value: Callable[[ByProblem], float]
    higher_is_better: bool = True
    groups: bool = True


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

    def of(k: int) -> Callable[[ByProblem], float]:
        return lambda problems: _mean([_pass(scores, k) for scores in problems])

    return tuple(Metric(f"pass@{k}", of(k)) for k in ks)


def mean_metric(name: str, key: str | None = None, *, higher_is_better: bool = True) -> Metric:
    """Return the mean over problems of the mean of a value over each one's samples.

    Args:
        name: of the metric.
        key: of the value in `Score.values`; the name if it is None.
        higher_is_better: whether a greater value is a better model.
    """
    value = key or name
    return Metric(
        name,
        lambda problems: _mean([_mean([score.values[value] for score in scores]) for scores in problems]),
        higher_is_better=higher_is_better,
    )


def _pass(scores: Sequence[Score], k: int) -> float:
    return pass_at_k(len(scores), sum(score.values["passed"] >= 1.0 for score in scores), k)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
