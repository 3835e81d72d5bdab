"""Rates and quantiles from two readings, whatever happened to the server in between."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

from llama_endpoints.monitoring import words
from llama_endpoints.monitoring.changes import Changes, increase, interpolated
from llama_endpoints.monitoring.overview import Overview
from llama_endpoints.monitoring.scrape import STARTED, NotOurs, Sample, Scrape

COUNTER = "llama_generation_tokens_total"
growth = st.integers(0, 1 << 40)


def reading(at: float, started: float, **counts: float) -> Scrape:
    """A reading with one counter, by key."""
    samples = (Sample(COUNTER, {"key": name}, value) for name, value in counts.items())
    return Scrape(at, (Sample(STARTED, {}, started), *samples))


@given(before=growth, more=growth, seconds=st.floats(0.1, 1e4))
def test_a_rate_is_the_growth_by_the_time(before: int, more: int, seconds: float) -> None:
    changes = Changes(reading(5, 1, a=before), reading(5 + seconds, 1, a=before + more))
    assert changes.rate(COUNTER) == pytest.approx(more / seconds)


@given(before=growth, after=growth)
def test_a_counter_of_a_restarted_server_has_grown_by_all_that_it_has(before: int, after: int) -> None:
    changes = Changes(reading(5, 1, a=before), reading(7, 6, a=after))
    assert changes.restarted
    assert changes.rates(COUNTER, "key") == {"a": after / 2}


@given(before=growth, after=growth)
def test_no_growth_is_negative_though_the_start_is_not_known(before: int, after: int) -> None:
    grown = increase(before, after)
    assert 0 <= grown <= after


def test_a_label_that_is_new_began_at_zero() -> None:
    changes = Changes(reading(5, 1, a=10, gone=3), reading(6, 1, a=10, b=4))
    assert changes.rates(COUNTER, "key") == {"a": 0, "b": 4}


def test_nothing_is_known_of_one_reading_or_of_the_same_moment() -> None:
    first = reading(5, 1, a=10)
    assert Changes(None, first).rate(COUNTER) is None
    assert Changes(first, first).rate(COUNTER) is None
    assert Changes(first, first).quantile(0.5, "llama_time_to_first_token_seconds") is None


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=60), st.sampled_from((0.5, 0.95, 1.0)))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(observed: list[float], share: float) -> None:
    ends = (0.1, 0.5, 1.0, 5.0, math.inf)
    found = interpolated(share, {end: sum(one <= end for one in observed) for end in ends})
    rank = max(1, math.ceil(share * len(observed) - 1e-9))
    true = sorted(observed)[rank - 1]
    end = next(end for end in ends if true <= end)
    low = max((0.0, *(one for one in ends if one < end)))
    assert found is not None
    assert low <= found <= (low if math.isinf(end) else end)


def test_a_quantile_of_nothing_is_none() -> None:
    assert interpolated(0.5, {}) is None
    assert interpolated(0.5, {1.0: 0, math.inf: 0}) is None


@given(st.lists(st.floats(0, 3), max_size=20), st.lists(st.floats(0, 3), min_size=1, max_size=20))
def test_quantiles_are_of_what_came_in_between(early: Sequence[float], late: Sequence[float]) -> None:
    registry = CollectorRegistry()
    histogram = Histogram("llama_time_to_first_token_seconds", "…", buckets=(1.0, 2.0, 3.0), registry=registry)
    Gauge("llama_ready", "…", registry=registry)
    texts = []
    for values in (early, late):
        for value in values:
            histogram.observe(value)
        texts.append(generate_latest(registry).decode())
    changes = Changes(*(Scrape.parse(text, at) for at, text in enumerate(texts)))
    alone = {end: float(sum(one <= end for one in late)) for end in (1.0, 2.0, 3.0, math.inf)}
    assert changes.quantile(0.95, "llama_time_to_first_token_seconds") == interpolated(0.95, alone)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<html><body>hello</body></html>", "no text of Prometheus"),
        ("", "no metric llama_ready"),
        ("# TYPE up gauge\nup 1\n", "no metric llama_ready"),
        ('# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine="0"} 1.0\n', "vLLM itself"),
    ],
)
def test_another_text_is_called_what_it_is(text: str, said: str) -> None:
    with pytest.raises(NotOurs, match=said):
        Scrape.parse(text, 0)


NAMES = st.sampled_from(
    ("llama_ready", "llama_key_requests_total", "llama_key_prompt_tokens_total", "llama_num_requests_running",
     "llama_requests_total", "llama_time_to_first_token_seconds_bucket", "llama_engine_info")
)  # fmt: skip
LABELS = st.sampled_from(
    (
        "",
        '{key="a"}',
        '{key="\\n\\\\"}',
        '{route="/score",code="x"}',
        '{le="NaN"}',
        '{le="+Inf"}',
        '{le="1e400"}',
    )
)
VALUES = st.one_of(st.sampled_from(("NaN", "+Inf", "-Inf", "1e308", "-1", "")), st.floats().map(str))
LINES = st.lists(st.tuples(NAMES, LABELS, VALUES).map(lambda one: f"{one[0]}{one[1]} {one[2]}\n"), max_size=8)


@given(
    st.one_of(st.text(max_size=200), LINES.map("".join)), st.one_of(st.text(max_size=50), LINES.map("".join))
)
def test_any_text_is_shown_or_refused(before: str, now: str) -> None:
    readings = [f"llama_ready 1\n{text}" for text in (before, now)]
    try:
        changes = Changes(*(Scrape.parse(text, at) for at, text in enumerate(readings)))
    except NotOurs:
        return
    seen = Overview.of(changes)
    shown = [
        *(said for _, said in words.facts(seen)),
        *(cell for use in seen.keys for cell in words.key_cells(use)),
    ]
    assert all(map(str.isprintable, shown))
