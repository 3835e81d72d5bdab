"""Files of a hub onto a disk: each goes on where it ended, is verified, and only then has its name."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Final

from deployment.hub import BrokenOff, Hub
from deployment.snapshot import HubFile, Snapshot
from llama_serving.errors import SetupError

CONNECTIONS: Final = 4
"""Files at a time: a store gives each connection only so much."""
PAUSES_S: Final = (1, 2, 4, 8, 16, 30, 30)
"""Between tries that brought not one byte; after as many the download ends, to be gone on with later."""

_CHUNK: Final = 1 << 20

Progress = Callable[[int], object]
"""Called with bytes that are there now; with a negative number for bytes that turned out to be of no use."""
Tell = Callable[[str], object]


class _Stopped(Exception):
    """Another file has failed, or somebody stopped the command."""


@dataclass(frozen=True, slots=True)
class Download:
    """A folder that is being filled.

    Attributes:
        ours: what is in the folder under a file's name and is not that file may be removed.
    """

    hub: Hub
    snapshot: Snapshot
    folder: Path
    ours: bool = False
    progress: Progress = lambda _: None
    tell: Tell = lambda _: None
    pauses: Sequence[float] = PAUSES_S
    _stop: threading.Event = field(default_factory=threading.Event)

    def bring(self, files: Iterable[HubFile]) -> int:
        """All of `files`, several at a time. What is there at the end of a failure is gone on with by the next call.

        Returns:
            The bytes that came for it.

        Raises:
            SetupError: one can't be had, or is not what the hub states.
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

    def missing(self, files: Iterable[HubFile]) -> int:
        """Bytes that are still to come."""
        paths = [(file, self.folder / file.name, self.folder / file.part) for file in files]
        return sum(file.size - _size(part) for file, path, part in paths if _size(path) != file.size)

    def _one(self, file: HubFile) -> int:
        path, part = self.folder / file.name, self.folder / file.part
        if path.exists():
            if self._is(path, file):
                return 0
            self._remove(path, file)
        received = self._receive(file, part)
        if not self._is(part, file, counted=False):
            part.unlink()
            raise SetupError(
                f"{file.name} came with another checksum than the hub states ({_sum(file)}), and was removed. "
                "Run the same command again; if it stays so, something on the way changes what it passes on."
            )
        with part.open("rb") as done:
            os.fsync(done.fileno())
        part.replace(path)
        return received

    def _remove(self, path: Path, file: HubFile) -> None:
        if not self.ours:
            raise SetupError(
                f"{path} was there before, and is not what the hub states ({_sum(file)}). Name another --output, or "
                "add --overwrite."
            )
        path.unlink()
        self.tell(f"{path} was not what the hub states ({_sum(file)}): removed, and fetched again.")

    def _is(self, path: Path, file: HubFile, *, counted: bool = True) -> bool:
        """Whether a file on the disk is the one that the hub has."""
        if _size(path) != file.size:
            return False
        digest = hashlib.sha256() if file.sha256 else hashlib.sha1(_git_header(file), usedforsecurity=False)
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

    def _receive(self, file: HubFile, part: Path) -> int:
        """The part becomes as long as the file; the bytes that came for it."""
        received = 0

        def came(size: int) -> None:
            nonlocal received
            received += size
            self.progress(size)

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

    def _read_on(self, file: HubFile, out: FileIO, start: int, came: Progress) -> None:
        """What one answer of the hub brings; more than the file's bytes are left to its checksum."""
        with self.hub.open(self.snapshot, file.name, start) as reading:
            if reading.start > start:
                raise BrokenOff("the hub sends another range than it was asked for")
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

    def _pause(self, file: HubFile, error: BrokenOff, tries: int) -> None:
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


def _is_good(future: Future[int]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _length(out: FileIO) -> int:
    return os.fstat(out.fileno()).st_size


def _git_header(file: HubFile) -> bytes:
    """What git puts in front of a file's content before it takes the SHA-1."""
    return b"blob %d\0" % file.size


def _sum(file: HubFile) -> str:
    return f"sha256 {file.sha256}" if file.sha256 else f"git's sha1 {file.git_sha1}"
