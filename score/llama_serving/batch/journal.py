"""A job's journal: its description, and every finished record, appended in the order of completion.

    OUT.journal
    1a2b3c4d {"job": …}                       the job's description
    5e6f7a8b 17 + 12 34 {"file": …}           checksum, row, state, tokens of prompt and completion, record
    …

A line is valid if it is complete and its checksum matches. The first invalid line and all after it were being written when
the machine stopped, and are cut off. Rows are in any order.
"""

import errno
import fcntl
import heapq
import json
import logging
import os
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Final

from llama_serving.contract.json_lines import json_line
from llama_serving.errors import SetupError

_log = logging.getLogger(__name__)
DAMAGED: Final = "Run the same command again: it resumes with the intact rows."
_NO_LOCKS: Final = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)
"""Errors of file systems without locks, such as some network file systems."""


class JournalError(SetupError):
    """The journal cannot be kept, because of the file system and not of the job."""


class InUse(JournalError):
    """Another process is writing the journal."""


class EntryState(StrEnum):
    """The result of a row."""

    OK = "+"
    ERROR = "-"
    ERROR_APART = "!"  # an error in an OpenAI Batch file, written to a file of its own


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished row.

    Attributes:
        row: its number over all inputs, from 0.
        record: JSON, without a newline.
    """

    row: int
    state: EntryState
    prompt_tokens: int
    completion_tokens: int
    record: str


@dataclass(slots=True)
class Counts:
    """Counts over all entries."""

    ok: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def rows(self) -> int:
        """Number of entries."""
        return self.ok + self.errors

    def add(self, entry: Entry) -> None:
        """Count an entry."""
        self.ok += entry.state is EntryState.OK
        self.errors += entry.state is not EntryState.OK
        self.prompt_tokens += entry.prompt_tokens
        self.completion_tokens += entry.completion_tokens


class Journal:
    """The journal of one job, locked against any other process.

    Args:
        path: of the file, which is created if needed.
        job: description of the job.

    Attributes:
        counts: of all entries.
        resumed: entries that were there when it was opened.

    Raises:
        JournalError: another process is writing it (`InUse`), or it cannot be written.
        SetupError: it belongs to another job.
    """

    def __init__(self, path: Path, job: dict[str, Any]) -> None:
        self.path, self.counts = path, Counts()
        self._done = bytearray()
        self._pending: list[bytes] = []
        self._syncing = threading.Lock()
        self._fd = _open(path)
        try:
            self._end = self._recover(job)
        except BaseException:
            os.close(self._fd)
            raise
        self.resumed = self.counts.rows

    def __contains__(self, row: int) -> bool:
        return row >> 3 < len(self._done) and bool(self._done[row >> 3] >> (row & 7) & 1)

    @staticmethod
    def job_of(path: Path) -> dict[str, Any] | None:
        """Return a journal's job; None if there is no journal.

        Raises:
            InUse: another process is writing it.
        """
        if not path.exists():
            return None
        descriptor = _open(path)
        try:
            return _job_in(descriptor)
        finally:
            os.close(descriptor)

    @staticmethod
    def remove(path: Path) -> None:
        """Remove a journal, if there is one.

        Raises:
            InUse: another process is writing it.
        """
        if path.exists():
            descriptor = _open(path)
            path.unlink()
            os.close(descriptor)

    def append(self, entry: Entry) -> None:
        """Append an entry; it is on the disk after the next `sync`. A row that is already there is ignored."""
        if entry.row not in self:
            self._remember(entry)
            self._pending.append(_line(_encode(entry)))

    def sync(self) -> None:
        """Write all appended entries to the disk; `append` may be called meanwhile.

        Raises:
            OSError: the write failed. Earlier entries stay intact.
        """
        with self._syncing:  # (an abandoned sync may still run in its thread)
            count = len(self._pending)
            if count:
                self._write(b"".join(self._pending[:count]))
                del self._pending[:count]

    def entries(self) -> Iterator[Entry]:
        """Yield all entries on the disk, in the order of rows. Only positions of out-of-order entries are kept in memory.

        Raises:
            SetupError: an entry is missing.
        """
        waiting: list[tuple[int, int, int]] = []
        following = 0
        for row, at, length in self._places():
            heapq.heappush(waiting, (row, at, length))
            while waiting and waiting[0][0] <= following:
                first, *place = heapq.heappop(waiting)
                if first == following:  # (else it is there twice)
                    following += 1
                    yield self._entry(*place)
        if waiting or following != self.counts.rows:
            raise SetupError(f"{self.path} has {self.counts.rows} rows, but not row {following}. {DAMAGED}")

    def close(self) -> None:
        """Close the file and release its lock."""
        os.close(self._fd)

    def _recover(self, job: dict[str, Any]) -> int:
        """Read the valid entries, cut off the rest, and return the size of the file."""
        found, header = _job_in(self._fd), _line(json_line({"job": job}))
        if found is None:
            if os.fstat(self._fd).st_size > len(header):  # (an incomplete header is not longer)
                raise SetupError(
                    f"{self.path} is not a journal, or is damaged. Remove it, or give another --output."
                )
            self._end = 0
            os.ftruncate(self._fd, 0)
            self._write(header)
            sync_folder(self.path.parent)
            return self._end
        _refuse_another(self.path, found, job)
        with _reading(self._fd) as file:
            end = len(file.readline())
            for raw in file:
                entry = _decode(raw)
                if entry is None:
                    break
                end += len(raw)
                self._remember(entry)
        os.ftruncate(self._fd, end)
        return end

    def _remember(self, entry: Entry) -> None:
        if entry.row in self:
            return
        missing = (entry.row >> 3) + 1 - len(self._done)
        if missing > 0:
            self._done.extend(bytes(missing))
        self._done[entry.row >> 3] |= 1 << (entry.row & 7)
        self.counts.add(entry)

    def _write(self, raw: bytes) -> None:
        view = memoryview(raw)
        try:
            at = self._end
            while view:
                written = os.pwrite(self._fd, view, at)
                view, at = view[written:], at + written
            os.fdatasync(self._fd)
        except OSError:
            os.ftruncate(self._fd, self._end)
            raise
        self._end = at

    def _places(self) -> Iterator[tuple[int, int, int]]:
        """Yield row, offset and length of each line after the header."""
        with _reading(self._fd) as file:
            at = len(file.readline())
            for raw in file:
                yield int(raw[9:].split(b" ", 1)[0]), at, len(raw)
                at += len(raw)

    def _entry(self, at: int, length: int) -> Entry:
        entry = _decode(os.pread(self._fd, length, at))
        if entry is None:
            raise SetupError(f"{self.path} was damaged while the job ran. {DAMAGED}")
        return entry


class KeptJournal(Journal):
    """A journal as a precaution: all entries are in memory too, and failed writes are ignored.

    Raises:
        As `Journal`, when it is opened; later nothing.
    """

    def __init__(self, path: Path, job: dict[str, Any]) -> None:
        self._gave_up = False
        super().__init__(path, job)
        self._kept = {row: self._entry(at, length) for row, at, length in self._places()}

    def append(self, entry: Entry) -> None:
        """Append an entry."""
        self._kept.setdefault(entry.row, entry)
        super().append(entry)

    def sync(self) -> None:
        """Write entries to the disk; after one failure, do nothing."""
        if self._gave_up:
            self._pending.clear()
            return
        try:
            super().sync()
        except OSError as error:
            self._gave_up = True
            _log.warning("%s can't be written any more (%s): another try would do again what it lacks", self.path,
                         error.strerror)  # fmt: skip

    def entries(self) -> Iterator[Entry]:
        """Yield all entries, in the order of rows."""
        yield from (self._kept[row] for row in sorted(self._kept))

    def discard(self) -> None:
        """Remove the file; if that is not allowed, the next run will find it."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s is not needed any more, but can't be removed: %s", self.path, error.strerror)


def _open(path: Path) -> int:
    """Return the locked descriptor of the journal, after checking that its name was not reused."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise JournalError(f"{path} can't be written: {error.strerror}.") from error
        try:
            _lock(descriptor, path)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it belonged to another job, which has removed it


def _reading(descriptor: int) -> BinaryIO:
    """Open the journal for reading, from the descriptor, since its name may have been reused."""
    file = os.fdopen(os.dup(descriptor), "rb")
    file.seek(0)
    return file


def _job_in(descriptor: int) -> dict[str, Any] | None:
    with _reading(descriptor) as file:
        found = _payload(file.readline())
    if found is None:
        return None
    job: dict[str, Any] = json.loads(found)["job"]
    return job


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InUse(f"Another process is writing {path}. Wait for its end, or give another --output.") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _log.warning("%s can't be locked (%s): let no other process write it", path, error.strerror)


def _encode(entry: Entry) -> str:
    return f"{entry.row} {entry.state} {entry.prompt_tokens} {entry.completion_tokens} {entry.record}"


def _decode(raw: bytes) -> Entry | None:
    payload = _payload(raw)
    if payload is None:
        return None
    row, state, prompt, completion, record = payload.split(" ", 4)
    return Entry(int(row), EntryState(state), int(prompt), int(completion), record)


def _line(payload: str) -> bytes:
    raw = payload.encode()
    return b"%08x " % zlib.crc32(raw) + raw + b"\n"


def _payload(raw: bytes) -> str | None:
    """Return the content of a line if it is valid, else None."""
    if not raw.endswith(b"\n") or raw[8:9] != b" ":
        return None
    body = raw[9:-1]
    return body.decode() if raw[:8] == b"%08x" % zlib.crc32(body) else None


def _refuse_another(path: Path, was: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [name for name in sorted({*was, *now}) if was.get(name) != now.get(name)]
    if changed:
        differences = "; ".join(_difference(name, was.get(name), now.get(name)) for name in changed)
        raise SetupError(
            f"{path} belongs to another job: {differences}. Give the same inputs and options to resume it, "
            "or --overwrite to start again."
        )


_SHORT: Final = 200


def _difference(name: str, was: Any, now: Any) -> str:
    """Describe a change, down to the item if both values are lists or objects."""
    if isinstance(was, dict) and isinstance(now, dict):
        parts = [key for key in sorted({*was, *now}) if was.get(key) != now.get(key)]
        return "; ".join(_difference(f"{name}.{key}", was.get(key), now.get(key)) for key in parts)
    return f"{name} was {_shown(was)} and is {_shown(now)}"


def _shown(value: Any) -> str:
    text = json_line(value)
    return text if len(text) <= _SHORT else text[:_SHORT] + "…"


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that its file names are on the disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
