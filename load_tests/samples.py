"""Samples of a load test, one line per request."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True, slots=True)
class Sample:
    """One request as its client saw it.

    Attributes:
        at: seconds from the start of the test to sending it.
        route: the path.
        stream: whether a stream was requested.
        status: HTTP status; 0 without an answer.
        outcome: see `protocols.Verdict`.
        seconds: time to the end of the answer.
        first_s: time to the first event of a stream.
        tokens: generated tokens.
        late_s: how late it was sent because its user was still waiting for an answer.
        fault: what was wrong.
    """

    at: float
    route: str
    stream: bool
    status: int
    outcome: str
    seconds: float
    first_s: float | None = None
    tokens: int = 0
    late_s: float = 0.0
    fault: str | None = None

    @property
    def token_s(self) -> float | None:
        """The average seconds per token after the first; None if unknown."""
        if self.first_s is None or self.outcome != "answered" or self.tokens < 2:
            return None
        return (self.seconds - self.first_s) / (self.tokens - 1)

    def line(self) -> str:
        """Return the sample as a line of JSON."""
        return json.dumps(asdict(self)) + "\n"


def read(lines: Iterable[str]) -> Iterator[Sample]:
    """Read the samples of a file. A torn last line, from a killed writer, is skipped."""
    for line in lines:
        if line.endswith("\n"):
            yield Sample(**json.loads(line))
