"""Disturb a command at every call that changes its folder, give it again, and compare.

A disturbed command may be killed or fail, but must leave each file of its result whole or not there. The same command, given
again, must then end well, and leave exactly the bytes of an undisturbed one, and no other file.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
import signal
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from load_tests.reliability.chaos.jobs import Job
    from load_tests.reliability.chaos.starter import Ended, Starter

FAULTS: Final = ("kill", "torn", "enospc", "eio")
KILLED: Final = -signal.SIGKILL


@dataclass(frozen=True, slots=True)
class Outcome:
    """A fault at one call.

    Attributes:
        at: the number of the call, from 1.
        call: its name and the path of its file, inside of the folder.
        fault: the fault.
        code: exit code of the disturbed command.
        wrong: what was not as promised.
    """

    at: int
    call: str
    fault: str
    code: int
    wrong: tuple[str, ...]


class Boundaries:
    """A job, its calls and its result.

    Args:
        job: the job.
        starter: starts it.
        folder: an empty folder to work in.
    """

    def __init__(self, job: Job, starter: Starter, folder: Path) -> None:
        self._job, self._starter, self._folder = job, starter, folder
        self._given, self._changed = folder / "given", folder / "changed"
        self._given.mkdir()
        job.prepare(self._given)
        self._empty()
        ended = self._run({})
        if ended.code:
            raise RuntimeError(f"The undisturbed command ended with exit code {ended.code}: {ended.said}")
        self.calls = self._counted()
        self._expected = self._files()

    def each(self, faults: Sequence[str] = FAULTS) -> Iterator[Outcome]:
        """Yield the outcome of each fault at each call, until a run ends before it reaches one."""
        for fault in faults:
            # (the number of calls may differ from run to run, by when the job syncs)
            outcomes = (self.disturb(at, fault) for at in itertools.count(1))
            yield from itertools.takewhile(lambda outcome: outcome is not None, outcomes)

    def disturb(self, at: int, fault: str, call: str = "") -> Outcome | None:
        """Return the outcome of a fault at one call; None if the job has fewer calls.

        Args:
            at: its number, from 1.
            fault: one of `FAULTS`.
            call: one of `calls`, if only such are to be numbered.
        """
        self._empty()
        name, _, path = call.partition(" ")
        only = f"{name} {self._changed / path}" if call else ""
        ended = self._run({"FAULTS_AT": str(at), "FAULTS_KIND": fault, "FAULTS_CALL": only})
        calls = [made for made in self._counted() if call in ("", made)]
        if len(calls) < at:
            return None
        wrong = [*self._of_the_end(ended, fault), *self._half_written(ended)]
        again = self._run({})
        if again.code:
            wrong.append(
                f"the same command then ended with exit code {again.code}: {again.said.strip()[-300:]}"
            )
        wrong.extend(self._differences())
        return Outcome(at, calls[at - 1], fault, ended.code, tuple(wrong))

    def _of_the_end(self, ended: Ended, fault: str) -> Iterator[str]:
        if fault in ("kill", "torn"):
            if ended.code != KILLED:
                yield f"not killed, but ended with exit code {ended.code}"
        elif ended.code not in (0, 1, 2):
            yield f"ended with exit code {ended.code}"
        elif "Traceback" in ended.said:
            yield f"ended with a traceback: {ended.said.strip()[-300:]}"

    def _half_written(self, ended: Ended) -> Iterator[str]:
        """Whatever has the name of a result is whole; all of it, if the command said that it is done."""
        files = self._files()
        for name, digest in self._expected.items():
            if name not in files and not ended.code:
                yield f"{name} is missing after exit code 0"
            if name in files and files[name] != digest:
                yield f"{name} was left half-written"

    def _differences(self) -> Iterator[str]:
        files = self._files()
        for name in sorted({*files, *self._expected}):
            if name not in files:
                yield f"{name} is lost"
            elif name not in self._expected:
                yield f"{name} is left behind"
            elif files[name] != self._expected[name]:
                yield f"{name} is not that of an undisturbed run"

    def _run(self, faults: Mapping[str, str]) -> Ended:
        self._log.unlink(missing_ok=True)
        armed = {
            "FAULTS_FOLDER": str(self._changed),
            "FAULTS_LOG": str(self._log),
            "FAULTS_AT": "0",
            "FAULTS_CALL": "",
            "FAULTS_KIND": "",
            **faults,
        }
        return self._starter.run(
            self._job.arguments(self._given, self._changed), armed, self._folder / "said.txt"
        )

    @property
    def _log(self) -> Path:
        return self._folder / "calls.txt"

    def _counted(self) -> list[str]:
        """Return the calls of the last run, as `name path`; the folder itself is `.`."""
        if not self._log.exists():
            return []
        lines = (line.split(" ", 1) for line in self._log.read_text(encoding="utf-8").splitlines())
        return [f"{call} {path.removeprefix(str(self._changed)).lstrip('/') or '.'}" for call, path in lines]

    def _empty(self) -> None:
        shutil.rmtree(self._changed, ignore_errors=True)
        self._changed.mkdir()

    def _files(self) -> dict[str, str]:
        """Return the digest of each file, without what differs from run to run."""
        return {
            str(path.relative_to(self._changed)): hashlib.sha256(
                self._job.lasting(path.read_bytes())
            ).hexdigest()
            for path in sorted(self._changed.rglob("*"))
            if path.is_file()
        }


def told(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the outcomes as JSON."""
    return {
        "disturbed": len(outcomes),
        "by_fault": {fault: sum(one.fault == fault for one in outcomes) for fault in FAULTS},
        "wrong": [asdict(one) for one in outcomes if one.wrong],
        "boundaries": [f"{one.fault} at {one.at}: {one.call} -> {one.code}" for one in outcomes],
    }
