"""Unix sockets: one server each, nobody else's file touched, and none left behind."""

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
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
    except BlockingIOError:
        raise SetupError(
            f"{path} can't be listened on: another process holds a lock on the folder {place.parent}. Give the socket a folder of "
            "its own."
        ) from None
    except (OSError, ValueError) as error:  # (ValueError: it holds a NUL)
        reason = getattr(error, "strerror", None) or error
        raise SetupError(f"{path} can't be listened on: {reason}. Give another --uds.") from None
    try:
        with created:
            yield created
    finally:
        _remove(place, ours)


def _created(place: Path, mode: int) -> tuple[socket.socket, int]:
    """Return a socket that listens, and a descriptor of its file. Nobody can connect before the file has its mode."""
    created = socket.socket(socket.AF_UNIX)
    try:
        created.bind(str(place))
        try:
            ours = os.open(place, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            place.unlink()
            raise
        try:
            place.chmod(mode)
            created.listen(BACKLOG)
        except OSError:
            place.unlink()
            os.close(ours)
            raise
    except OSError:
        created.close()
        raise
    return created, ours


def _remove(place: Path, ours: int) -> None:
    """Remove the file that the descriptor `ours` is of, unless another has taken its place; close the descriptor.

    A held lock does not keep it: at the end nobody could tell its holder.
    """
    with ExitStack() as held:
        held.callback(os.close, ours)
        with suppress(OSError):
            held.enter_context(_alone_in(place.parent))
        with suppress(OSError):
            # While the descriptor is open, no new file gets the number of this one; a file system may reuse a number at once.
            if os.path.samestat(place.lstat(), os.fstat(ours)):
                place.unlink()


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


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other servers of ours from starting or ending in the same folder meanwhile; no file is left for that.

    Raises:
        BlockingIOError: somebody holds the folder's lock for longer than `LOCK_S`.
    """
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
