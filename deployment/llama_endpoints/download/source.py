"""Interfaces of remote files and where they come from, and retries."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

PAUSES_S: Final = (1, 2, 4, 8, 16, 30, 30)
"""Pauses between tries that brought no data. After the last one the command ends and can be resumed."""

Tell = Callable[[str], object]
_Answer = TypeVar("_Answer")


class BrokenOff(Exception):
    """A request failed that may succeed later.

    Attributes:
        retry_after: seconds the server asks to wait, if it says so.
    """

    def __init__(self, why: str, retry_after: float | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Reading:
    """A file's bytes as they arrive, from `start` on. A server without ranges may start at 0."""

    start: int
    chunks: Iterator[bytes]


class RemoteFile(Protocol):
    """A file as its source lists it."""

    @property
    def name(self) -> str:
        """Its path in the folder, with `/` between the parts."""

    @property
    def size(self) -> int:
        """Its size in bytes."""

    @property
    def part(self) -> str:
        """The path of the partial file while it is downloaded; it depends on the content."""

    @property
    def digest(self) -> str:
        """The expected checksum, in hexadecimal; empty if there is none."""

    @property
    def stated(self) -> str:
        """The checksum in words."""

    def hasher(self) -> Any:
        """Return a hashlib object for the checksum."""


class FileSource(Protocol):
    """Where files come from."""

    @property
    def name(self) -> str:
        """The source's name, for messages."""

    def open(self, file: Any, start: int) -> AbstractContextManager[Reading]:
        """Open a file's bytes from `start` on.

        Raises:
            SetupError: it cannot be read, or does not exist.
            BrokenOff: the connection failed, or the server asks to retry later.
        """


def patiently(
    ask: Callable[[], _Answer], what: str, *, tell: Tell = lambda _: None, pauses: Sequence[float] = PAUSES_S
) -> _Answer:
    """Return the result of `ask`, retried after each of `pauses`. `tell` gets each failure.

    Raises:
        BrokenOff: the last try failed.
    """
    for pause in pauses:
        try:
            return ask()
        except BrokenOff as error:
            seconds = max(pause, error.retry_after or 0)
            tell(f"{what}: {error}; retrying in {seconds:g} s.")
            time.sleep(seconds)
    return ask()
