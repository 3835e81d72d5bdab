"""The command line that runs a program apart, with bubblewrap."""

import functools
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from llama_endpoints.evaluation.sandbox.limits import Limits
from llama_endpoints.evaluation.sandbox.seccomp import filter_program
from llama_serving.errors import SetupError

WORK: Final = "/scratch"
"""The working folder: empty, in memory."""
_SYSTEM: Final = ("/lib", "/lib64", "/lib32", "/bin", "/sbin")
_NOBODY: Final = "65534"
_PROBE_S: Final = 20
_INSTALL: Final = "On Debian and Ubuntu: apt-get install bubblewrap util-linux"


@dataclass(frozen=True, slots=True)
class Program:
    """A program to run apart.

    Attributes:
        command: its command line; paths are those inside.
        visible: folders and files that it can read, by their paths inside. `/usr` and the libraries always are.
        writable: one folder of the machine, by its path inside.
        proc: whether it needs `/proc`, which then has its own processes alone.
        address_space: whether its memory is limited as address space; else as data, for runtimes that reserve much more
            than they use.
        environment: its variables; none for what the model wrote.
        processes: whether it may start processes; else threads alone.
    """

    command: Sequence[str]
    visible: Mapping[str, Path] = field(default_factory=dict)
    writable: Mapping[str, Path] = field(default_factory=dict)
    proc: bool = False
    address_space: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    processes: bool = False


def command_line(
    program: Program, limits: Limits, *, filter_fd: int | None, status_fd: int | None = None
) -> list[str]:
    """Return the command line that runs a program apart.

    Args:
        program: to run.
        limits: that hold for it.
        filter_fd: descriptor with the system call filter; None without one.
        status_fd: descriptor for bubblewrap's own messages; None for no messages.
    """
    return [
        _tool("bwrap"),
        *("--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"),
        *("--uid", _NOBODY, "--gid", _NOBODY, "--hostname", "sandbox"),
        *(word for pair in program.environment.items() for word in ("--setenv", *pair)),
        *_root(program),
        *("--size", str(limits.folder), "--tmpfs", WORK, "--chdir", WORK, "--symlink", WORK[1:], "/tmp"),  # noqa: S108
        *("--remount-ro", "/"),
        *(() if filter_fd is None else ("--seccomp", str(filter_fd))),
        *(() if status_fd is None else ("--json-status-fd", str(status_fd))),
        *("--", _tool("prlimit"), *_limits(program, limits)),
        *program.command,
    ]  # fmt: skip


def _root(program: Program) -> list[str]:
    words = ["--ro-bind", "/usr", "/usr"]
    for name in _SYSTEM:
        path = Path(name)
        if path.is_symlink():
            words += ["--symlink", str(path.readlink()), name]
        elif path.is_dir():
            words += ["--ro-bind", name, name]
    words += ["--dev", "/dev", "--remount-ro", "/dev"]
    words += ["--proc", "/proc"] if program.proc else []
    for inside, path in program.visible.items():
        words += ["--ro-bind", str(path), inside]
    for inside, path in program.writable.items():
        words += ["--bind", str(path), inside]
    return words


def _limits(program: Program, limits: Limits) -> list[str]:
    memory = "--as" if program.address_space else "--data"
    return [
        f"{memory}={limits.memory}",
        f"--cpu={limits.cpu_s}",
        f"--nproc={limits.processes}",
        f"--fsize={limits.file_size}",
        f"--nofile={limits.open_files}",
        "--core=0",
        "--memlock=0",
        "--msgqueue=0",
        "--",
    ]


def system_call_filter(program: Program) -> bytes | None:
    """Return the filter for a program; None where there is no libseccomp."""
    return filter_program(processes=program.processes)


def nobody(program: Program) -> int | None:
    """Return the user that root starts a program as, since Linux does not count root's processes; None for the present user.

    A program that writes into a folder of ours, or that lies where others may not look, is started as root, too. So is every
    program where root alone can make namespaces.
    """
    if os.geteuid() != 0 or program.writable or not all(map(_open_to_all, program.visible.values())):
        return None
    return int(_NOBODY) if _nobody_has_namespaces() else None


def counted(program: Program) -> bool:
    """Return whether Linux counts a program's processes, so that their limit holds."""
    return os.geteuid() != 0 or nobody(program) is not None


def _open_to_all(path: Path) -> bool:
    return all(one.stat().st_mode & stat.S_IXOTH for one in path.resolve().parents)


@functools.cache
def require() -> None:
    """Check that programs can be run apart here.

    Raises:
        SetupError: they cannot; the message says what to install.
    """
    if sys.platform != "linux":
        raise SetupError("--run-generated-code needs Linux's namespaces. Score the samples on a Linux machine.")
    for name in ("bwrap", "prlimit"):
        _tool(name)
    done = _probe(None)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise SetupError(
            f"--run-generated-code: bubblewrap cannot make namespaces here ({said[-1] if said else done.returncode}). Allow user "
            "namespaces (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0; in a "
            "container --security-opt seccomp=unconfined), or score the samples on another machine with `evaluate score`."
        )
    if filter_program() is None:
        raise SetupError(
            "--run-generated-code: there is no system call filter here, so a program could start processes, each with as much "
            "memory as a sample may have. Install it: pip install 'llama-endpoints[evaluate]'; apt-get install libseccomp2."
        )


def _probe(user: int | None) -> "subprocess.CompletedProcess[bytes]":
    """Run a program that does nothing, as a user.

    Raises:
        SetupError: bubblewrap does not run.
    """
    command = command_line(Program([_tool("true")], proc=True), Limits(), filter_fd=None)
    groups = None if user is None else list[int]()
    try:
        return subprocess.run(  # noqa: S603  (our own words)
            command,
            capture_output=True,
            timeout=_PROBE_S,
            check=False,
            env={},
            cwd="/",
            user=user,
            group=user,
            extra_groups=groups,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SetupError(f"--run-generated-code: bubblewrap does not run here: {error}.") from error


@functools.cache
def _nobody_has_namespaces() -> bool:
    try:
        return _probe(int(_NOBODY)).returncode == 0
    except SetupError:
        return False


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise SetupError(f"--run-generated-code needs {name}, which is not installed. {_INSTALL}.")
    return found
