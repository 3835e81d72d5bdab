"""Measure how much an engine slows down beside busy processes, compared with its fair share of the CPUs.

`python -m load_tests.bench.busy CHECKPOINT` runs an engine, and prints its rate for each number of clients it reads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO, TYPE_CHECKING, Final, cast

from llama_serving.engine.batching.factory import start
from llama_serving.settings import Settings
from load_tests.bench.measure import NO_GUESSES
from load_tests.bench.scenarios import rate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT: Final = Path(__file__).resolve().parents[2]
OTHERS: Final = 2
"""Other processes, each of which keeps a CPU busy."""
CLIENTS: Final = (1, 16)
SPINNING: Final[Mapping[str, str]] = {"GOMP_SPINCOUNT": "300000"}
"""What libgomp does by itself, said so that the engine leaves it alone."""


@dataclass(frozen=True, slots=True)
class Busy:
    """Tokens a second in one round.

    Attributes:
        quiet: on an otherwise idle machine.
        spinning: the same, with threads that always spin.
        beside: beside `OTHERS` processes.
    """

    clients: int
    quiet: float
    spinning: float
    beside: float

    @property
    def times_fair_share(self) -> float:
        """The slowdown relative to its fair share: 1 is fair."""
        return self.quiet / self.beside / fair_slowdown(len(os.sched_getaffinity(0)))


def fair_slowdown(cpus: int, others: int = OTHERS) -> float:
    """Of a process with a thread for each CPU, where the CPUs are shared evenly among all threads."""
    return (cpus + others) / cpus


def measure(checkpoint: Path, rounds: int) -> list[Busy]:
    """Run some rounds with each number of clients; engines and conditions alternate."""
    found = []
    with _engine(checkpoint, {}) as ours, _engine(checkpoint, SPINNING) as spins:
        for number, clients in enumerate(CLIENTS * rounds):
            if number // len(CLIENTS) % 2:  # each comes first in half of the rounds
                spinning, quiet = _ask(spins, clients), _ask(ours, clients)
            else:
                quiet, spinning = _ask(ours, clients), _ask(spins, clients)
            with _others():
                beside = _ask(ours, clients)
            found.append(Busy(clients, quiet, spinning, beside))
    return found


def told(found: list[Busy]) -> list[str]:
    """Return a sentence for each number of clients."""
    lines = []
    for clients in CLIENTS:
        mine = [one for one in found if one.clients == clients]
        fair = median(one.times_fair_share for one in mine)
        kept = median(one.quiet / one.spinning for one in mine)
        lines.append(
            f"beside {OTHERS} busy processes, {clients} clients: {fair:.2f} times as slow as the fair share; "
            f"alone {kept:.2f} of threads that always spin"
        )
    return lines


@contextmanager
def _engine(checkpoint: Path, env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    chosen = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    inherited = {name: text for name, text in os.environ.items() if name not in chosen}
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "load_tests.bench.busy", str(checkpoint)], env={**inherited, **env}, cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()


def _ask(process: subprocess.Popen[str], clients: int) -> float:
    """Return the engine's rate; it answers twice, so that it has noticed the other processes."""
    questions, answers = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)  # (both are pipes)
    for _ in range(2):
        questions.write(f"{clients}\n")
        questions.flush()
        answer = answers.readline()
        if not answer:
            raise RuntimeError("the engine ended")
    return float(answer)


@contextmanager
def _others() -> Iterator[None]:
    command = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range(OTHERS)]  # noqa: S603
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def _serve(checkpoint: Path) -> None:
    engine = start(checkpoint, dtype="bfloat16", context=512, settings=Settings(speculative_tokens=NO_GUESSES))
    for number, line in enumerate(sys.stdin):
        print(rate(engine, int(line), number).rate, flush=True)  # noqa: T201
    engine.close()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
