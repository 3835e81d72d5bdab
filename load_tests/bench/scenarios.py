"""The engine by itself: its rate, reuse of a prompt's beginning, a long prompt among others, memory.

`python -m load_tests.bench.scenarios CHECKPOINT ROUNDS` prints all but memory as JSON. It needs torch, safetensors,
tokenizers and numpy, and nothing else: it runs on a bare GPU machine as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from llama_serving.contract.request import SamplingParams
from llama_serving.engine.batching.start import start
from load_tests.bench.measure import Sample, throughput

if TYPE_CHECKING:
    from llama_serving.engine.base import Engine, Handle

CLIENTS: Final = 16
PREFIX: Final = 1000
LONG: Final = 8000
DECODING: Final = 8
VOCAB: Final = 4000
ALONE: Final = "our engine alone"
COUNTS: Final = (1, 4, 16, 64)
"""Clients of the engine by itself."""
NEW_TOKENS: Final = 64


@dataclass(frozen=True, slots=True)
class Reuse:
    """Seconds to the first token of 16 clients whose prompts begin with the same 1,000 tokens, and of 16 whose don't."""

    shared: float
    separate: float

    @property
    def ratio(self) -> float:
        """Of the two."""
        return self.shared / self.separate


@dataclass(frozen=True, slots=True)
class Stall:
    """Gaps in seconds between two tokens of 8 sequences while a prompt of 8,000 tokens comes in among them."""

    median_before: float
    worst: float
    first_token: float

    @property
    def ratio(self) -> float:
        """The worst gap by the median before."""
        return self.worst / self.median_before


def ids(seed: int, count: int) -> list[int]:
    """Token ids that begin differently for each seed."""
    return [300 + (seed * 7919 + i * i * 31 + i) % (VOCAB - 300) for i in range(count)]


def rate(engine: Engine, clients: int, round_: int) -> Sample:
    """Tokens a second with so many clients, each with two requests."""

    def ask(prompt: str, new_tokens: int) -> int:
        numbered = ids(int(prompt.split(maxsplit=1)[0].removeprefix("n")), 30)
        handle = engine.submit(numbered, SamplingParams(max_new_tokens=new_tokens))
        return sum(1 for _ in handle)

    first = 100_000 + 1000 * round_ + clients
    return throughput(ALONE, ask, clients=clients, requests=2, new_tokens=NEW_TOKENS, first=first)


def reuse(engine: Engine, round_: int) -> Reuse:
    """The median over the clients of the time to the first token, with and without a common beginning."""
    common = ids(10_000 + round_, PREFIX)
    one = SamplingParams(max_new_tokens=1)
    _finish([engine.submit(common, one)])
    shared = _first_tokens(engine, [[*common, *ids(round_ * 100 + n, 10)] for n in range(CLIENTS)])
    separate = _first_tokens(engine, [ids(round_ * 100 + 50_000 + n, PREFIX + 10) for n in range(CLIENTS)])
    return Reuse(shared, separate)


def _first_tokens(engine: Engine, prompts: list[list[int]]) -> float:
    started = time.perf_counter()
    handles = [engine.submit(prompt, SamplingParams(max_new_tokens=1)) for prompt in prompts]
    times: list[float] = []

    def wait(handle: Handle) -> None:
        times.extend(time.perf_counter() - started for _ in handle)

    threads = [threading.Thread(target=wait, args=(handle,)) for handle in handles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return median(times)


def stall(engine: Engine, round_: int, *, long: int = LONG) -> Stall:
    """The gaps of eight sequences that generate, before a long prompt comes and while it is read."""
    params = SamplingParams(max_new_tokens=2000)
    handles = [engine.submit(ids(round_ * 100 + n, 30), params) for n in range(DECODING)]
    times: list[list[float]] = [[] for _ in handles]

    def collect(number: int) -> None:
        for _ in handles[number]:
            times[number].append(time.perf_counter())

    threads = [threading.Thread(target=collect, args=(number,)) for number in range(DECODING)]
    for thread in threads:
        thread.start()
    while min(map(len, times)) < 60:
        time.sleep(0.01)
    came = time.perf_counter()
    next(iter(engine.submit(ids(round_ + 70_000, long), SamplingParams(max_new_tokens=1))))
    read = time.perf_counter()
    for handle in handles:
        handle.cancel()
    for thread in threads:
        thread.join()
    before = [b - a for one in times for a, b in pairwise(one) if b < came]
    during = [b - a for one in times for a, b in pairwise(one) if b >= came and a <= read]
    return Stall(median(before), max(during), read - came)


def _finish(handles: list[Handle]) -> None:
    for handle in handles:
        for _ in handle:
            pass


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes: resident in a process that has the engine and has served, and in one that has only imported its libraries."""

    serving: int
    imported: int


def run(checkpoint: Path, rounds: int) -> dict[str, Any]:
    """Everything, as JSON values."""
    engine = start(checkpoint, dtype="bfloat16", context=9000, max_num_seqs=max(COUNTS))
    try:
        _finish([engine.submit(ids(1, 30), SamplingParams(max_new_tokens=4))])
        return {
            "alone": [asdict(rate(engine, count, number)) for number in range(rounds) for count in COUNTS],
            "reuse": [asdict(reuse(engine, number)) for number in range(rounds)],
            "stall": [asdict(stall(engine, number)) for number in range(rounds)],
        }
    finally:
        engine.close()


def memory(checkpoint: Path) -> Memory:
    """Both, each in a process of its own."""
    return Memory(*(int(_elsewhere(checkpoint, what)) for what in ("serve", "import")))


def elsewhere(checkpoint: Path, rounds: int) -> dict[str, Any]:
    """`run` in a process of its own."""
    result: dict[str, Any] = json.loads(_elsewhere(checkpoint, str(rounds)))
    return result


def _elsewhere(checkpoint: Path, what: str) -> str:
    command = [sys.executable, "-m", "load_tests.bench.scenarios", str(checkpoint), what]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    return done.stdout.splitlines()[-1]


def _resident(checkpoint: Path, what: str) -> int:
    if what == "serve":
        engine = start(checkpoint, dtype="bfloat16", context=2048)
        _finish([engine.submit(ids(n, 60), SamplingParams(max_new_tokens=8)) for n in range(CLIENTS)])
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


if __name__ == "__main__":
    folder, wanted = Path(sys.argv[1]), sys.argv[2]
    print(json.dumps(run(folder, int(wanted))) if wanted.isdigit() else _resident(folder, wanted))  # noqa: T201
