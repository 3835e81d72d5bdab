"""The KV cache of a server that generates, from its `/metrics`. Pure functions."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
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
        preemptions: since its start.
        reused_tokens: prompt tokens that an earlier prompt had computed, since its start.
    """

    usage: float | None = None
    preemptions: int = 0
    reused_tokens: int = 0

    @classmethod
    def of(cls, text: str) -> "RemoteCache":
        """Read Prometheus' text format. What is not there, or no number, is not known."""
        samples = list(_samples(text))
        usages = [value for name, value in samples if name in _USAGE and value <= 1]
        return cls(max(usages, default=None), _total(samples, _PREEMPTIONS), _total(samples, _REUSED))


def _samples(text: str) -> Iterator[tuple[str, float]]:
    for name, said in _SAMPLE.findall(text):
        if name in (*_USAGE, *_PREEMPTIONS, *_REUSED):
            try:
                value = float(said)
            except ValueError:
                continue
            if math.isfinite(value) and 0 <= value < _MOST:
                yield name, value


def _total(samples: list[tuple[str, float]], names: tuple[str, ...]) -> int:
    """Return the sum over all of a server's engines."""
    return round(sum(value for name, value in samples if name in names))
