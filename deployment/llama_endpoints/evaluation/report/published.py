"""Figures that the models' authors published, and what a measured value says about them.

The file `published.csv` has a row a figure. Its tables are those of arXiv 2308.12950 (version 3). Left out is what the paper gives twice
with different values (Llama-2 70B: MBPP pass@100 and Java; Code Llama 13B: C#).
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from llama_endpoints.evaluation.metrics.bootstrap import Estimate

_FILE: Final = Path(__file__).with_name("published.csv")
_PAPER: Final = "arXiv 2308.12950"
_PROBLEMS: Final[Mapping[str, int | Mapping[str, int]]] = {
    "humaneval": 164,
    "mbpp": 500,
    "infilling": {"single-line": 1033, "random-span": 1640},
    "multipl-e": {"cpp": 161, "cs": 158, "java": 158, "php": 161, "sh": 158, "ts": 159},
}
"""Problems that figures are over: HumanEval, the test split of MBPP, arXiv 2207.14255, and the parts `humaneval-LANGUAGE` of
nuprl/MultiPL-E at Hugging Face."""


@dataclass(frozen=True, slots=True)
class Published:
    """A published figure.

    Attributes:
        value: 0 to 1.
        source: the paper and the table.
    """

    value: float
    source: str


@cache
def _figures() -> Mapping[tuple[str, str, str], Published]:
    with _FILE.open(encoding="utf-8", newline="") as file:
        return {
            (row["task"], row["metric"], row["model"]): Published(
                round(float(row["percent"]) / 100, 6), f"{_PAPER}, {row['table']}"
            )
            for row in csv.DictReader(file)
        }


def published(task: str, metric: str, model: str) -> Published | None:
    """Return the figure of a model of the catalog for a task's metric; None where none is known."""
    return _figures().get((task, metric, model))


def problems(task: str, metric: str) -> int | None:
    """Return how many problems the figures of a task's metric are over; None where there are no figures."""
    found = _PROBLEMS.get(task)
    if not isinstance(found, Mapping):
        return found
    name, _, group = metric.partition(" (")
    return found.get(group.removesuffix(")") or name.partition("/")[0])


def verdict(measured: Estimate, figure: Published | None, departures: Sequence[str] = ()) -> str:
    """Return what the interval says about the published figure, in words.

    Args:
        measured: the value with its interval.
        figure: the published one.
        departures: what was done otherwise than for the published figure, such as `temperature 0.2 instead of 0.8`.
    """
    if not measured.problems:
        return "not measured: no problem has a score"
    if figure is None:
        return "no published figure"
    if departures:
        return f"not comparable: {'; '.join(departures)}"
    if measured.low <= figure.value <= measured.high:
        return "agrees with the published figure"
    return f"{'above' if measured.low > figure.value else 'below'} the published figure"
