"""What the dashboard shows: an operator's questions, and the PromQL that answers them.

Grafana replaces `$instance` (servers), `$routes` (those that generate) and `$__rate_interval` (four scrapes at least).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llama_serving.server.protocols import PROTOCOLS

ROUTES: Final = "|".join(PROTOCOLS)
"""What `$routes` is."""
_SERVERS: Final = 'instance=~"$instance"'
_ASKED: Final = f'llama_requests_total{{{_SERVERS}, route=~"$routes"}}'
_FAILED: Final = f'llama_requests_total{{{_SERVERS}, route=~"$routes", code=~"5.."}}'
QUANTILES: Final = (0.5, 0.95, 0.99)
MOST_KEYS: Final = 10


@dataclass(frozen=True, slots=True)
class Query:
    """A query in PromQL, and what its series are called; `{{label}}` is a label's value."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        title: what is shown.
        meaning: what a reader should make of it.
        queries: what is drawn.
        unit: Grafana's name of it.
        kind: Grafana's type of panel: `timeseries`, `stat` or `table`.
        width: of the board's 24 columns.
        most: end of the scale; None if it follows the values.
    """

    title: str
    meaning: str
    queries: Sequence[Query]
    unit: str
    kind: str = "timeseries"
    width: int = 8
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """A question, and the panels that answer it."""

    question: str
    panels: Sequence[Panel]


def _rate(metric: str, labels: str = "") -> str:
    return f"rate({metric}{{{_SERVERS}{labels}}}[$__rate_interval])"


def _quantiles(metric: str, labels: str = "") -> tuple[Query, ...]:
    """Return the quantiles of a histogram over all servers."""
    buckets = f"sum by (le) ({_rate(f'{metric}_bucket', labels)})"
    return tuple(Query(f"histogram_quantile({share}, {buckets})", f"p{share * 100:.0f}") for share in QUANTILES)


def _by_key(*metrics: str) -> tuple[Query, ...]:
    """Return the rate of counters by key, of the keys with the most."""
    total = " + ".join(f"sum by (key) ({_rate(metric)})" for metric in metrics)
    return (Query(f"topk({MOST_KEYS}, {total})", "{{key}}"),)


BOARD: Final = (
    Section(
        "Is it up?",
        (
            Panel(
                "Servers",
                "Servers that accept requests, of those that Prometheus reaches. A server that is loading or draining is not ready.",
                (
                    Query(f"sum(llama_ready{{{_SERVERS}}})", "ready"),
                    Query(f"count(llama_ready{{{_SERVERS}}})", "known"),
                ),
                "short", "stat", 6,
            ),
            Panel(
                "Requests",
                "Answers of the routes that generate.",
                (Query(f"sum(rate({_ASKED}[$__rate_interval]))", "requests"),),
                "reqps", "stat", 4,
            ),
            Panel(
                "Generated tokens",
                "Tokens a second of all servers.",
                (Query(f"sum({_rate('llama_generation_tokens_total')})", "tokens"),),
                "short", "stat", 4,
            ),
            Panel(
                "Server errors",
                "Share of the answers with a status of 500 and above.",
                (
                    Query(
                        f"(sum(rate({_FAILED}[$__rate_interval])) or vector(0)) / sum(rate({_ASKED}[$__rate_interval]))",
                        "errors",
                    ),
                ),
                "percentunit", "stat", 4,
            ),
            Panel(
                "Engine and model",
                "What generates. `why_not` says why a CPU does not use the native kernels.",
                (Query(f"llama_engine_info{{{_SERVERS}}}", "{{instance}}"),),
                "short", "table", 6,
            ),
        ),
    ),
    Section(
        "Is it full?",
        (
            Panel(
                "Running and waiting",
                "Requests that generate, and those that wait for room. A queue that does not empty needs more servers.",
                (
                    Query(f"sum(llama_num_requests_running{{{_SERVERS}}})", "running"),
                    Query(f"sum(llama_num_requests_waiting{{{_SERVERS}}})", "waiting"),
                ),
                "short",
            ),
            Panel(
                "KV cache",
                "Share in use. vLLM's is read from vLLM, once a second.",
                (Query(f"llama_kv_cache_usage_ratio{{{_SERVERS}}}", "{{instance}}"),),
                "percentunit", most=1,
            ),
            Panel(
                "Preemptions",
                "Sequences a second that made room for older ones, and go on later. A full cache slows everybody down.",
                (Query(f"sum by (instance) ({_rate('llama_preemptions_total')})", "{{instance}}"),),
                "ops",
            ),
        ),
    ),
    Section(
        "Is it fast?",
        (
            Panel(
                "Time to the first token",
                "From admission, waiting included.",
                _quantiles("llama_time_to_first_token_seconds"), "s", width=6,
            ),
            Panel(
                "Time per output token",
                "Mean of a sequence, after its first token.",
                _quantiles("llama_time_per_output_token_seconds"), "s", width=6,
            ),
            Panel(
                "Whole requests",
                "From a request's head to its answer's end.",
                _quantiles("llama_e2e_request_latency_seconds", ', route=~"$routes"'), "s", width=6,
            ),
            Panel(
                "Tokens",
                "A second. Reused are prompt tokens that an earlier prompt had computed.",
                (
                    Query(f"sum({_rate('llama_generation_tokens_total')})", "generated"),
                    Query(f"sum({_rate('llama_prompt_tokens_total')})", "prompts"),
                    Query(f"sum({_rate('llama_prefix_cache_hit_tokens_total')})", "reused"),
                ),
                "short", width=6,
            ),
        ),
    ),
    Section(
        "What fails?",
        (
            Panel(
                "Answers by status",
                "429: a queue or a quota is full. 503: loading, draining, or a guard that fails. 499: the client left.",
                (Query(f"sum by (code) (rate({_ASKED}[$__rate_interval]))", "{{code}}"),),
                "reqps", width=12,
            ),
            Panel(
                "Guards",
                "Checks a second that blocked a prompt or a text, and checks that failed.",
                (
                    Query(f"sum by (guard) ({_rate('llama_guard_blocks_total')})", "{{guard}} blocked"),
                    Query(f"sum by (guard) ({_rate('llama_guard_errors_total')})", "{{guard}} failed"),
                ),
                "ops", width=12,
            ),
        ),
    ),
    Section(
        "Who uses it?",
        (
            Panel(
                "Tokens by key",
                "A second, of prompts and completions, counted when a request ends.",
                _by_key("llama_key_prompt_tokens_total", "llama_key_completion_tokens_total"), "short",
            ),
            Panel("Requests by key", "A second.", _by_key("llama_key_requests_total"), "reqps"),
            Panel(
                "Errors by key",
                "Requests a second that ended with an error, refusals for a quota included.",
                _by_key("llama_key_errors_total"), "reqps",
            ),
        ),
    ),
)  # fmt: skip
