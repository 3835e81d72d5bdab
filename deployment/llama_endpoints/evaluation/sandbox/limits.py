"""Limits of one run."""

from dataclasses import dataclass, replace

MIB = 1 << 20
_LEAST = 16 * MIB
"""Of a process: shells and their tools need about half of it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one run of model-written code.

    Attributes:
        wall_s: seconds until its processes are killed.
        memory: bytes of a process, which is all of a program that starts no others; else see `divided`.
        processes: processes and threads. (Linux does not count those of root, to whom the system call filter allows
            threads alone.)
        file_size: bytes of a file.
        open_files: of a process.
        folder: bytes of the working folder.
        output: bytes of its output that are read; it is killed when there is more.
    """

    wall_s: float = 10.0
    memory: int = 1024 * MIB
    processes: int = 32
    file_size: int = 16 * MIB
    open_files: int = 64
    folder: int = 32 * MIB
    output: int = MIB

    @property
    def cpu_s(self) -> int:
        """Seconds of CPU time of a process: no less than the seconds that it may take."""
        return max(1, round(self.wall_s + 0.5))

    def divided(self) -> "Limits":
        """Return the limits of each process of a program that may start some: all together have no more memory than these."""
        share = max(_LEAST, self.memory // self.processes)
        return replace(self, memory=share, processes=max(1, self.memory // share))
