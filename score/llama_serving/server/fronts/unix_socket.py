"""Unix sockets: one server each, nobody else's file touched, and none left behind."""

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from llama_serving.errors import SetupError

LOCK_S: Final = 5.0
"""Seconds to wait for another server that is starting or ending in the same folder."""
_RETRY_S: Final = 0.05
BACKLOG: Final = 2048


@contextmanager
def listening(path: str, mode: int) -> Iterator[socket.socket]:
    """Yield a socket that listens at `path`; its file is removed at the end.

    Args:
        path: of the socket. A socket that nobody listens on is replaced, and no other kind of file.
        mode: permissions of the file.

    Raises:
        SetupError: there is another file, somebody listens, or the path cannot be used.
    """
    place = Path(path).absolute()  # (the working directory may change)
    try:
        with _alone_in(place.parent):
            _remove_stale(place)
            created, ours = _created(place, mode)
    except (OSError, ValueError) as error:  # (ValueError: it holds a NUL)
        reason = getattr(error, "strerror", None) or error
        raise SetupError(f"{path} can't be listened on: {reason}. Give another --uds.") from None
    try:
        with created:
            yield created
    finally:
        with suppress(OSError), _alone_in(place.parent):
            if _identity(place) == ours:  # (another server's may have taken its place)
                place.unlink()


def _created(place: Path, mode: int) -> tuple[socket.socket, tuple[int, int]]:
    """Return a socket that listens, and what identifies its file. Nobody can connect before the file has its mode."""
    created = socket.socket(socket.AF_UNIX)
    try:
        created.bind(str(place))
        ours = _identity(place)
        try:
            place.chmod(mode)
            created.listen(BACKLOG)
        except OSError:
            place.unlink()
            raise
    except OSError:
        created.close()
        raise
    return created, ours


def _remove_stale(place: Path) -> None:
    """Remove a socket that nobody listens on.

    Raises:
        SetupError: there is something else, or somebody listens.
    """
    try:
        found = place.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise SetupError(f"There is something else than a socket at {place}. Give another --uds, or remove it.")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(0)  # (whose queue is full would let us wait)
        try:
            probe.connect(str(place))
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                place.unlink()
                return
            if error.errno != errno.EAGAIN:
                raise
    raise SetupError(f"{place} has a server that listens already. Stop it, or give another --uds.")


def _identity(place: Path) -> tuple[int, int]:
    found = place.lstat()
    return found.st_dev, found.st_ino


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other servers of ours from starting or ending in the same folder meanwhile; no file is left for that."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_S)
        yield
    finally:
        os.close(descriptor)
