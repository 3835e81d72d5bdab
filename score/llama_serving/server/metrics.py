"""Prometheus metrics, with the names that LLM servers share (vLLM's, under our prefix)."""

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llama_serving.engine.handle import Handle
from llama_serving.server.accounts.usage import Usage
from llama_serving.server.lifecycle import Lifecycle, Phase
from llama_serving.service.collection.collector import REASONS, CollectionCounts
from llama_serving.service.guards.guards import GuardCounts

FIRST_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0)
TOKEN_S: Final = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
WHOLE_S: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 300.0)


class Metrics:
    """The counters of one server."""

    def __init__(self, lifecycle: Lifecycle, usage: Usage | None = None) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Engine(lifecycle))
        self._registry.register(_Keys(usage or Usage()))
        self._requests = Counter(
            "llama_requests", "Requests by route and status.", ("route", "code"), registry=self._registry
        )
        self._whole = Histogram(
            "llama_e2e_request_latency_seconds", "Requests, from their head to their answer's end.", ("route",),
            buckets=WHOLE_S, registry=self._registry,
        )  # fmt: skip
        self._first = Histogram(
            "llama_time_to_first_token_seconds", "Sequences, from admission to their first token.",
            buckets=FIRST_S, registry=self._registry,
        )  # fmt: skip
        self._token = Histogram(
            "llama_time_per_output_token_seconds", "Sequences, the mean time of a token after the first.",
            buckets=TOKEN_S, registry=self._registry,
        )  # fmt: skip

    def answered(self, route: str, code: int, seconds: float) -> None:
        """Count a finished request."""
        self._requests.labels(route, str(code)).inc()
        self._whole.labels(route).observe(seconds)

    def generated(self, handle: Handle) -> None:
        """Count a finished sequence."""
        if handle.first_at is None:
            return
        self._first.observe(handle.first_at - handle.submitted_at)
        if handle.count > 1:
            self._token.observe((handle.last_at - handle.first_at) / (handle.count - 1))

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _Engine(Collector):
    """Metrics of the engine, read when they are scraped."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "llama_ready", "1 if requests are accepted.", float(self._lifecycle.phase is Phase.READY)
        )
        service = self._lifecycle.loaded
        if service is None:
            return
        stats = service.engine.stats()
        info = GaugeMetricFamily(
            "llama_engine_info",
            "What generates.",
            labels=("engine", "backend", "instructions", "why_not", "model"),
        )
        info.add_metric(
            (stats.engine, stats.backend, stats.instructions, stats.fallback_reason, service.variant.name), 1
        )
        yield info
        if stats.batch_invariant is not None:
            yield GaugeMetricFamily(
                "llama_batch_invariant",
                "1 if a sequence's tokens do not depend on the rest of the batch, so that seeds reproduce.",
                float(stats.batch_invariant),
            )
        running, waiting = service.requests()
        yield GaugeMetricFamily("llama_num_requests_running", "Requests with a running sequence.", running)
        yield GaugeMetricFamily(
            "llama_num_requests_waiting", "Requests whose unfinished sequences all wait.", waiting
        )
        yield GaugeMetricFamily("llama_num_sequences_running", "Sequences in the batch.", stats.running)
        yield GaugeMetricFamily("llama_num_sequences_waiting", "Waiting sequences.", stats.waiting)
        if (usage := stats.kv_usage) is not None:
            yield GaugeMetricFamily("llama_kv_cache_usage_ratio", "Share of the KV cache in use.", usage)
        yield CounterMetricFamily("llama_prompt_tokens", "Prompt tokens.", stats.tokens_in)
        yield CounterMetricFamily("llama_generation_tokens", "Tokens generated.", stats.tokens_out)
        yield CounterMetricFamily(
            "llama_prefix_cache_hit_tokens", "Prompt tokens reused from the cache.", stats.reused_tokens
        )
        yield CounterMetricFamily("llama_preemptions", "Preemptions of sequences.", stats.num_preemptions)
        yield CounterMetricFamily(
            "llama_guessed_tokens", "Tokens guessed by prompt lookup.", stats.guessed_tokens
        )
        yield CounterMetricFamily(
            "llama_accepted_tokens", "Guessed tokens that were right.", stats.accepted_tokens
        )
        yield CounterMetricFamily("llama_engine_steps", "Forward passes.", stats.steps)
        yield from _of_guards(service.guards.counts())
        yield from _of_collection(None if service.collector is None else service.collector.counts())


class _Keys(Collector):
    """Usage by key, read when it is scraped. There are at most `MOST_NAMES` keys and `other`."""

    _METRICS: Final = (
        ("requests", "Requests that may generate, by key."),
        ("errors", "Such requests that ended with an error, by key."),
        ("blocks", "Such requests that a content filter blocked, by key."),
        ("prompt_tokens", "Prompt tokens of ended requests, by key."),
        ("completion_tokens", "Tokens generated for ended requests, by key."),
    )

    def __init__(self, usage: Usage) -> None:
        self._usage = usage

    def collect(self) -> Iterator[Metric]:
        by_key = self._usage.by_key()
        for name, meaning in self._METRICS:
            family = CounterMetricFamily(f"llama_key_{name}", meaning, labels=("key",))
            for key, counts in by_key.items():
                family.add_metric((key,), getattr(counts, name))
            yield family


def _of_guards(guards: Sequence[GuardCounts]) -> Iterator[Metric]:
    for name, meaning, value in (
        ("llama_guard_checks", "Checks of prompts and texts.", attrgetter("checks")),
        ("llama_guard_blocks", "Checks that blocked.", attrgetter("blocks")),
        ("llama_guard_errors", "Checks that failed or took too long.", attrgetter("errors")),
        ("llama_guard_seconds", "Time of all checks.", attrgetter("seconds")),
    ):
        family = CounterMetricFamily(name, meaning, labels=("guard",))
        for one in guards:
            family.add_metric((one.name,), value(one))
        yield family


def _of_collection(counts: CollectionCounts | None) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "llama_collected",
        "Requests whose prompts and answers were collected.",
        counts.collected if counts else 0,
    )
    dropped = CounterMetricFamily(
        "llama_collection_dropped", "Sampled requests that were not collected, by reason.", labels=("reason",)
    )
    for reason in REASONS:
        dropped.add_metric((reason,), counts.dropped[reason] if counts else 0)
    yield dropped
