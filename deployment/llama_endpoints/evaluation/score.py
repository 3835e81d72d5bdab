"""The score of one sample."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """What became of a sample."""

    PASSED = "passed"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    OUT_OF_MEMORY = "out of memory"
    NOT_RUN = "not run"  # the request failed, or nothing can run the sample here
    SCORED = "scored"  # a task whose values are neither right nor wrong


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one sample, a line of `scores.jsonl`.

    Attributes:
        problem: id of the problem.
        sample: number among the problem's samples, from 0.
        group: the problem's group.
        values: numbers by name, such as `{"passed": 1.0}`. A sample without an answer has its worst values.
        verdict: what became of it.
        detail: the reason, in one line; empty if there is none.
    """

    problem: str
    sample: int
    group: str | None
    values: Mapping[str, float] = field(default_factory=dict)
    verdict: Verdict = Verdict.SCORED
    detail: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "Score":
        """Read what `to_dict` returns."""
        return cls(**{**given, "verdict": Verdict(given["verdict"])})
