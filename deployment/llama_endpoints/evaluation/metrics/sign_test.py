"""The exact sign test on pairs of yes and no (McNemar 1947, in its exact form). Pure."""

import math
from typing import Final

from llama_endpoints.evaluation.metrics.metric import Array

LEVEL: Final = 0.05
"""Of the one-sided test. 5 losses without a win are 1/32 and significant, 4 are 1/16 and not."""


def p_value(new: Array, old: Array) -> float | None:
    """Return how probable a lead of one side as great as the one found, or greater, is where a problem that differs is won or lost by chance.

    Args:
        new: a metric's table, a row a problem.
        old: that of the other evaluation, of the same problems in the same order.

    Returns:
        The one-sided probability, 0 to 1; None where a problem's value is not yes or no, as with several samples.
    """
    if not all(_is_binary(table) for table in (new, old)):
        return None
    change = new[:, 0] - old[:, 0]
    won, lost = int((change > 0).sum()), int((change < 0).sum())
    return _tail(won + lost, max(won, lost))


def _tail(count: int, least: int) -> float:
    """Return the probability of at least so many heads of a fair coin that is tossed `count` times."""
    ways = total = math.comb(count, least)
    for heads in range(least, count):
        ways = ways * (count - heads) // (heads + 1)
        total += ways
    return total / (1 << count)


def _is_binary(table: Array) -> bool:
    """Return whether each problem is 0 or 1, and counts once."""
    if table.ndim != 2 or table.shape[1] != 2:
        return False
    return bool((((table[:, 0] == 0) | (table[:, 0] == 1)) & (table[:, 1] == 1)).all())
