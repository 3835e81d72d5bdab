"""A process between ours and vLLM, which stops vLLM and all its workers when ours ends, however it ends.

    python -I keeper.py PARENT_PID FOLDER GRACE_S COMMAND...

Standard library only: it is run by path. It leads the session of vLLM's processes. Its standard input is a pipe that only
the parent writes to: a byte requests an orderly shutdown, and the end of the pipe without one means that the parent has died.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

PARENT_EVERY_MS: Final = 1000
"""How often to check the parent, in case another process still holds the pipe's end."""
LAST_S: Final = 10.0
TRACKER_S: Final = 3.0
TRACKER: Final = b"resource_tracker"
"""Python's own helper, which removes the shared memory of killed processes and then exits."""
ORDERLY: Final = b"e"
"""Requests an orderly shutdown. Anything else, and the end of the pipe, means an immediate one."""
_PR_SET_PDEATHSIG: Final = 1


def main(words: list[str]) -> int:
    """Run vLLM; return its exit code, or 128 plus the signal's number."""
    parent, folder, grace_s, command = int(words[0]), words[1], float(words[2]), words[3:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        libc.prctl(
            _PR_SET_PDEATHSIG, signal.SIGKILL
        )  # (this process has one thread, which lives as long as the process)

    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=prepare)  # noqa: PLW1509, S603
    except OSError as error:
        print(f"{command[0]} can't be started: {error.strerror}", flush=True)  # noqa: T201
        return 127
    orderly = _wait(child, parent)
    if child.poll() is None and orderly:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(grace_s)
    end_session(os.getpid())
    code = child.wait()
    if os.getppid() != parent:
        shutil.rmtree(folder, ignore_errors=True)
    return code if code >= 0 else 128 - code


def _wait(child: subprocess.Popen[bytes], parent: int) -> bool:
    """Return when the child has ended or must be stopped; True if that should be orderly."""
    ended = os.pidfd_open(child.pid)
    poller = select.poll()
    poller.register(ended, select.POLLIN)
    poller.register(0, select.POLLIN)
    try:
        while os.getppid() == parent:
            ready = {descriptor for descriptor, _ in poller.poll(PARENT_EVERY_MS)}
            if ended in ready:
                return True
            if 0 in ready:
                return os.read(0, 1) == ORDERLY
        return False
    finally:
        os.close(ended)


def end_session(leader: int) -> None:
    """Kill every process of a session but its leader; return when they have ended.

    The caller is the leader, or has not waited for it yet, so that its number has not been reused.
    """
    deadline, trackers_until = time.monotonic() + LAST_S, time.monotonic() + TRACKER_S
    while time.monotonic() < deadline:
        found = list(_session(leader))
        if not found:
            return
        for pid in found:
            if time.monotonic() > trackers_until or TRACKER not in _read(pid, "cmdline"):
                _kill(pid, leader)
        time.sleep(0.02)


def _session(leader: int) -> Iterator[int]:
    """Yield the living processes of a session."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != leader and _belongs(int(entry.name), leader):
            yield int(entry.name)


def _belongs(pid: int, leader: int) -> bool:
    # "pid (name) state ppid pgrp session ..."; a name may have spaces and parentheses.
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return len(fields) > 3 and int(fields[3]) == leader and fields[0] not in (b"Z", b"X")


def _kill(pid: int, leader: int) -> None:
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            if _belongs(pid, leader):  # (the number may have been reused before it was opened, but not since)
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


def _read(pid: int, name: str) -> bytes:
    with suppress(OSError):  # the process has ended
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
