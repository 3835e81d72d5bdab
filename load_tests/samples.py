"""One line a request: what a load test has measured."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True, slots=True)
class Sample:
    """One request, as its client saw it.

    Attributes:
        at: seconds from the start of the test to its sending.
        route: the path.
        stream: it was to be answered as events.
        status: of HTTP; 0 where no answer came.
        outcome: see `protocols.Verdict`.
        seconds: to the end of the answer.
        first_s: to the first event of a stream.
        tokens: generated.
        late_s: how long after it was due it was sent, as its user was still waiting for an answer.
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
        """Seconds of a token behind the first, on the average; None where that can't be known."""
        if self.first_s is None or self.outcome != "answered" or self.tokens < 2:
            return None
        return (self.seconds - self.first_s) / (self.tokens - 1)

    def line(self) -> str:
        """As a line of JSON."""
        return json.dumps(asdict(self)) + "\n"


def read(lines: Iterable[str]) -> Iterator[Sample]:
    """The samples of a file. A last line that is torn is left out: its writer was killed."""
    for line in lines:
        if line.endswith("\n"):
            yield Sample(**json.loads(line))
