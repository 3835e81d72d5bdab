"""What was seen of a server at one moment."""

from dataclasses import dataclass
from datetime import datetime

from llama_endpoints.monitoring.overview import Overview


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of a server at one moment.

    Attributes:
        url: address of the server.
        at: the moment, in UTC.
        overview: None if it did not answer.
        problem: why not, as a sentence; None if it answered.
    """

    url: str
    at: datetime
    overview: Overview | None
    problem: str | None = None
