"""What a server's processes hold, from /proc (Linux)."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class Held:
    """What all processes of a session hold together.

    Attributes:
        memory: bytes of anonymous memory, swapped out or not. Mapped files, such as weights, are not in it.
        threads: number of threads.
        descriptors: number of open file descriptors.
        processes: number of processes.
    """

    memory: int
    threads: int
    descriptors: int
    processes: int


def held(session: int) -> Held:
    """Return what the processes of a session hold. One that ends meanwhile does not count."""
    memory = threads = descriptors = processes = 0
    for folder in _members(session):
        with suppress(FileNotFoundError, ProcessLookupError):
            status = _status(folder)
            opened = sum(1 for _ in (folder / "fd").iterdir())
            memory += 1024 * (status.get("RssAnon", 0) + status.get("VmSwap", 0))
            threads += status["Threads"]
            descriptors += opened
            processes += 1
    return Held(memory, threads, descriptors, processes)


def _members(session: int) -> Iterator[Path]:
    for folder in PROC.iterdir():
        if folder.name.isdecimal():
            with suppress(FileNotFoundError, ProcessLookupError):
                # "pid (name) state ppid pgrp session …", and the name may have any character
                state, _, _, its_session = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:4]
                if int(its_session) == session and state != "Z":
                    yield folder


def _status(folder: Path) -> dict[str, int]:
    """Return the numbers of /proc/PID/status; memory in KiB."""
    lines = (line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    fields = {name: value.split() for name, value in lines}
    return {name: int(words[0]) for name, words in fields.items() if words and words[0].isdecimal()}
