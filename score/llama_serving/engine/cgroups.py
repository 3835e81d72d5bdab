"""The control groups that this process is in: what a container may have of the machine."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MOUNT: Final = Path("sys/fs/cgroup")
OWN: Final = Path("proc/self/cgroup")
UNIFIED: Final = 2


@dataclass(frozen=True, slots=True)
class Group:
    """One control group.

    Attributes:
        folder: where its files are.
        version: of the interface, 1 or 2; the files' names depend on it.
    """

    folder: Path
    version: int

    def read(self, name: str) -> str:
        """What one of its files says.

        Raises:
            OSError: it has no such file, or the file can't be read.
        """
        return (self.folder / name).read_text(encoding="ascii").strip()


def groups(controller: str, root: Path = Path("/")) -> Iterator[Group]:
    """The groups of this process that a controller limits, from its own up to the root's: each of their limits holds.

    A container may see its own group as the root, under a path that it can't see: its folders are then missing, and the
    root's has the limit.

    Args:
        controller: `memory` or `cpu`.
        root: of the file system.
    """
    with suppress(OSError):
        for line in (root / OWN).read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            # Version 1 has one tree for each controller, version 2 one for all.
            top, version = (root / MOUNT / controller, 1) if controllers else (root / MOUNT, UNIFIED)
            own = top / path.lstrip("/")
            for folder in (own, *own.parents):
                if folder.is_relative_to(top):
                    yield Group(folder, version)
