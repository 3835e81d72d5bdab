"""Refusals of the server, broken connections, and its coming back."""

import threading
from typing import Any

import pytest

from llama_serving.engine.upstream import client, engine
from llama_serving.engine.upstream.engine import UpstreamEngine
from llama_serving.errors import (
    BadRequest,
    DeadlineExceeded,
    InternalError,
    QueueFull,
    ServingError,
    Unavailable,
)
from tests.support.calls import until
from tests.support.draws import PATIENCE_S
from tests.support.upstream_engines import GREEDY, PROMPT, SECRET, TWO, ended, run, running
from tests.support.upstreams import (
    END,
    HEAD,
    Close,
    FakeUpstream,
    Hold,
    Reset,
    Step,
    chunk,
    event,
    status,
)


@pytest.mark.parametrize(
    ("code", "kind", "ours"),
    [
        (400, BadRequest, "upstream_refused"),
        (413, BadRequest, "upstream_refused"),
        (422, BadRequest, "upstream_refused"),
        (401, InternalError, "upstream_error"),
        (403, InternalError, "upstream_error"),
        (404, InternalError, "upstream_error"),
        (307, InternalError, "upstream_error"),
        (206, InternalError, "upstream_error"),
        (429, QueueFull, "queue_full"),
        (500, InternalError, "upstream_error"),
        (502, InternalError, "upstream_error"),
        (503, Unavailable, "unavailable"),
        (504, DeadlineExceeded, "deadline_exceeded"),
    ],
)
def test_a_status_becomes_an_error_of_ours(
    fake: FakeUpstream, own: UpstreamEngine, code: int, kind: type[ServingError], ours: str
) -> None:
    said = {"error": {"message": SECRET, "type": "TheType", "param": SECRET, "code": code}}
    fake.answers.append(status(code, said, Location="/elsewhere"))
    got, _, error = run(own)
    assert (got, type(error), error and error.code) == ([], kind, ours)
    assert error is not None
    assert SECRET not in error.message
    assert len(fake.asked) == 1  # nothing is asked twice
    if kind in (BadRequest, InternalError):
        assert f"{code}, TheType" in error.message


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("17", 17),
        ("0", 5),
        ("-1", 5),
        ("soon", 5),
        ("99999", 5),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 5),
        ("²", 5),
    ],
)
@pytest.mark.parametrize("code", [429, 503])
def test_when_to_come_again_is_passed_on(
    fake: FakeUpstream, own: UpstreamEngine, code: int, header: str, seconds: int
) -> None:
    answer = status(code, {"error": {}})
    (head,) = answer
    assert isinstance(head, bytes)
    fake.answers.append([head.replace(b"\r\n", b"\r\nRetry-After: " + header.encode() + b"\r\n", 1)])
    _, _, error = run(own)
    assert error is not None
    assert error.retry_after == seconds


@pytest.mark.parametrize("said", [b"", b"{", b"[" * 60_000, b"\xff", b"x" * 1_000_000])
def test_a_refusal_may_say_anything(fake: FakeUpstream, own: UpstreamEngine, said: bytes) -> None:
    fake.answers.append([b"HTTP/1.1 500 Oh\r\nContent-Length: %d\r\n\r\n" % len(said) + said])
    _, _, error = run(own)
    assert isinstance(error, InternalError)


def test_connecting_is_tried_again(
    fake: FakeUpstream, own: UpstreamEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "WATCH_S", PATIENCE_S)
    monkeypatch.setattr(client, "PAUSES_S", (0.1,) * 100)
    fake.down()
    handle = own.submit(PROMPT, GREEDY)
    back = threading.Timer(0.3, fake.up)
    back.start()
    assert ended(handle) == ([100, 101, 102], "length", None)
    assert len(fake.asked) == 1


def test_a_refused_connection_is_a_503(fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "WATCH_S", PATIENCE_S)
    with running(fake) as own:
        fake.down()
        got, _, error = run(own)
        fake.up()
        assert (got, type(error)) == ([], Unavailable)
        assert error is not None
        assert error.retry_after == 5
        assert fake.asked == []
        assert run(own)[1] == "length"


@pytest.mark.parametrize(
    ("answer", "ids"),
    [
        ([Close()], []),
        ([Reset()], []),
        ([b"HTTP/1.1 200"], []),
        ([HEAD, Close()], []),
        ([HEAD, *TWO, Close()], [7, 8]),
        ([HEAD, *TWO, Reset()], [7, 8]),
        ([HEAD, *TWO, b'40\r\ndata: {"choi', Close()], [7, 8]),
        ([HEAD, *TWO, END], [7, 8]),
        ([HEAD, *TWO, event(chunk([6], "length")), END], [7, 8, 6]),
        ([HEAD, *TWO, b"no chunk at all\r\n"], [7, 8]),
    ],
)
def test_a_break_is_an_error_and_nothing_is_asked_twice(
    fake: FakeUpstream, own: UpstreamEngine, answer: list[Step], ids: list[int]
) -> None:
    fake.answers.append(answer)
    got, _, error = run(own)
    assert isinstance(error, Unavailable)
    # (A reset may overtake what was sent before it: then less has come, and never something else.)
    assert got == ids or (Reset() in answer and got == ids[: len(got)])
    assert len(fake.asked) == 1
    assert run(own)[1] == "length"


@pytest.mark.parametrize("kind", [b"application/json", b"text/html", b"text/plain; text/event-stream"])
def test_what_is_no_stream(fake: FakeUpstream, own: UpstreamEngine, kind: bytes) -> None:
    fake.answers.append([HEAD.replace(b"text/event-stream; charset=utf-8", kind), *TWO, END])
    got, _, error = run(own)
    assert (got, type(error)) == ([], InternalError)
    assert error is not None
    assert "no events" in error.message


def test_an_event_without_end(fake: FakeUpstream, own: UpstreamEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LARGEST_EVENT", 10_000)
    line = b"data: " + b"x" * 20_000
    fake.answers.append([HEAD, b"%x\r\n%b\r\n" % (len(line), line), Hold()])
    _, _, error = run(own)
    assert isinstance(error, InternalError)
    until(lambda: fake.gone == 1)


def test_a_server_that_falls_silent_is_given_up(fake: FakeUpstream) -> None:
    with running(fake, stall_s=0.2) as own:
        fake.answers.append([HEAD, *TWO, Hold()])
        got, _, error = run(own)
        assert (got, type(error)) == ([7, 8], Unavailable)
        until(lambda: fake.gone == 1)


def test_one_that_goes_and_comes_back(fake: FakeUpstream, own: UpstreamEngine) -> None:
    fake.said["/health"] = status(503)
    until(lambda: own.stats().away)
    assert own.stats().alive
    with pytest.raises(Unavailable, match="can't be reached") as refused:
        own.submit(PROMPT, GREEDY)
    assert refused.value.retry_after == 5
    fake.said.clear()
    until(lambda: not own.stats().away)
    assert run(own)[1] == "length"


def test_a_killed_one_is_noticed_and_taken_back(fake: FakeUpstream, own: UpstreamEngine) -> None:
    fake.down()
    until(lambda: own.stats().away)
    fake.up()
    until(lambda: not own.stats().away)
    assert run(own)[1] == "length"


@pytest.mark.parametrize("change", [{"models": ("other",)}, {"owned_by": "llama-endpoints"}, {"context": 512}])
def test_another_one_is_not_taken_for_it(
    fake: FakeUpstream, own: UpstreamEngine, caplog: pytest.LogCaptureFixture, change: dict[str, Any]
) -> None:
    before = {name: getattr(fake, name) for name in change}
    fake.down()
    until(lambda: own.stats().away)
    for name, value in change.items():
        setattr(fake, name, value)
    fake.up()
    until(lambda: "another server now" in caplog.text or "can't be used any more" in caplog.text)
    assert own.stats().away
    for name, value in before.items():
        setattr(fake, name, value)
    until(lambda: not own.stats().away)
