"""Usage: what records add up to, by key or by anything else."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

MOST_NAMES: Final = 100
"""Names that are counted by themselves in metrics; further ones are `other`."""
OTHER: Final = "other"


@dataclass(slots=True)
class Counts:
    """Sums over requests.

    Attributes:
        errors: answers that were an error, or ended with one.
        blocks: requests of which a content filter blocked the prompt or the text.
        prompt_tokens: read by all sequences, as the engine counts them.
    """

    requests: int = 0
    errors: int = 0
    blocks: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, record: Mapping[str, Any]) -> None:
        """Count one record, as JSON.

        Raises:
            KeyError, TypeError: it is no record.
        """
        prompt, completion = record["prompt_tokens"], record["completion_tokens"]
        errors, blocks = record["error"] is not None, record["block"] is not None
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        self.requests += 1
        self.errors += errors
        self.blocks += blocks


class Usage:
    """Counts by key since the start. Thread-safe, and bounded however many names there ever are."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, Counts] = {}

    def add(self, key: str, record: Mapping[str, Any]) -> None:
        """Count a finished request."""
        with self._lock:
            room = len(self._counts) < MOST_NAMES
            name = key if key in self._counts or room else OTHER
            self._counts.setdefault(name, Counts()).add(record)

    def by_key(self) -> dict[str, Counts]:
        """Return a copy of the counts."""
        with self._lock:
            return {
                name: Counts(one.requests, one.errors, one.blocks, one.prompt_tokens, one.completion_tokens)
                for name, one in self._counts.items()
            }
