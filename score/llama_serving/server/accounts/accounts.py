"""The accounts of one server: keys, what each may use and has used, and the audit. All of their state that changes."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from llama_serving.errors import SetupError, Unauthorized
from llama_serving.server.accounts.audit import AuditWriter, written_since
from llama_serving.server.accounts.keys import ANONYMOUS, Key, KeyRing
from llama_serving.server.accounts.meter import RequestMeter
from llama_serving.server.accounts.quotas import DAY, SECOND, Quota, Unit
from llama_serving.server.accounts.record import Arrival, was_counted
from llama_serving.server.accounts.usage import Usage
from llama_serving.server.auth import offered
from llama_serving.settings import Settings

_log = logging.getLogger(__name__)

LAST_S: Final = 5.0
"""Seconds that the end of the server may wait for requests to settle."""


class Accounts:
    """Whose requests are served. Thread-safe.

    Args:
        ring: the keys.
        audit: where records are written; None keeps none.
        reread: returns the keys as they are now.
        clock: returns nanoseconds, for quotas.

    Attributes:
        usage: counts by key since the start.
    """

    def __init__(
        self,
        ring: KeyRing,
        audit: AuditWriter | None = None,
        reread: Callable[[], KeyRing] | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.usage = Usage()
        self._audit, self._reread, self._clock = audit, reread, clock
        self._quotas: dict[str, Quota] = {}
        self._fewer = threading.Condition()
        self._open = 0
        self._use(ring)

    def restore(self, records: Iterable[Mapping[str, Any]], now_s: float) -> None:
        """Take from the quotas of a day what was used before this start.

        Args:
            records: of the audit, in their order.
            now_s: the time of the clock on the wall.
        """
        now = self._clock()
        daily = {key.name: key for key in self._ring.keys if key.limits.daily}
        self._quotas |= {name: Quota(key.limits, self._clock, full_at=now - DAY) for name, key in daily.items()}
        for record in records:
            if record["key"] in daily:
                ago_s = now_s - datetime.fromisoformat(record["time"]).timestamp() - record.get("ms", 0.0) / 1e3
                _restore(
                    self._quotas[record["key"]], record, now - max(0, round(ago_s * SECOND)), since=now - DAY
                )

    @classmethod
    def of(cls, settings: Settings) -> "Accounts":
        """Return the accounts that the settings describe.

        Raises:
            SetupError: the file of keys or the audit cannot be used.
        """

        def ring() -> KeyRing:
            return KeyRing.of(settings.api_keys, settings.named_keys)

        first = ring()  # (before the audit's file is created)
        if settings.audit is None:
            return cls(first, None, ring)
        path, now_s = Path(settings.audit), time.time()
        accounts = cls(
            first, AuditWriter(path, fsync=settings.audit_fsync, max_bytes=settings.audit_max_bytes), ring
        )
        if any(key.limits.daily for key in first.keys):
            accounts.restore(written_since(path, now_s - DAY / SECOND), now_s)
        return accounts

    def reload(self) -> None:
        """Read the keys again; keep those that there are if the file cannot be used."""
        if self._reread is None:
            return
        try:
            self._use(self._reread())
        except SetupError as error:
            _log.error("the keys stay as they are: %s", error)
        else:
            _log.info("%d keys", len(self._ring.keys))

    def authenticate(self, headers: Mapping[str, str]) -> Key:
        """Return the key in `Authorization: Bearer` or `api-key`; any request has one where none is needed.

        Raises:
            Unauthorized: the key is missing or wrong.
        """
        ring = self._ring
        if not ring.keys:
            return _NOBODY
        key = next(iter(offered(headers)), "")
        found = ring.find(key.encode("latin-1"))  # Starlette decodes headers so.
        if found is None:
            raise Unauthorized(
                "This server needs a key. Send one of its keys in the header Authorization: Bearer KEY, or in api-key."
            )
        return found

    def meter(self, key: Key, arrival: Arrival) -> RequestMeter:
        """Return the meter of a request that may generate."""
        with self._fewer:
            self._open += 1
        return RequestMeter(key.name, arrival, self._quotas[key.name], self._settled)

    @property
    def num_open(self) -> int:
        """Number of requests that have not settled: they, or sequences of theirs, have not ended."""
        return self._open

    def check(self) -> None:
        """Refuse requests whose records could not be kept.

        Raises:
            Unavailable: the audit cannot be written.
        """
        if self._audit is not None:
            self._audit.check()

    def close(self) -> None:
        """Wait for the last requests, and write their records."""
        with self._fewer:
            if not self._fewer.wait_for(lambda: not self._open, LAST_S):
                _log.error("%d requests have not ended: they are in no usage and no audit", self._open)
        if self._audit is not None:
            self._audit.close()

    def _use(self, ring: KeyRing) -> None:
        """Take these keys. Quotas of keys that have gone stay, or removing a key for a moment would fill its quota."""
        for key in (*ring.keys, _NOBODY):
            if key.name in self._quotas:
                self._quotas[key.name].resize(key.limits)
            else:
                self._quotas[key.name] = Quota(key.limits, self._clock)
        self._ring = ring

    def _settled(self, meter: RequestMeter) -> None:
        self.usage.add(meter.key, meter.counted())
        with self._fewer:
            if self._audit is not None:  # (in here, so that what a later line tells of the quota is later)
                missing = meter.quota.missing_of_day()
                self._audit.put(lambda: meter.record(missing).to_dict())
            self._open -= 1
            self._fewer.notify_all()


_NOBODY: Final = Key(ANONYMOUS, b"")


def _restore(quota: Quota, record: Mapping[str, Any], at: int, *, since: int) -> None:
    """Bring a quota to where it was at the end of a request, as its line of the audit tells it.

    A line that does not, since the key had no such limit then, counts with what the request used if it is no older than `since`.
    """
    told = record.get("missing_of_day", {})
    used = {
        Unit.REQUESTS: int(was_counted(record)),
        Unit.TOKENS: record["prompt_tokens"] + record["completion_tokens"],
    }
    for unit, amount in used.items():
        if unit in told:
            quota.set_missing_of_day(unit, told[unit], at)
        elif at > since:
            quota.used(unit, amount, at)


def headers(quota: Quota) -> dict[str, str]:
    """Return what is left of a quota, in the headers that OpenAI has for it."""
    found: dict[str, str] = {}
    for left in quota.left():
        found[f"x-ratelimit-limit-{left.unit}"] = str(left.limit)
        found[f"x-ratelimit-remaining-{left.unit}"] = str(left.remaining)
        found[f"x-ratelimit-reset-{left.unit}"] = duration(left.reset)
    return found


HEADERS: Final = tuple(
    f"x-ratelimit-{what}-{unit}" for unit in Unit for what in ("limit", "remaining", "reset")
)
"""All headers of quotas."""


def duration(nanoseconds: int) -> str:
    """Return a time as OpenAI's headers have it: `6m0s`, `1.25s`, `20ms`, rounded up to milliseconds."""
    milliseconds = -(-nanoseconds * 1000 // SECOND)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds
