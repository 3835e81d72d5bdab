"""A file with a line of JSON for each request. Several processes may write it."""

import fcntl
import os
import stat
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from llama_serving.contract.json_lines import json_line
from llama_serving.errors import SetupError
from llama_serving.service.collection.record import CollectedRequest
from llama_serving.service.collection.sinks.sink import SinkError

MODE: Final = 0o600
LOCK_S: Final = 3.0
"""Seconds that another process may hold the file's lock."""
PAUSE_S: Final = 0.02
"""Seconds between two attempts to lock it."""


class JsonLines:
    """Appends lines to a file that only its owner may read.

    Args:
        path: of the file. One that would grow beyond `max_bytes` is renamed to `NAME.<time>.SUFFIX`.
        max_bytes: size at which the file is rotated.

    Raises:
        SetupError: the file cannot be written, its mode cannot be set, or it is none.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self._path, self._max_bytes = path, max_bytes
        try:
            self._fd = self._opened()
        except OSError as error:
            raise SetupError(
                f"LLAMA_COLLECT_FILE={path} can't be written: {error.strerror or error}."
            ) from error
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise SetupError(
                f"LLAMA_COLLECT_FILE={path} is no file. Name one, such as /var/lib/llama/collected.jsonl."
            )

    @property
    def destination(self) -> str:
        """What the log says of it."""
        return str(self._path)

    def write(self, request: CollectedRequest) -> None:
        """Append one line, whole or not at all.

        Raises:
            SinkError: the disk is full, another process holds the lock, or the file cannot be written any more.
        """
        raw = f"{json_line(line_of(request))}\n".encode()
        try:
            self._lock()
            try:
                size = os.fstat(self._fd).st_size
                if size and size + len(raw) > self._max_bytes:
                    self._rotate()
                    size = os.fstat(self._fd).st_size  # (another process may have written the new file first)
                self._append(raw, size)
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
        except OSError as error:
            raise SinkError(error.strerror or type(error).__name__) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _opened(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self._path, flags, MODE)
        try:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) & ~MODE:
                os.fchmod(descriptor, MODE)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _lock(self) -> None:
        """Lock the file that has the name now: another process may have rotated the one that is open.

        Raises:
            SinkError: another process holds the lock for `LOCK_S`.
        """
        until = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise SinkError(f"another process has locked it for {LOCK_S:g} s") from None
                time.sleep(PAUSE_S)
                continue
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._fd), self._path.stat(follow_symlinks=False)):
                    return
            self._reopen()

    def _reopen(self) -> None:
        fresh = self._opened()
        os.close(self._fd)
        self._fd = fresh

    def _rotate(self) -> None:
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self._path.rename(self._path.with_name(f"{self._path.stem}.{now}{self._path.suffix}"))
        self._reopen()
        self._lock()

    def _append(self, raw: bytes, size: int) -> None:
        try:
            at = 0
            while at < len(raw):
                at += os.write(self._fd, raw[at:])
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._fd, size)
            raise


def line_of(request: CollectedRequest) -> dict[str, object]:
    """Return a request as JSON: both of Azure's collections, with the time and the ids."""
    time = datetime.fromtimestamp(request.seconds, UTC).isoformat(timespec="milliseconds")
    return {
        "time": time.replace("+00:00", "Z"),
        "correlationid": request.correlation_id,
        "request_id": request.request_id,
        "model_inputs": request.model_inputs(),
        "model_outputs": request.model_outputs(),
    }
