"""Measure the throughput of a contestant with a number of concurrent clients."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Ask = "Callable[[str, int], int]"
"""(prompt, new tokens) -> tokens returned."""

NO_GUESSES: Final = 0
"""`speculative_tokens`. Texts of random weights repeat themselves, so that guesses would show more than trained models have of
them; `speculation.py` measures these."""
PLAIN: Final = {"LLAMA_SPECULATIVE_TOKENS": str(NO_GUESSES)}

WORDS: Final = (
    "def",
    "return",
    "self",
    "value",
    "index",
    "name",
    "print",
    "range",
    "list",
    "item",
    "path",
    "data",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one contestant."""

    contestant: str
    clients: int
    tokens: int
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens a second, over all clients."""
        return self.tokens / self.seconds


def prompt(number: int, words: int = 12) -> str:
    """Return a short prompt; each number's starts differently, so that no prefix is reused by accident."""
    return " ".join([f"n{number}", *(WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(words))])


def throughput(  # noqa: PLR0913  (a measurement has its conditions)
    name: str, ask: Callable[[str, int], int], *, clients: int, requests: int, new_tokens: int, first: int
) -> Sample:
    """Let each client send some requests in sequence; all clients start together."""
    ready = threading.Barrier(clients + 1)

    def client(number: int) -> int:
        ready.wait()
        return sum(ask(prompt(first + number * requests + i), new_tokens) for i in range(requests))

    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(client, number) for number in range(clients)]
        ready.wait()
        started = time.perf_counter()
        tokens = sum(future.result() for future in futures)
        return Sample(name, clients, tokens, time.perf_counter() - started)


def ratio(samples: Sequence[Sample], one: str, other: str, clients: int) -> float | None:
    """Return the median over the rounds of one rate divided by another; None if one was not measured."""
    rates = [[s.rate for s in samples if (s.contestant, s.clients) == (name, clients)] for name in (one, other)]
    pairs = list(zip(*rates, strict=False))
    return median(a / b for a, b in pairs) if pairs else None
