"""The KV cache of a server that generates, from its `/metrics`. Pure functions."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

_SAMPLE: Final = re.compile(r"^([a-zA-Z_:]\w*(?::\w+)*)(?:\{[^\n]*\})? (\S+)$", re.MULTILINE | re.ASCII)
_USAGE: Final = ("vllm:kv_cache_usage_perc", "llama_kv_cache_usage_ratio")
"""vLLM's names (vllm/v1/metrics/loggers.py, 0.32) and ours. Despite its name the first is a share from 0 to 1."""
_PREEMPTIONS: Final = ("vllm:num_preemptions_total", "llama_preemptions_total")
_REUSED: Final = ("vllm:prefix_cache_hits_total", "llama_prefix_cache_hit_tokens_total")
_MOST: Final = 2.0**53


@dataclass(frozen=True, slots=True)
class RemoteCache:
    """What a server says of its cache.

    Attributes:
        usage: share in use, of its fullest engine; None if it does not say.
        preemptions: since its start; None if it does not say.
        reused_tokens: prompt tokens that an earlier prompt had computed, likewise.
    """

    usage: float | None = None
    preemptions: int | None = None
    reused_tokens: int | None = None

    @classmethod
    def of(cls, text: str) -> "RemoteCache":
        """Read Prometheus' text format. What is not there, or no number, is not known."""
        samples = list(_samples(text))
        usages = [value for name, value in samples if name in _USAGE and value <= 1]
        return cls(max(usages, default=None), _total(samples, _PREEMPTIONS), _total(samples, _REUSED))


@dataclass(frozen=True, slots=True)
class CounterSince:
    """By how much a counter of another server has grown since the first look at it.

    Attributes:
        last: what it was; None before the first look.
    """

    growth: int = 0
    last: int | None = None

    def seen(self, now: int | None) -> "CounterSince":
        """Return the growth up to now. A counter that fell began anew at 0; one that is not told stays."""
        if now is None:
            return self
        if self.last is None:
            return CounterSince(self.growth, now)
        return CounterSince(self.growth + (now - self.last if now >= self.last else now), now)


@dataclass(frozen=True, slots=True)
class CacheSince:
    """A server's cache since the first look at it, which may be long after its start.

    Attributes:
        usage: as `RemoteCache` has it.
    """

    usage: float | None = None
    preemptions: CounterSince = CounterSince()
    reused_tokens: CounterSince = CounterSince()

    def seen(self, now: RemoteCache) -> "CacheSince":
        """Return what is known after another look."""
        return CacheSince(
            now.usage, self.preemptions.seen(now.preemptions), self.reused_tokens.seen(now.reused_tokens)
        )

    def unseen(self) -> "CacheSince":
        """Return what is known while the server says nothing."""
        return replace(self, usage=None)


def _samples(text: str) -> Iterator[tuple[str, float]]:
    for name, said in _SAMPLE.findall(text):
        if name in (*_USAGE, *_PREEMPTIONS, *_REUSED):
            try:
                value = float(said)
            except ValueError:
                continue
            if math.isfinite(value) and 0 <= value < _MOST:
                yield name, value


def _total(samples: list[tuple[str, float]], names: tuple[str, ...]) -> int | None:
    """Return the sum over all of a server's engines; None if there is none."""
    found = [value for name, value in samples if name in names]
    return round(sum(found)) if found else None
