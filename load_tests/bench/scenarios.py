"""The engine by itself: its rate, at several lengths too, reuse of a prompt's beginning, a long prompt among others, memory.

`python -m load_tests.bench.scenarios CHECKPOINT ROUNDS [BACKEND]` prints all but memory as JSON. It needs torch,
safetensors, tokenizers and numpy, and nothing else: it runs on a bare GPU machine as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from llama_serving.engine.batching.factory import start
from llama_serving.engine.batching.native import cpu
from llama_serving.sampling_params import SamplingParams
from llama_serving.settings import Settings
from load_tests.bench.measure import NO_GUESSES, Sample, throughput

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llama_serving.engine.base import Engine
    from llama_serving.engine.handle import Handle

CLIENTS: Final = 16
PREFIX: Final = 1000
LONG: Final = 8000
DECODING: Final = 8
VOCAB: Final = 4000
ALONE: Final = "our engine alone"
COUNTS: Final = (1, 4, 16, 64)
"""Clients of the engine by itself."""
NEW_TOKENS: Final = 64
STEPS: Final = 32
"""Tokens of each sequence in which a rate at some length is measured."""
CONTEXTS: Final = (100, 1000, 8000)
BACKENDS: Final = {
    "portable": ("portable", "none", "auto"),
    "auto": ("auto", "none", "auto"),
    "native": ("native", "none", "auto"),
    "native int8": ("native", "int8", "auto"),
    "native int4": ("native", "int4", "auto"),
    **{f"native {one.name}": ("native", "none", one.name) for one in cpu.of_machine()},
    **{f"native int8 {one.name}": ("native", "int8", one.name) for one in cpu.of_machine()},
    **{f"native int4 {one.name}": ("native", "int4", one.name) for one in cpu.of_machine()},
}
"""The name in the table: LLAMA_BACKEND, LLAMA_QUANTIZATION and LLAMA_CPU_INSTRUCTIONS."""


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


def rate_at(engine: Engine, clients: int, context: int) -> AtLength | None:
    """Tokens a second while so many sequences of such a length generate; None where the cache doesn't hold them."""
    params = SamplingParams(max_new_tokens=2000)
    if (
        engine.capacity is not None
        and clients * (context + NEW_TOKENS) + params.max_new_tokens > engine.capacity
    ):
        return None
    prompts = [ids(context + 1000 * n, context) for n in range(clients)]
    for prompt in prompts:  # (read beforehand, one after the other: among those that generate it takes long)
        _finish([engine.submit(prompt, SamplingParams(max_new_tokens=1))])
    handles = [engine.submit(prompt, params) for prompt in prompts]
    with _collected(handles) as times:
        while min(map(len, times)) < 1:
            time.sleep(0.01)
        before, began = sum(map(len, times)), time.perf_counter()
        while min(map(len, times)) < STEPS or sum(map(len, times)) < before + STEPS * clients:
            time.sleep(0.01)
        tokens, seconds = sum(map(len, times)) - before, time.perf_counter() - began
    return AtLength(clients, context, tokens / seconds)


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
    with _collected(handles) as times:
        while min(map(len, times)) < 60:
            time.sleep(0.01)
        came = time.perf_counter()
        next(iter(engine.submit(ids(round_ + 70_000, long), SamplingParams(max_new_tokens=1))))
        read = time.perf_counter()
    before = [b - a for one in times for a, b in pairwise(one) if b < came]
    during = [b - a for one in times for a, b in pairwise(one) if b >= came and a <= read]
    return Stall(median(before), max(during), read - came)


@contextmanager
def _collected(handles: list[Handle]) -> Iterator[list[list[float]]]:
    """When each sequence's tokens came, as they come; the sequences are cancelled afterwards."""
    times: list[list[float]] = [[] for _ in handles]

    def collect(handle: Handle, own: list[float]) -> None:
        for _ in handle:
            own.append(time.perf_counter())  # noqa: PERF401  (it is looked at meanwhile)

    threads = [threading.Thread(target=collect, args=pair) for pair in zip(handles, times, strict=True)]
    for thread in threads:
        thread.start()
    try:
        yield times
    finally:
        for handle in handles:
            handle.cancel()
        for thread in threads:
            thread.join()


def _finish(handles: list[Handle]) -> None:
    for handle in handles:
        for _ in handle:
            pass


@dataclass(frozen=True, slots=True)
class AtLength:
    """Tokens a second of so many sequences that are so many tokens long."""

    clients: int
    context: int
    rate: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes: resident in a process that has the engine and has served, and in one that has only imported its libraries."""

    serving: int
    imported: int


def run(checkpoint: Path, rounds: int, backend: str = "auto") -> dict[str, Any]:
    """Everything, as JSON values."""
    engine = _started(checkpoint, backend, context=9000, max_num_seqs=max(COUNTS))
    try:
        _finish([engine.submit(ids(1, 30), SamplingParams(max_new_tokens=4))])
        return {
            "alone": [asdict(rate(engine, count, number)) for number in range(rounds) for count in COUNTS],
            "reuse": [asdict(reuse(engine, number)) for number in range(rounds)],
            "stall": [asdict(stall(engine, number)) for number in range(rounds)],
            "lengths": [asdict(one) for one in _at_lengths(engine)],
        }
    finally:
        engine.close()


def _at_lengths(engine: Engine) -> Iterator[AtLength]:
    for context in CONTEXTS:
        for count in COUNTS:
            found = rate_at(engine, count, context)
            if found:
                yield found


@dataclass(frozen=True, slots=True)
class ColdStart:
    """Seconds from a process's start to its first token, with the weights in no cache of the system's, and then in it."""

    cold: float
    warm: float


def cold_start(checkpoint: Path, backend: str) -> ColdStart:
    """Both, each in a process of its own."""
    for path in checkpoint.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    times = []
    for _ in range(2):
        began = time.perf_counter()
        _elsewhere(checkpoint, "token", backend)
        times.append(time.perf_counter() - began)
    return ColdStart(*times)


def memory(checkpoint: Path) -> Memory:
    """Both, each in a process of its own."""
    return Memory(*(int(_elsewhere(checkpoint, what)) for what in ("serve", "import")))


def elsewhere(checkpoint: Path, rounds: int, backend: str) -> dict[str, Any]:
    """`run` in a process of its own."""
    result: dict[str, Any] = json.loads(_elsewhere(checkpoint, str(rounds), backend))
    return result


def _elsewhere(checkpoint: Path, what: str, backend: str = "auto") -> str:
    command = [sys.executable, "-m", "load_tests.bench.scenarios", str(checkpoint), what, backend]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    return done.stdout.splitlines()[-1]


def _started(checkpoint: Path, name: str, *, context: int, max_num_seqs: int = CLIENTS) -> Engine:
    backend, quantization, instructions = BACKENDS[name]
    settings = Settings(
        max_num_seqs=max_num_seqs,
        backend=backend,
        quantization=quantization,
        cpu_instructions=instructions,
        speculative_tokens=NO_GUESSES,
    )
    return start(checkpoint, dtype="bfloat16", context=context, settings=settings)


def _first_token(checkpoint: Path, backend: str) -> None:
    engine = _started(checkpoint, backend, context=2048)
    _finish([engine.submit(ids(1, 30), SamplingParams(max_new_tokens=1))])


def _resident(checkpoint: Path, what: str) -> int:
    if what == "serve":
        engine = start(checkpoint, dtype="bfloat16", context=2048)
        _finish([engine.submit(ids(n, 60), SamplingParams(max_new_tokens=8)) for n in range(CLIENTS)])
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


def _main(folder: Path, what: str, backend: str) -> None:
    if what == "token":
        _first_token(folder, backend)
        print("done")  # noqa: T201
    else:
        print(json.dumps(run(folder, int(what), backend)) if what.isdigit() else _resident(folder, what))  # noqa: T201


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "auto")
