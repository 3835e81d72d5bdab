"""Files from elsewhere onto a disk: each goes on where it ended, is verified, and only then has its name."""

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

from llama_endpoints.download.source import PAUSES_S, BrokenOff, RemoteFile, Source, Tell
from llama_serving.errors import SetupError

CONNECTIONS: Final = 4
"""Files at a time: a store gives each connection only so much."""

_CHUNK: Final = 1 << 20

Progress = Callable[[int], object]
"""Called with bytes that are there now; with a negative number for bytes that turned out to be of no use."""


class _Stopped(Exception):
    """Another file has failed, or somebody stopped the command."""


@dataclass(frozen=True, slots=True)
class Download:
    """A folder that is being filled.

    Attributes:
        ours: what is in the folder under a file's name and is not that file may be removed.
    """

    source: Source
    folder: Path
    ours: bool = False
    progress: Progress = lambda _: None
    tell: Tell = lambda _: None
    pauses: Sequence[float] = PAUSES_S
    _stop: threading.Event = field(default_factory=threading.Event)

    def bring(self, files: Iterable[RemoteFile]) -> int:
        """All of `files`, several at a time. What is there at the end of a failure is gone on with by the next call.

        Returns:
            The bytes that came for it.

        Raises:
            SetupError: one can't be had, or is not what is stated.
            OSError: one can't be written.
        """
        with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="download") as pool:
            futures = [pool.submit(self._one, file) for file in files]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:  # a stop from outside, too
                if not all(_is_good(future) for future in futures):
                    self._stop.set()
                    pool.shutdown(wait=False, cancel_futures=True)
        for error in (future.exception() for future in futures if not future.cancelled()):
            if error is not None and not isinstance(error, _Stopped):
                raise error
        return sum(future.result() for future in futures)

    def missing(self, files: Iterable[RemoteFile]) -> int:
        """Bytes that are still to come."""
        paths = [(file, self.folder / file.name, self.folder / file.part) for file in files]
        return sum(file.size - _size(part) for file, path, part in paths if _size(path) != file.size)

    def check_room(self, files: Iterable[RemoteFile], remedy: str) -> None:
        """Known before hours of downloading, not after.

        Raises:
            SetupError: what is still to come does not fit on the disk.
        """
        needed, free = self.missing(files), shutil.disk_usage(self.folder).free
        if free < needed:
            raise SetupError(
                f"{self.folder} has {free:,} bytes free, and {needed:,} are still to come. Make room, or {remedy}."
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
                f"{file.name} came with another checksum than {self.source.name} states ({file.stated}), and was removed. "
                "Run the same command again; if it stays so, something on the way changes what it passes on."
            )
        with part.open("rb") as done:
            os.fsync(done.fileno())
        part.replace(path)
        return received

    def _remove(self, path: Path, file: RemoteFile) -> None:
        if not self.ours:
            raise SetupError(
                f"{path} was there before, and is not what {self.source.name} states ({file.stated}). Name another --output, or "
                "add --overwrite."
            )
        path.unlink()
        self.tell(f"{path} was not what {self.source.name} states ({file.stated}): removed, and fetched again.")

    def _is(self, path: Path, file: RemoteFile, *, counted: bool = True) -> bool:
        """Whether a file on the disk is the one that is stated."""
        if _size(path) != file.size:
            return False
        if not file.digest:  # its length, and what each answer was checked by, must do
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
        """The part becomes as long as the file; the bytes that came for it."""
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
        """What one answer brings; more than the file's bytes are left to its checksum."""
        with self.source.open(file, start) as reading:
            if reading.start > start:
                raise BrokenOff(f"{self.source.name} sends another range than it was asked for")
            if reading.start < start:  # it has no ranges: all of it comes again
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
            raise BrokenOff("it ended early")

    def _pause(self, file: RemoteFile, error: BrokenOff, tries: int) -> None:
        if tries > len(self.pauses):
            raise SetupError(
                f"{file.name} can't be had: {error}, {tries} times in a row. What is there is kept: run the same "
                "command again to go on."
            ) from error
        seconds = max(self.pauses[max(tries - 1, 0)], error.retry_after or 0)
        self.tell(f"{file.name}: {error}; trying again in {seconds:g} s.")
        self._stop.wait(seconds)
        self._check()

    def _check(self) -> None:
        if self._stop.is_set():
            raise _Stopped


@contextmanager
def alone(folder: Path, remedy: str) -> Iterator[None]:
    """`folder` is there, and no other process is filling it.

    Raises:
        SetupError: another process is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupError(f"Another process is filling {folder}. {remedy}.") from None
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
