"""Writes the audit: a thread that appends lines, rotates the file by its size, and syncs it if that is wanted."""

import fcntl
import glob
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from llama_serving.errors import SetupError, Unavailable
from llama_serving.server.accounts.chain import BrokenChain, Link, last_link, records, seal, unseal

_log = logging.getLogger(__name__)

MOST_WAITING: Final = 10_000
"""Lines that may wait while the file cannot be written; then requests are refused."""
MOST_TOGETHER: Final = 256
"""Lines that are written at a time."""
AGAIN_S: Final = 1.0
"""Seconds between two attempts to write."""
COMPLAINT_S: Final = 60.0
LAST_S: Final = 10.0
"""Seconds that the end of the server may wait for the last lines."""

Waiting = Callable[[], dict[str, Any]]
"""Makes a record on the writer's thread."""


class AuditWriter:
    """The audit of one server, locked against any other process.

    Args:
        path: of the file. One that reached `max_bytes` is renamed to `NAME.<number of its first line>.SUFFIX`.
        fsync: lines are on the disk, not only with the operating system, once they are written.
        max_bytes: size at which the file is rotated.

    Raises:
        SetupError: the file cannot be written, is in use, or its last line was changed.
    """

    def __init__(self, path: Path, *, fsync: bool, max_bytes: int) -> None:
        self._path, self._fsync, self._max_bytes = path, fsync, max_bytes
        self._queue: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self._complained = -COMPLAINT_S
        self._lines: list[bytes] = []
        self._again_at = 0.0
        try:
            self._fd = _locked(path)
            self.head, self._first, self._size = self._recovered()
        except OSError as error:
            raise SetupError(f"LLAMA_AUDIT={path} can't be written: {error.strerror or error}.") from error
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()
        _log.info("audit: %d lines, head %s", self.head.line, self.head.hash)

    def put(self, record: Waiting) -> None:
        """Queue a record; returns at once."""
        self._queue.put(record)

    def check(self) -> None:
        """Refuse requests whose records could not be kept.

        Raises:
            Unavailable: too many records wait for the file.
        """
        if self._queue.qsize() + len(self._lines) >= MOST_WAITING or not self._thread.is_alive():
            raise Unavailable(
                "The audit can't be written, so no requests are served. Try again later.", retry_after=60
            )

    def close(self) -> None:
        """Write what waits, and release the file."""
        self._queue.put(None)
        self._thread.join(LAST_S)
        lost = len(self._lines) + self._queue.qsize()
        if lost:
            _log.error("the audit could not be written: %d records are lost", lost)
        else:
            _log.info("audit: %d lines, head %s", self.head.line, self.head.hash)

    def _recovered(self) -> tuple[Link, int, int]:
        """Return the last line's link, the number of the first line, and the file's size, without a torn last line."""
        try:
            with os.fdopen(os.dup(self._fd), "rb") as file:
                link, size = last_link(file)
                torn = file.seek(0, 2) - size
                file.seek(0)
                first = unseal(file.readline())[1].line if link is not None else 0
            if torn:
                _log.warning("the audit's last line was incomplete: %d bytes are removed", torn)
                os.ftruncate(self._fd, size)
            if link is not None:
                return link, first, size
            link = self._rotated_head()
            return link, link.line + 1, 0
        except ValueError as error:
            raise SetupError(
                f"The last line of the audit {self._path} can't be continued: {error}. Look at it with "
                "`llama-endpoints audit verify`, and move the file away."
            ) from None

    def _rotated_head(self) -> Link:
        """Return the last line of the newest rotated file: the server ended between renaming and writing."""
        rotated = _rotated(self._path)
        if not rotated:
            return Link()
        with rotated[-1].open("rb") as file:
            return last_link(file)[0] or Link()

    # --- all below runs on the writer's thread --------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._seal():
                self._write_all()
            self._write_last()
        finally:
            os.close(self._fd)

    def _seal(self) -> bool:
        """Make lines of the records that wait, so that nothing else of a request is kept. Return whether more may come.

        Wait for the first of them, while lines cannot be written until the next attempt at that.
        """
        pause = max(0.0, self._again_at - time.monotonic()) if self._lines else None
        with suppress(queue.Empty):
            for number in range(MOST_TOGETHER):
                make = self._queue.get(number == 0, pause)
                if make is None:
                    return False
                line, self.head = seal(make(), self.head)
                self._lines.append(line)
        return True

    def _write_all(self) -> None:
        """Write the lines, unless that has just failed."""
        if time.monotonic() < self._again_at:
            return
        try:
            while self._lines:
                self._write(self._lines[:MOST_TOGETHER])
                del self._lines[:MOST_TOGETHER]
        except (OSError, SetupError) as error:
            self._again_at = time.monotonic() + AGAIN_S
            self._complain(error)

    def _write_last(self) -> None:
        """Write the rest at the end of the server, for a while if the disk is full."""
        until = time.monotonic() + LAST_S
        while self._lines and time.monotonic() < until:
            self._again_at = 0.0
            self._write_all()
            if self._lines:
                time.sleep(AGAIN_S / 10)

    def _write(self, lines: Sequence[bytes]) -> None:
        raw = b"".join(lines)
        if self._size and self._size + len(raw) > self._max_bytes:
            self._rotate()
        try:
            at = 0
            while at < len(raw):
                at += os.pwrite(self._fd, raw[at:], self._size + at)
            if self._fsync:
                os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(raw)

    def _rotate(self) -> None:
        target = self._path.with_name(f"{self._path.stem}.{self._first:012d}{self._path.suffix}")
        if self._path.exists():
            self._path.rename(target)
        fresh = _locked(self._path)
        os.close(self._fd)
        self._fd, self._size = fresh, 0
        self._first = self.head.line - len(self._lines) + 1
        if self._fsync:
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _complain(self, error: Exception) -> None:
        if time.monotonic() - self._complained >= COMPLAINT_S:
            self._complained = time.monotonic()
            _log.error("the audit can't be written: %s", getattr(error, "strerror", None) or error)


def written_since(path: Path, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield the records of an audit in their order, those of files that were not written since a time left out.

    Raises:
        SetupError: a line was changed.
    """
    try:
        for file in (*_rotated(path), path):
            if file.stat().st_mtime >= seconds:
                yield from (record for _, record, _ in records(file))
    except BrokenChain as error:
        raise SetupError(
            f"The audit can't be continued: {error}. Move its files away, or remove the limits of a day."
        ) from None


def _rotated(path: Path) -> list[Path]:
    """Return the earlier files of an audit, oldest first."""
    return sorted(path.parent.glob(f"{glob.escape(path.stem)}.{'[0-9]' * 12}{glob.escape(path.suffix)}"))


def _locked(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise SetupError(f"Another server is writing the audit {path}. Give each its own.") from None
    except OSError as error:
        _log.warning("%s can't be locked (%s): let no other process write it", path, error.strerror)
    return descriptor
