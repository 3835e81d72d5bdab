"""The control groups of this process: the memory and CPU limits of its container."""

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
        folder: of its files.
        version: of the interface, 1 or 2; the files' names depend on it.
    """

    folder: Path
    version: int

    def read(self, name: str) -> str:
        """Return the content of one of its files.

        Raises:
            OSError: the file is missing or cannot be read.
        """
        return (self.folder / name).read_text(encoding="ascii").strip()


def groups(controller: str, root: Path = Path("/")) -> Iterator[Group]:
    """Yield this process's groups for a controller, from its own up to the root; each of their limits applies.

    A container may see its own group as the root, under a path that is not visible to it. The folders of that path are
    then missing, and the root has the limit.

    Args:
        controller: `memory` or `cpu`.
        root: of the file system.
    """
    with suppress(OSError):
        for line in (root / OWN).read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            # Version 1 has one tree for each controller, version 2 one for all of them.
            top, version = (root / MOUNT / controller, 1) if controllers else (root / MOUNT, UNIFIED)
            own = top / path.lstrip("/")
            for folder in (own, *own.parents):
                if folder.is_relative_to(top):
                    yield Group(folder, version)
