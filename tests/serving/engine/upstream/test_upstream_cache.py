"""The cache of the other server, as its `/metrics` tell it."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_serving.engine.upstream.engine import UpstreamEngine
from llama_serving.engine.upstream.remote_cache import CacheSince, RemoteCache
from tests.support.calls import until
from tests.support.upstream_engines import running
from tests.support.upstreams import FakeUpstream, Hold, Step, upstream

VLLM = """\
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="nano"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="nano } 9"} 0.5
vllm:prefix_cache_hits_total{engine="0",model_name="nano"} 1.28e+02
vllm:prefix_cache_hits_created{engine="0",model_name="nano"} 1.7e+09
vllm:num_preemptions_total{engine="0",model_name="nano"} 3.0
vllm:num_preemptions_total{engine="1",model_name="nano"} 4.0
vllm:request_num_preemptions_sum{engine="0"} 99.0
"""


def metrics(text: str) -> list[Step]:
    return [f"HTTP/1.1 200 OK\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode()]


def test_vllms_metrics_are_read() -> None:
    assert RemoteCache.of(VLLM) == RemoteCache(0.5, 7, 128)


def test_our_own_are_read() -> None:
    text = "llama_kv_cache_usage_ratio 0.125\nllama_preemptions_total 2.0\nllama_prefix_cache_hit_tokens_total 64.0\n"
    assert RemoteCache.of(text) == RemoteCache(0.125, 2, 64)


NAMES = st.sampled_from(
    ("vllm:kv_cache_usage_perc", "vllm:num_preemptions_total", "vllm:prefix_cache_hits_total")
)
VALUES = st.one_of(st.floats().map(str), st.text(max_size=8), st.sampled_from(("NaN", "+Inf", "-1", "1e300")))
LINES = st.lists(st.tuples(NAMES, VALUES).map(" ".join), max_size=6).map("\n".join)


@given(st.one_of(LINES, st.text(max_size=200)))
def test_whatever_it_says_the_counters_are_counters(text: str) -> None:
    found = RemoteCache.of(text)
    assert found.usage is None or 0 <= found.usage <= 1
    assert (found.preemptions or 0) >= 0
    assert (found.reused_tokens or 0) >= 0


COUNTS = st.none() | st.integers(0, 1000)


@given(st.lists(COUNTS, max_size=8))
def test_a_counter_grows_by_what_it_grew_since_the_first_look(told: list[int | None]) -> None:
    seen, grown = CacheSince(), [0]
    for one in told:
        seen = seen.seen(RemoteCache(0.5, one, None))
        grown.append(seen.preemptions.growth)
    known = [one for one in told if one is not None]
    assert grown == sorted(grown)
    assert grown[-1] == sum(now - last if now >= last else now for last, now in pairwise(known))
    assert seen.reused_tokens.growth == 0


@pytest.fixture
def telling(fake: FakeUpstream) -> Iterator[UpstreamEngine]:
    """An engine whose server tells of its cache."""
    fake.said["/metrics"] = metrics(VLLM)
    with running(fake) as started:
        yield started


def test_the_engine_counts_from_its_own_start_on(telling: UpstreamEngine) -> None:
    """What the server did before is no rate of ours."""
    stats = telling.stats()
    assert (stats.kv_usage, stats.num_preemptions, stats.reused_tokens) == (0.5, 0, 0)


def test_a_server_that_began_anew_goes_on_with_the_sum(fake: FakeUpstream, telling: UpstreamEngine) -> None:
    for preemptions, hits, sums in (("9.0", "1.30e+02", (5, 2)), ("1.0", "1.0", (9, 3))):  # (3 + 9, then 3 + 1)
        text = VLLM.replace(" 4.0", f" {preemptions}").replace("1.28e+02", hits)
        fake.said["/metrics"] = metrics(text)
        until(
            lambda sums=sums: (telling.stats().num_preemptions, telling.stats().reused_tokens) == sums  # type: ignore[misc]
        )


def test_it_follows_and_no_counter_falls_while_the_server_says_nothing(
    fake: FakeUpstream, telling: UpstreamEngine
) -> None:
    fake.said["/metrics"] = metrics(VLLM.replace("0.5", "0.75").replace(" 4.0", " 5.0"))
    until(lambda: telling.stats().kv_usage == 0.75)
    del fake.said["/metrics"]  # 404
    until(lambda: telling.stats().kv_usage is None)
    assert (telling.stats().num_preemptions, telling.stats().reused_tokens) == (1, 0)
    fake.down()
    until(lambda: telling.stats().away)
    assert telling.stats().num_preemptions == 1


def test_a_server_that_says_nothing_of_it_is_one_all_the_same(own: UpstreamEngine) -> None:
    assert own.stats().kv_usage is None
    assert own.stats().alive


def test_metrics_that_never_come_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_serving.engine.upstream.client.METRICS_S", 0.1)
    with upstream() as fake:
        fake.said["/metrics"] = [b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nvllm", Hold()]
        with running(fake) as engine:
            assert engine.stats().kv_usage is None
            fake.said["/metrics"] = metrics(VLLM)
            until(lambda: engine.stats().kv_usage == 0.5)
