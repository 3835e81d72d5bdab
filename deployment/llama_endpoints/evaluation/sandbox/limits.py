"""Limits of one run."""

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one run of model-written code.

    Attributes:
        wall_s: seconds until its processes are killed.
        memory: bytes of a process.
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
