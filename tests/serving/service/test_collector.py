"""Which requests are sampled, and a collector whose sink is out of order."""

import atexit
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_serving.errors import SetupError
from llama_serving.service.collection import collector as collecting
from llama_serving.service.collection import configuration
from llama_serving.service.collection.caller import Caller, is_sampled
from llama_serving.service.collection.collector import Collector
from llama_serving.service.collection.record import CollectedInput, CollectedRequest, CollectedText
from llama_serving.service.collection.redaction import Redactor
from llama_serving.service.collection.sinks.sink import SinkError
from llama_serving.service.service import Service
from llama_serving.settings import Settings
from tests.support.calls import until
from tests.support.collecting import CALLER, REDACTOR, TEXT, Kept, collected, score
from tests.support.scripted import scripted


@given(st.text(max_size=40), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_holds_the_smaller_one(request_id: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert is_sampled(request_id, low) <= is_sampled(request_id, high)
    assert is_sampled(request_id, 1.0)
    assert not is_sampled(request_id, 0.0)


def test_the_share_of_the_ids_is_the_rate() -> None:
    ids = [f"request-{number}" for number in range(4000)]
    assert 0.47 < sum(is_sampled(one, 0.5) for one in ids) / len(ids) < 0.53
    assert 0.08 < sum(is_sampled(one, 0.1) for one in ids) / len(ids) < 0.12


def test_exactly_the_sampled_requests_are_collected_and_again_if_they_are_sent_again() -> None:
    ids = [f"r{number}" for number in range(40)]
    service = scripted(TEXT)
    with collected(service, rate=0.5) as kept:
        for request_id in (*ids, *ids):
            service.generate(score("x"), caller=Caller(request_id))
    expected = [one for one in ids if is_sampled(one, 0.5)]
    assert 0 < len(expected) < len(ids)
    assert [one.request_id for one in kept.got] == [*expected, *expected]


def request_of(text: str = "x") -> CollectedRequest:
    return CollectedRequest("r", 0.0, "nano", {}, (CollectedInput(text),), ((CollectedText("y"),),))


def raising(error: Exception) -> Any:
    def write() -> None:
        raise error

    return write


@pytest.mark.parametrize("error", [SinkError("it answered 500"), RuntimeError("a zebra was here")])
def test_a_sink_that_fails_is_counted_and_said_once(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    collector = Collector(Kept(raising(error)), REDACTOR, rate=1.0, clock=lambda: now[0])
    with caplog.at_level(logging.WARNING):
        for number in range(10):
            collector.put(request_of())
            until(lambda number=number: collector.counts().dropped["sink"] == number + 1)  # type: ignore[misc]
        assert len(caplog.records) == 1
        now[0] = collecting.COMPLAINT_S
        collector.put(request_of())
        until(lambda: collector.counts().dropped["sink"] == 11)
        collector.close()
    assert len(caplog.records) == 2
    assert "10 sink" in caplog.records[1].getMessage()
    assert "zebra" not in caplog.text
    assert collector.counts().collected == 0


def test_what_cannot_be_redacted_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Redactor):
        def redacting(self, secrets: Any = ()) -> Any:
            return Raising()

    class Raising:
        def together(self, prompt: str, *rest: Any) -> Any:
            raise ValueError(prompt)

    sink = Kept()
    collector = Collector(sink, Broken(), rate=1.0)
    collector.put(request_of("zebra"))
    collector.close()
    assert (sink.got, collector.counts().dropped["redaction"]) == ([], 1)
    assert "zebra" not in caplog.text
    assert "1 redaction" in caplog.text


def test_a_sink_that_hangs_fills_the_queue_and_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(collecting, "MOST_WAITING", 5)
    monkeypatch.setattr(collecting, "LAST_S", 0.05)
    goes_on = threading.Event()
    sink = Kept(goes_on.wait)
    service = scripted(TEXT)
    service.collector = collector = Collector(sink, REDACTOR, rate=1.0)
    for number in range(20):
        service.generate(score("x"), caller=Caller(str(number)))
    assert collector.counts().dropped["full"] == 15
    service.close()
    assert collector.counts() == collecting.CollectionCounts(
        0, {"full": 15, "too_large": 0, "redaction": 0, "sink": 0, "closed": 5}
    )
    goes_on.set()
    until(lambda: sink.closed)
    assert len(caplog.records) == 2  # that the queue was full, and what was left at the end
    assert collector.counts().collected == 0


@pytest.mark.parametrize(("most", "reason"), [("MOST_OF_ONE", "too_large"), ("MOST_CHARACTERS", "full")])
def test_memory_is_bounded_by_characters(monkeypatch: pytest.MonkeyPatch, most: str, reason: str) -> None:
    monkeypatch.setattr(collecting, most, 100)
    sink = Kept()
    collector = Collector(sink, REDACTOR, rate=1.0)
    collector.put(request_of("x" * 100))
    collector.put(request_of("x" * 99))
    collector.close()
    assert collector.counts().dropped[reason] == 1
    assert collector.counts().collected == 1


def test_an_end_is_forgotten_by_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    at_exit: list[Any] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    monkeypatch.setattr(atexit, "unregister", at_exit.remove)
    collector = Collector(Kept(), REDACTOR, rate=1.0)
    assert at_exit == [collector.close]
    collector.close()
    assert at_exit == []


def test_a_load_that_fails_leaves_no_collector(tmp_path: Path) -> None:
    def load() -> Service:
        raise SetupError("no model")

    def threads() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one.name == "collection"]

    before = threads()
    with pytest.raises(SetupError, match="no model"):
        configuration.started(Settings(collect="jsonl", collect_file=str(tmp_path / "c.jsonl")), load)
    assert threads() == before


def test_after_its_end_a_collector_drops() -> None:
    collector = Collector(Kept(), REDACTOR, rate=1.0)
    collector.close()
    collector.close()
    collector.put(request_of())
    assert collector.counts().dropped["closed"] == 1


def test_nothing_of_a_request_is_in_a_log(caplog: pytest.LogCaptureFixture) -> None:
    service = scripted("okapi")
    service.settings = Settings()
    with caplog.at_level(logging.DEBUG), collected(service) as kept:
        service.generate(score("quagga"), caller=CALLER)
    assert len(kept.got) == 1
    assert "okapi" not in caplog.text
    assert "quagga" not in caplog.text
