"""Download files to a folder. Each file is resumed after an interruption, verified, and only then gets its name."""

import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Final

from llama_endpoints.download.source import PAUSES_S, BrokenOff, FileSource, RemoteFile, Tell
from llama_serving.errors import SetupError

CONNECTIONS: Final = 4
"""Parallel downloads: stores limit the rate of each connection."""

_CHUNK: Final = 1 << 20

Progress = Callable[[int], object]
"""Called with bytes that arrived; negative for bytes that were discarded."""


class _Stopped(Exception):
    """Another file failed, or the command was interrupted."""


@dataclass(frozen=True, slots=True)
class Download:
    """A folder that is being filled.

    Attributes:
        ours: whether existing files that differ may be replaced.
    """

    source: FileSource
    folder: Path
    ours: bool = False
    progress: Progress = lambda _: None
    tell: Tell = lambda _: None
    pauses: Sequence[float] = PAUSES_S
    _stop: threading.Event = field(default_factory=threading.Event)

    def bring(self, files: Iterable[RemoteFile]) -> int:
        """Download all files, several at a time. After a failure, the next call resumes.

        Returns:
            The number of bytes downloaded.

        Raises:
            SetupError: a file cannot be downloaded, or does not match its checksum.
            OSError: a file cannot be written.
        """
        with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="download") as pool:
            futures = [pool.submit(self._one, file) for file in files]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:  # also on an interruption
                if not all(_is_good(future) for future in futures):
                    self._stop.set()
                    pool.shutdown(wait=False, cancel_futures=True)
        for error in (future.exception() for future in futures if not future.cancelled()):
            if error is not None and not isinstance(error, _Stopped):
                raise error
        return sum(future.result() for future in futures)

    def missing(self, files: Iterable[RemoteFile]) -> int:
        """Return the number of bytes to download."""
        paths = [(file, self.folder / file.name, self.folder / file.part) for file in files]
        return sum(file.size - _size(part) for file, path, part in paths if _size(path) != file.size)

    def check_room(self, files: Iterable[RemoteFile], remedy: str) -> None:
        """Check the free disk space before the download.

        Raises:
            SetupError: the missing files do not fit on the disk.
        """
        needed, free = self.missing(files), shutil.disk_usage(self.folder).free
        if free < needed:
            raise SetupError(
                f"{self.folder} has {free:,} bytes free, but {needed:,} are needed. Free some space, or {remedy}."
            )

    def _one(self, file: RemoteFile) -> int:
        path, part = self.folder / file.name, self.folder / file.part
        if path.exists():
            if self._is(path, file):
                return 0
            self._remove(path, file)
        received = self._receive(file, part)
        if not self._is(part, file, counted=False):
            part.unlink()
            raise SetupError(
                f"{file.name} did not match the checksum of {self.source.name} ({file.stated}), and was removed. "
                "Run the same command again; if it fails again, something on the network alters the data."
            )
        with part.open("rb") as done:
            os.fsync(done.fileno())
        part.replace(path)
        return received

    def _remove(self, path: Path, file: RemoteFile) -> None:
        if not self.ours:
            raise SetupError(
                f"{path} exists and does not match the checksum of {self.source.name} ({file.stated}). Use another --output, or "
                "add --overwrite."
            )
        path.unlink()
        self.tell(
            f"{path} did not match the checksum of {self.source.name} ({file.stated}): downloading it again."
        )

    def _is(self, path: Path, file: RemoteFile, *, counted: bool = True) -> bool:
        """Whether a local file matches the listed one."""
        if _size(path) != file.size:
            return False
        if not file.digest:  # only its length can be checked; each range was verified on arrival
            self.progress(file.size if counted else 0)
            return True
        digest = file.hasher()
        seen = 0
        with path.open("rb") as reader:
            while chunk := reader.read(_CHUNK):
                self._check()
                digest.update(chunk)
                if counted:
                    self.progress(len(chunk))
                    seen += len(chunk)
        if digest.hexdigest() == file.digest:
            return True
        self.progress(-seen)
        return False

    def _receive(self, file: RemoteFile, part: Path) -> int:
        """Complete the partial file, and return the number of bytes downloaded."""
        received = 0

        def came(size: int) -> None:
            nonlocal received
            received += size
            self.progress(size)

        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab", buffering=0) as out:
            if out.tell() > file.size:
                out.truncate(0)
            self.progress(_length(out))
            tries = 0
            while (before := _length(out)) < file.size:
                try:
                    self._read_on(file, out, before, came)
                except BrokenOff as error:
                    tries = 0 if _length(out) > before else tries + 1
                    self._pause(file, error, tries)
        return received

    def _read_on(self, file: RemoteFile, out: FileIO, start: int, came: Progress) -> None:
        """Write one answer's bytes. Bytes beyond the file's size are left to its checksum."""
        with self.source.open(file, start) as reading:
            if reading.start > start:
                raise BrokenOff(f"{self.source.name} sent another range than requested")
            if reading.start < start:  # no range support: the file starts over
                out.truncate(reading.start)
                self.progress(reading.start - start)
            done = reading.start
            for chunk in reading.chunks:
                self._check()
                out.write(chunk)
                came(len(chunk))
                done += len(chunk)
                if done > file.size:
                    return
        if done < file.size:
            raise BrokenOff("the connection ended early")

    def _pause(self, file: RemoteFile, error: BrokenOff, tries: int) -> None:
        if tries > len(self.pauses):
            raise SetupError(
                f"Cannot download {file.name}: {error}, {tries} times in a row. Progress is kept: run the same "
                "command again to resume."
            ) from error
        seconds = max(self.pauses[max(tries - 1, 0)], error.retry_after or 0)
        self.tell(f"{file.name}: {error}; retrying in {seconds:g} s.")
        self._stop.wait(seconds)
        self._check()

    def _check(self) -> None:
        if self._stop.is_set():
            raise _Stopped


@contextmanager
def alone(folder: Path, remedy: str) -> Iterator[None]:
    """Create and lock `folder` for one process.

    Raises:
        SetupError: another process has locked it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupError(f"Another process is downloading to {folder}. {remedy}.") from None
        except OSError:  # a mounted store without locks
            pass
        yield
    finally:
        os.close(descriptor)


def _is_good(future: Future[int]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _length(out: FileIO) -> int:
    return os.fstat(out.fileno()).st_size
