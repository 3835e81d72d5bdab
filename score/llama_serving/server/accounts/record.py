"""What is kept of one finished request: a line of the audit.

It holds no text. Of what a client wrote it has numbers, and the request's id.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from llama_serving.errors import RateLimited

BLOCKED: Final = "content_filter"
"""Code of the error, or reason of the end, where a content filter blocks."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What is known of a request when it comes.

    Attributes:
        route: path.
        client: address that it came from; `unix` for a Unix socket.
    """

    request_id: str
    route: str
    client: str


@dataclass(frozen=True, slots=True)
class Record:
    """One request.

    Attributes:
        time: of its arrival, in UTC.
        key: the name of its key.
        model: None before the model is loaded.
        route: path.
        status: of the answer; 499 if the client had gone before it.
        client: address that it came from; None in audits of older servers.
        error: code of the error, if there was one.
        block: what a content filter blocked: `prompt` or `text`.
        prompt_ids: identifies each prompt: its digest, as receipts have it.
        parameters: how its sequences were sampled.
        sequences: generated; each has read its whole prompt.
        prompt_tokens: read by all sequences, as the engine counts them; `completion_tokens` likewise.
        first_token_ms: from the arrival to the first token.
        ms: from the arrival to the end of the answer and of all sequences.
        finish_reasons: of each sequence; for one that failed, the error's code.
        missing_of_day: how far the key's limits of a day were from full at the request's end, by unit: `requests`, `tokens`.
    """

    time: str
    request_id: str
    key: str = field(repr=False)
    model: str | None
    route: str
    status: int
    client: str | None = None
    error: str | None = None
    block: str | None = None
    prompt_ids: tuple[str, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    sequences: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_ms: float | None = None
    ms: float = 0.0
    finish_reasons: tuple[str, ...] = ()
    missing_of_day: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON."""
        return asdict(self)


def was_counted(record: Mapping[str, Any]) -> bool:
    """Return whether a request, as JSON, counted for its key's limit of requests: it was not refused for their number.

    One that was refused for its tokens has the same error. It had been read before, so its model is known.
    """
    return record["error"] != RateLimited.default_code or record["model"] is not None


def timestamp(seconds: float) -> str:
    """Return a time as ISO 8601 in UTC, with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
