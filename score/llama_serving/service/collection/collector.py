"""Takes requests to their sink on a thread of its own. Whatever happens there costs log lines and never a request."""

import atexit
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from llama_serving.service.collection.caller import is_sampled
from llama_serving.service.collection.record import CollectedRequest
from llama_serving.service.collection.redaction import Redactor
from llama_serving.service.collection.sinks.sink import Sink, SinkError

_log = logging.getLogger(__name__)

MOST_WAITING: Final = 1000
"""Requests that may wait for the sink."""
MOST_CHARACTERS: Final = 16 << 20
"""Characters of all of them together."""
MOST_OF_ONE: Final = 1 << 20
"""Characters of one request: redacting more takes too long."""
COMPLAINT_S: Final = 60.0
"""Seconds between two log lines."""
LAST_S: Final = 3.0
"""Seconds that the end of the process may wait for the sink."""

FULL: Final = "full"
TOO_LARGE: Final = "too_large"
REDACTION: Final = "redaction"
SINK: Final = "sink"
CLOSED: Final = "closed"
REASONS: Final = (FULL, TOO_LARGE, REDACTION, SINK, CLOSED)
"""Why a request was dropped."""


@dataclass(frozen=True, slots=True)
class CollectionCounts:
    """What a collector has done since the start.

    Attributes:
        collected: requests that the sink has accepted.
        dropped: sampled requests that it has not, by reason.
    """

    collected: int
    dropped: Mapping[str, int]


class Collector:
    """Samples, redacts and delivers. Thread-safe; nothing that a request calls waits or raises.

    Args:
        sink: where requests go.
        redactor: what they pass through first. One that fails there is dropped.
        rate: the share of requests that is collected.
        clock: seconds, for the pause between log lines.
    """

    def __init__(
        self, sink: Sink, redactor: Redactor, *, rate: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate = rate
        self._sink, self._redactor, self._clock = sink, redactor, clock
        self._queue: queue.SimpleQueue[CollectedRequest | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = self._characters = 0
        self._collected = 0
        self._dropped = Counter[str]()
        self._untold = Counter[str]()
        self._complained = float("-inf")
        self._closed = self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="collection", daemon=True)
        self._thread.start()
        # A host may end its process without closing the service: what waits is delivered first.
        atexit.register(self.close)

    @property
    def destination(self) -> str:
        """Where requests go."""
        return self._sink.destination

    def takes(self, request_id: str) -> bool:
        """Return whether a request is in the sample."""
        return is_sampled(request_id, self.rate)

    def put(self, request: CollectedRequest) -> None:
        """Queue a request, or drop it; returns at once."""
        size = request.characters
        with self._lock:
            reason = self._refusal(size)
            if reason is None:
                self._waiting += 1
                self._characters += size
                self._queue.put(request)
        if reason is not None:
            self._drop(reason)

    def counts(self) -> CollectionCounts:
        """Return what was delivered and what was dropped."""
        with self._lock:
            return CollectionCounts(self._collected, {reason: self._dropped[reason] for reason in REASONS})

    def close(self) -> None:
        """Deliver what waits, if the sink takes it soon. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        atexit.unregister(self.close)  # (or it would hold the collector for the life of the process)
        self._thread.join(LAST_S)
        with self._lock:
            self._abandoned, left = True, self._waiting
            self._dropped[CLOSED] += left
        if left:
            _log.warning("collection: %d requests were not delivered within %g s and are dropped", left, LAST_S)

    def _refusal(self, size: int) -> str | None:
        if self._closed:
            return CLOSED
        if size > MOST_OF_ONE:
            return TOO_LARGE
        if self._waiting >= MOST_WAITING or self._characters + size > MOST_CHARACTERS:
            return FULL
        return None

    def _drop(self, reason: str, detail: str = "") -> None:
        """Count a dropped request, and say so once in a while."""
        with self._lock:
            self._dropped[reason] += 1
            self._untold[reason] += 1
            now = self._clock()
            if now - self._complained < COMPLAINT_S:
                return
            self._complained = now
            told, self._untold = self._untold, Counter[str]()
        why = ", ".join(f"{number} {name}" for name, number in told.items())
        _log.warning("collection: requests were dropped (%s)%s; said once in %g s", why,
                     f": {detail}" if detail else "", COMPLAINT_S)  # fmt: skip

    # --- all below runs on the collector's thread -----------------------------------------------------

    def _run(self) -> None:
        while (request := self._queue.get()) is not None:
            reason, detail = self._delivered(request)
            with self._lock:
                if self._abandoned:  # it is counted already
                    break
                self._characters -= request.characters
                self._waiting -= 1
                self._collected += reason is None
            if reason is not None:
                self._drop(reason, detail)
        self._sink.close()

    def _delivered(self, request: CollectedRequest) -> tuple[str | None, str]:
        """Return why a request is dropped, and what the log says of it; None if it is not."""
        try:
            clean = request.redacted(self._redactor.redacting(request.secrets))
        except Exception as error:
            return REDACTION, type(error).__name__
        try:
            self._sink.write(clean)
        except SinkError as error:
            return SINK, f"{self._sink.destination}: {error}"
        except Exception as error:  # (its message could quote the request)
            return SINK, f"{self._sink.destination}: {type(error).__name__}"
        return None, ""
