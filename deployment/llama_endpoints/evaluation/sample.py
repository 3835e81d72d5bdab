"""One sample: a text that the model wrote for a problem."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample, a line of `samples.jsonl`.

    Attributes:
        problem: id of the problem.
        sample: number among the problem's samples, from 0.
        text: what the model wrote; None if the request failed.
        completion: `text`, cut as the task does.
        finish_reason: as the server reports it.
        usage: tokens, as the server reports them.
        error: the error object of a request that failed.
    """

    problem: str
    sample: int
    text: str | None
    completion: str | None
    finish_reason: str | None = None
    usage: Mapping[str, int] | None = None
    error: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "Sample":
        """Read what `to_dict` returns."""
        return cls(**given)
