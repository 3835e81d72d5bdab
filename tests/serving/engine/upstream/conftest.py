"""The stand-in for a model's server, and an engine in front of it."""

from collections.abc import Iterator

import pytest

from llama_serving.engine.upstream import client, engine
from llama_serving.engine.upstream.engine import UpstreamEngine
from tests.support.upstream_engines import running
from tests.support.upstreams import FakeUpstream, upstream


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waiting times, on which nothing else depends."""
    monkeypatch.setattr(engine, "WATCH_S", 0.01)
    monkeypatch.setattr(engine, "AGAIN_S", 0.01)
    monkeypatch.setattr(client, "PAUSES_S", (0.01, 0.01))


@pytest.fixture
def fake() -> Iterator[FakeUpstream]:
    with upstream() as listening:
        yield listening


@pytest.fixture
def own(fake: FakeUpstream) -> Iterator[UpstreamEngine]:
    with running(fake) as started:
        yield started
