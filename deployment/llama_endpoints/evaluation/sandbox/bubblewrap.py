"""The command line that runs a program apart, with bubblewrap."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from llama_endpoints.evaluation.sandbox.limits import Limits
from llama_endpoints.evaluation.sandbox.seccomp import filter_program
from llama_serving.errors import SetupError

WORK: Final = "/work"
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
        may_fork: whether it may start processes. Only for compilers, which run nothing of what they compile.
    """

    command: Sequence[str]
    visible: Mapping[str, Path] = field(default_factory=dict)
    writable: Mapping[str, Path] = field(default_factory=dict)
    proc: bool = False
    address_space: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    may_fork: bool = False


def command_line(program: Program, limits: Limits, *, filter_fd: int | None) -> list[str]:
    """Return the command line that runs a program apart.

    Args:
        program: to run.
        limits: that hold for it.
        filter_fd: descriptor with the system call filter; None without one.
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
    """Return the filter for a program, if it has one."""
    return None if program.may_fork else filter_program()


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
    command = command_line(Program([_tool("true")], proc=True), Limits(), filter_fd=None)
    try:
        done = subprocess.run(  # noqa: S603  (our own words)
            command, capture_output=True, timeout=_PROBE_S, check=False, env={}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"--run-generated-code: bubblewrap does not run here: {error}.") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise SetupError(
            f"--run-generated-code: bubblewrap cannot make namespaces here ({said[-1] if said else done.returncode}). Allow user "
            "namespaces (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0; in a "
            "container --security-opt seccomp=unconfined), or score the samples on another machine with `evaluate score`."
        )
    if os.geteuid() == 0 and filter_program() is None:
        raise SetupError(
            "--run-generated-code: Linux does not count root's processes, and there is no system call filter here. Install it "
            "(pip install 'llama-endpoints[evaluate]'; apt-get install libseccomp2), or run as another user."
        )


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise SetupError(f"--run-generated-code needs {name}, which is not installed. {_INSTALL}.")
    return found
