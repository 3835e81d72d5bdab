"""Files that lie somewhere else: what is known of one, and its bytes as they come."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

PAUSES_S: Final = (1, 2, 4, 8, 16, 30, 30)
"""Between tries that brought not one byte; after as many it ends, to be gone on with later."""

Tell = Callable[[str], object]
_Answer = TypeVar("_Answer")


class BrokenOff(Exception):
    """A request that may well succeed when it is made again.

    Attributes:
        retry_after: seconds that the other side asks to wait, where it does.
    """

    def __init__(self, why: str, retry_after: float | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Reading:
    """The bytes of a file as they come, from `start` on: the other side may ignore where it was asked to begin."""

    start: int
    chunks: Iterator[bytes]


class RemoteFile(Protocol):
    """A file as the other side states it."""

    @property
    def name(self) -> str:
        """Its path in the folder, with `/` between the parts."""

    @property
    def size(self) -> int:
        """Its bytes."""

    @property
    def part(self) -> str:
        """The path of what is there of it while it comes in; another content's has another name."""

    @property
    def digest(self) -> str:
        """The checksum that is stated, in hexadecimal; empty where none is."""

    @property
    def stated(self) -> str:
        """The checksum in words."""

    def hasher(self) -> Any:
        """What the checksum is computed by, of hashlib."""


class Source(Protocol):
    """Where files come from."""

    @property
    def name(self) -> str:
        """Who it is, in a sentence."""

    def open(self, file: Any, start: int) -> AbstractContextManager[Reading]:
        """One file's bytes, from `start` on.

        Raises:
            SetupError: it may not be read, or is not there.
            BrokenOff: the connection failed, now or in the middle, or the other side asks for patience.
        """


def patiently(
    ask: Callable[[], _Answer], what: str, *, tell: Tell = lambda _: None, pauses: Sequence[float] = PAUSES_S
) -> _Answer:
    """The answer of `ask`, which is asked again after each of `pauses`; `tell` hears what is asked for, and why not.

    Raises:
        BrokenOff: of the last try.
    """
    for pause in pauses:
        try:
            return ask()
        except BrokenOff as error:
            seconds = max(pause, error.retry_after or 0)
            tell(f"{what}: {error}; trying again in {seconds:g} s.")
            time.sleep(seconds)
    return ask()
