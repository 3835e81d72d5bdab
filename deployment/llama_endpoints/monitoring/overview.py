"""What `top` shows of a server, from two readings of its metrics."""

from collections.abc import Mapping
from dataclasses import dataclass

from llama_endpoints.monitoring.changes import Changes
from llama_serving.server.protocols import PROTOCOLS

LOADING = "loading"
READY = "ready"
NOT_READY = "not ready"


@dataclass(frozen=True, slots=True)
class Latency:
    """Quantiles in seconds of what ended between the readings; None where nothing did."""

    p50: float | None
    p95: float | None

    @classmethod
    def of(cls, changes: Changes, name: str) -> "Latency":
        """Return those of a histogram."""
        return cls(changes.quantile(0.5, name), changes.quantile(0.95, name))


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What the holder of a key uses. Requests and tokens are counted when a request ends.

    Attributes:
        name: of the key.
        requests: since the server's start.
        tokens: of prompts and completions, since the server's start.
        requests_per_second: None if it is not known yet, as are the other rates.
    """

    name: str
    requests: int
    tokens: int
    requests_per_second: float | None
    errors_per_second: float | None
    tokens_per_second: float | None


@dataclass(frozen=True, slots=True)
class Overview:
    """A server between two readings. None is what it does not have, or what is not known yet.

    Attributes:
        state: loading, ready, or not ready: it drains, or the server that generates is away.
        model: its name in the catalog.
        engine: with its backend.
        running: requests that generate.
        waiting: requests that wait for room.
        refusals: answers in a second by their status, 400 and above.
        kv_cache: share of the cache's blocks in use.
        prefix_hits: share of the prompt tokens that were reused.
        first_token: from admission.
        output_token: for each token after the first.
        keys: the busiest first.
    """

    state: str
    model: str | None
    engine: str | None
    running: int | None
    waiting: int | None
    requests_per_second: float | None
    refusals: Mapping[str, float]
    prompt_tokens_per_second: float | None
    generated_tokens_per_second: float | None
    kv_cache: float | None
    prefix_hits: float | None
    preemptions_per_second: float | None
    first_token: Latency
    output_token: Latency
    keys: tuple[KeyUse, ...]

    @classmethod
    def of(cls, changes: Changes) -> "Overview":
        """Read them."""
        now = changes.now
        by_status = _by_status(changes)
        info = next((one.labels for one in now.of("llama_engine_info")), None)
        return cls(
            state=_state(ready=now.value("llama_ready") == 1, loaded=info is not None),
            model=info.get("model") if info else None,
            engine=_engine(info) if info else None,
            running=_whole(now.value("llama_num_requests_running")),
            waiting=_whole(now.value("llama_num_requests_waiting")),
            requests_per_second=None if by_status is None else sum(by_status.values()),
            refusals={code: rate for code, rate in sorted((by_status or {}).items()) if code >= "400" and rate},
            prompt_tokens_per_second=changes.rate("llama_prompt_tokens_total"),
            generated_tokens_per_second=changes.rate("llama_generation_tokens_total"),
            kv_cache=now.value("llama_kv_cache_usage_ratio"),
            prefix_hits=_share(changes, "llama_prefix_cache_hit_tokens_total", "llama_prompt_tokens_total"),
            preemptions_per_second=changes.rate("llama_preemptions_total"),
            first_token=Latency.of(changes, "llama_time_to_first_token_seconds"),
            output_token=Latency.of(changes, "llama_time_per_output_token_seconds"),
            keys=tuple(_keys(changes)),
        )


def _state(*, ready: bool, loaded: bool) -> str:
    return READY if ready else NOT_READY if loaded else LOADING


def _engine(labels: Mapping[str, str]) -> str:
    name, backend = labels.get("engine", ""), labels.get("backend", "")
    return f"{name} ({backend})" if backend else name


def _by_status(changes: Changes) -> dict[str, float] | None:
    """Return the answers of routes that generate in a second, by status."""
    if changes.before is None:
        return None
    generating = Changes(changes.before.only(route=PROTOCOLS), changes.now.only(route=PROTOCOLS))
    return generating.rates("llama_requests_total", "code")


def _share(changes: Changes, part: str, whole: str) -> float | None:
    some, everything = changes.rate(part), changes.rate(whole)
    return min(1.0, some / everything) if some is not None and everything else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _keys(changes: Changes) -> list[KeyUse]:
    counts = {name: changes.now.by(f"llama_key_{name}_total", "key") for name in _COUNTED}
    rates = {name: changes.rates(f"llama_key_{name}_total", "key") for name in _COUNTED}

    def rate(key: str, *names: str) -> float | None:
        found = [known.get(key, 0.0) for name in names if (known := rates[name]) is not None]
        return sum(found) if found else None

    uses = [
        KeyUse(
            key,
            round(requests),
            round(counts["prompt_tokens"].get(key, 0) + counts["completion_tokens"].get(key, 0)),
            rate(key, "requests"),
            rate(key, "errors"),
            rate(key, "prompt_tokens", "completion_tokens"),
        )
        for key, requests in counts["requests"].items()
    ]
    return sorted(uses, key=lambda one: (-(one.tokens_per_second or 0), -one.tokens, -one.requests, one.name))


_COUNTED = ("requests", "errors", "prompt_tokens", "completion_tokens")
