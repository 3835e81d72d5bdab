"""`make batch-torture`: a batch job that is killed repeatedly must write the same bytes as an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from tqdm import tqdm

from llama_endpoints.devtools.servers import console_script, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT: Final = Path(__file__).resolve().parents[1]
SEED: Final = 20
BAD: Final = 100
"""One row in this many is bad."""
SMALL: Final = (1000, 10_000)
"""Row counts of the small jobs, for comparing memory."""
CACHE: Final = "24MiB"
"""The KV cache's size: filled within the first few thousand rows, so later growth is the job's."""
GROWTH: Final = 1.1
"""The largest allowed ratio of the large job's memory to the largest small one's; half a kilobyte per row would exceed it. By
10,000 rows everything bounded is full: the cache's pages, the tokenizer's word cache, two windows of rows."""
LOOK_S: Final = 0.02


class TortureError(Exception):
    """The job broke a promise."""


@dataclass(frozen=True, slots=True)
class Run:
    """One process of the command, or several for one output.

    Attributes:
        seconds: their total time.
        peak_mib: peak resident memory of any of them.
        kills: how many of them were killed.
    """

    seconds: float
    peak_mib: float
    kills: int = 0


def lines(number: int) -> Iterator[tuple[bytes, bool]]:
    """Yield rows, and whether each is good; one in `BAD` is bad, in various ways."""
    rng = random.Random(SEED)  # noqa: S311
    bad = set(rng.sample(range(number), number // BAD))
    for n in range(number):
        prompt = f"def {rng.choice(('area', 'sort', 'mean', 'push'))}_{n}("
        sampling: dict[str, object] = {"temperature": 0} if n % 2 else {"seed": n, "temperature": 0.8}
        row = {"id": n, "prompt": prompt, "max_tokens": rng.randint(1, 8), **sampling}
        if n not in bad:
            yield json.dumps(row).encode(), True
            continue
        yield (
            rng.choice((
                b'{"id": 1, "prompt": "torn',
                json.dumps({**row, "top_p": 7}).encode(),
                json.dumps({"id": n}).encode(),
                b"\xff\xfe",
                json.dumps({**row, "max_tokens": 0}).encode(),
                json.dumps({**row, "prompt": "x = 1\n" * 4000}).encode(),  # longer than the context
            )),
            False,
        )  # fmt: skip


def write(path: Path, number: int) -> set[int]:
    """Write a file of rows, and return the numbers of the bad lines."""
    bad = set()
    with path.open("wb") as file:
        for at, (row, good) in enumerate(lines(number), start=1):
            file.write(row + b"\n")
            if not good:
                bad.add(at)
    return bad


def undisturbed(rows: Path, output: Path) -> Run:
    """Run the job without interruption."""
    return _until_it_ends(_started(rows, output), lambda: False)


def killed(  # noqa: PLR0913  (all but three named)
    rows: Path,
    output: Path,
    kills: int,
    *,
    start_s: float,
    share: float = 0.97,
    told: Callable[[int], object] = lambda _: None,
) -> Run:
    """Run the job, kill it at random moments, and restart it each time.

    Args:
        rows: the input.
        output: the command's output.
        kills: number of kills: a quarter during the start, the others at a number of finished rows.
        start_s: the least seconds that a start takes.
        share: the share of rows that may be done at the last kill; a finished job cannot be killed.
        told: called with the number of kills so far.

    Raises:
        TortureError: it exited in another way, or finished too early.
    """
    rng = random.Random(SEED)  # noqa: S311
    with rows.open("rb") as file:
        number = sum(1 for _ in file)
    starts: list[float | None] = [rng.uniform(0, start_s) for _ in range(kills // 4)]
    moments = sorted(rng.uniform(0, share * number) for _ in range(kills - len(starts)))
    runs = []
    for seconds, done in (*((seconds, 0) for seconds in starts), *((None, int(moment)) for moment in moments)):
        runs.append(_killed_once(rows, output, seconds, done))
        told(len(runs))
    runs.append(undisturbed(rows, output))
    times = sum(run.kills for run in runs)
    if times != kills:
        raise TortureError(f"it was killed {times} times, and not {kills}")
    return Run(sum(run.seconds for run in runs), max(run.peak_mib for run in runs), times)


def check(output: Path, expected: Path, number: int, bad: set[int]) -> None:
    """Check one record per row, in order; errors for exactly the bad rows; the same bytes as the undisturbed run.

    Raises:
        TortureError: a check failed.
    """
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    times = Counter(record["line"] for record in records)
    twice, lost = [line for line, n in times.items() if n > 1], set(range(1, number + 1)) - times.keys()
    failed = {record["line"] for record in records if record["error"] is not None}
    faults = {
        "twice": len(twice), "lost": len(lost), "in another place": [record["line"] for record in records] != sorted(times),
        "failed, and good": len(failed - bad), "done, and bad": len(bad - failed),
        "another text than undisturbed": output.read_bytes() != expected.read_bytes(),
        "left behind": len([path for path in output.parent.iterdir() if path.name.startswith(".") or path.suffix == ".journal"]),
    }  # fmt: skip
    if any(faults.values()):
        raise TortureError(", ".join(f"{name}: {value}" for name, value in faults.items() if value))


def check_memory(few: Run, many: Run) -> None:
    """Check that more rows take no more memory, once everything bounded is full.

    Raises:
        TortureError: they do.
    """
    if many.peak_mib > GROWTH * few.peak_mib:
        raise TortureError(f"memory grew with the rows, from {few.peak_mib:.0f} to {many.peak_mib:.0f} MiB")


def _started(rows: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [console_script("llama-endpoints"), "batch", "--model", "nano", "--input", str(rows), "--output", str(output),
               "--dtype", "float32", "--engine", "batching"]  # fmt: skip
    # This shell's settings must not affect the result.
    mine = {name: value for name, value in environment({}).items() if not name.startswith("LLAMA_")}
    mine["LLAMA_KV_MEMORY"] = CACHE
    return subprocess.Popen(command, env=mine, stderr=subprocess.PIPE)  # noqa: S603


def _killed_once(rows: Path, output: Path, seconds: float | None, done: int) -> Run:
    """Run the job, and kill it after some seconds, or at a number of rows in the journal."""
    process, began, journal = _started(rows, output), time.monotonic(), Journal(output)

    def now() -> bool:
        return time.monotonic() - began > seconds if seconds is not None else journal.rows() > done

    return _until_it_ends(process, now)


class Journal:
    """Counts the rows of a journal, reading only what is new."""

    def __init__(self, output: Path) -> None:
        self._path = output.with_name(f"{output.name}.journal")
        self._lines = self._read = 0

    def rows(self) -> int:
        """Return the rows so far, plus one for the head."""
        if not self._path.exists():
            return 0
        with self._path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._read:  # a torn end was cut off
                self._lines = self._read = 0
            file.seek(self._read)
            for piece in iter(lambda: file.read(1 << 20), b""):
                self._lines += piece.count(b"\n")
                self._read += len(piece)
        return self._lines


def _until_it_ends(process: subprocess.Popen[bytes], kill: Callable[[], bool]) -> Run:
    began, kills, status = time.monotonic(), 0, 0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        if not kills and kill():
            process.kill()
            kills = 1
        time.sleep(LOOK_S)
    process.returncode = os.waitstatus_to_exitcode(status)
    _, said = process.communicate()
    if process.returncode != (-signal.SIGKILL if kills else 0):
        raise TortureError(f"exit code {process.returncode}: {said.decode(errors='replace')[-2000:]}")
    return Run(time.monotonic() - began, usage.ru_maxrss / 1024, kills)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--rows",
    "number",
    type=click.IntRange(1),
    default=100_000,
    show_default=True,
    help="Short rows; 1 % are bad.",
)
@click.option(
    "--kills", type=click.IntRange(0), default=20, show_default=True, help="SIGKILLs, at random moments."
)
@click.option("--output", type=click.Path(path_type=Path), default=ROOT / "build" / "torture", show_default=False,
              help="Folder, made anew; default: build/torture.")  # fmt: skip
def main(*, number: int, kills: int, output: Path) -> None:
    """Score rows with nano: a few, all, and all with kills; compare, and print figures as JSON.

    Exit code 1 if a row was lost or done twice, if errors are others than the bad rows, if any byte differs, or if
    memory grows with the rows.
    """
    rows, killing = output / "rows.jsonl", output / "killed" / "out.jsonl"
    if output.exists() and any(output.iterdir()) and not rows.is_file():
        raise click.UsageError(f"{output} has other files. Give an --output of its own, which is made anew.")
    shutil.rmtree(output, ignore_errors=True)
    killing.parent.mkdir(parents=True)
    bad = write(rows, number)
    runs: dict[str, Run] = {}
    try:
        with tqdm(total=1 + len(SMALL) + kills, desc="runs", file=sys.stderr) as bar:
            for few in SMALL:
                write(output / "few.jsonl", few)
                runs[f"{few} rows"] = undisturbed(output / "few.jsonl", output / f"few-{few}.jsonl")
                bar.update()
            runs["undisturbed"] = undisturbed(rows, output / "expected.jsonl")
            bar.update()
            start_s = runs[f"{SMALL[0]} rows"].seconds / 2
            runs["killed"] = killed(rows, killing, kills, start_s=start_s, told=lambda _: bar.update())
        check(killing, output / "expected.jsonl", number, bad)
        if number > SMALL[-1]:
            check_memory(runs[f"{SMALL[-1]} rows"], runs["undisturbed"])
    except TortureError as error:
        click.echo(f"Not as promised: {error}", err=True)
        raise SystemExit(1) from None
    told = {name: asdict(run) for name, run in runs.items()}
    click.echo(json.dumps({"rows": number, "bad": len(bad), **told}, indent=2))


if __name__ == "__main__":
    main()
