"""How sequences end before the server has ended them."""

import asyncio
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from llama_serving.engine.handle import Handle
from llama_serving.engine.upstream.engine import UpstreamEngine
from llama_serving.errors import InternalError, Unavailable
from tests.support.calls import until
from tests.support.draws import PATIENCE_S
from tests.support.upstream_engines import (
    GREEDY,
    PROMPT,
    SECRET,
    TWO,
    ended,
    run,
    running,
)
from tests.support.upstreams import (
    END,
    HEAD,
    FakeUpstream,
    Hold,
    chunk,
    event,
    usage,
)


def held(fake: FakeUpstream, own: UpstreamEngine, **more: Any) -> Handle:
    """A sequence with two tokens, and a server that withholds the third."""
    last = [chunk([6], "length"), usage(3, 3), "[DONE]"]
    fake.answers.append([HEAD, *TWO, Hold(), *map(event, last), END])
    handle = own.submit(PROMPT, GREEDY, **more)
    until(lambda: handle.count == 2)
    return handle


def test_cancel_closes_the_connection(fake: FakeUpstream, own: UpstreamEngine) -> None:
    handle = held(fake, own)
    assert (own.stats().running, own.stats().waiting) == (1, 0)
    handle.cancel()
    assert ended(handle) == ([7, 8], "cancelled", None)
    until(lambda: fake.gone == 1)
    assert own.stats().running == 0
    handle.cancel()


def test_one_that_is_cancelled_before_its_first_step_ends_too(
    own: UpstreamEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = asyncio.create_task

    def created(coroutine: Any) -> Any:
        task = create(coroutine)
        task.cancel()
        return task

    monkeypatch.setattr("llama_serving.engine.upstream.engine.asyncio.create_task", created)
    assert run(own) == ([], "cancelled", None)
    monkeypatch.undo()
    own.drain()


def test_a_stop_ends_the_sequence_there(fake: FakeUpstream, own: UpstreamEngine) -> None:
    seen: list[int] = []

    def stop(token_id: int) -> bool:
        seen.append(token_id)
        return token_id == 8

    fake.answers.append([HEAD, *TWO, Hold()])
    assert run(own, stop=stop) == ([7, 8], "stop", None)
    assert seen == [7, 8]
    until(lambda: fake.gone == 1)


def test_a_stop_that_fails_fails_its_own_sequence(fake: FakeUpstream, own: UpstreamEngine) -> None:
    def stop(_: int) -> bool:
        raise ValueError(SECRET)

    _, _, error = run(own, stop=stop)
    assert isinstance(error, InternalError)
    assert run(own)[1] == "length"


def test_a_deadline_ends_it_with_what_it_has(fake: FakeUpstream, own: UpstreamEngine) -> None:
    fake.answers.append([HEAD, *TWO, Hold()])
    got, reason, error = run(own, deadline=time.monotonic() + 0.5)
    assert (got, reason, error) == ([7, 8][: len(got)], "deadline", None)
    until(lambda: fake.gone == 1)


def test_a_deadline_that_has_passed(fake: FakeUpstream, own: UpstreamEngine) -> None:
    assert run(own, deadline=time.monotonic() - 1) == ([], "deadline", None)
    assert fake.asked == []


def test_others_wait_for_a_place(fake: FakeUpstream) -> None:
    with running(fake, max_num_seqs=1) as own:
        first = held(fake, own)
        second, third, late = (
            own.submit(PROMPT, replace(GREEDY, seed=2)),
            own.submit(PROMPT, replace(GREEDY, seed=3)),
            own.submit(PROMPT, replace(GREEDY, seed=4), deadline=time.monotonic() + 0.05),
        )
        assert (own.stats().running, own.stats().waiting) in ((1, 3), (1, 2))
        assert ended(late) == ([], "deadline", None)
        second.cancel()
        assert ended(second) == ([], "cancelled", None)
        assert [body["seed"] for body in fake.asked] == [0]
        fake.go_on.set()
        assert ended(first)[1] == ended(third)[1] == "length"
        assert [body["seed"] for body in fake.asked] == [0, 3]


def test_drain_takes_nothing_more_and_waits(fake: FakeUpstream, own: UpstreamEngine) -> None:
    handle = held(fake, own)
    draining = threading.Thread(target=own.drain, daemon=True)
    draining.start()
    until(lambda: not own.stats().alive)
    with pytest.raises(Unavailable):
        own.submit(PROMPT, GREEDY)
    assert draining.is_alive()
    fake.go_on.set()
    draining.join(PATIENCE_S)
    assert not draining.is_alive()
    assert ended(handle) == ([7, 8, 6], "length", None)


def test_close_cancels_what_runs(fake: FakeUpstream) -> None:
    with running(fake, max_num_seqs=1) as own:
        first, second = held(fake, own), own.submit(PROMPT, GREEDY)
        own.close()
        assert ended(first) == ([7, 8], "cancelled", None)
        assert ended(second) == ([], "cancelled", None)
        until(lambda: fake.gone == 1)
        assert not own.stats().alive
        with pytest.raises(Unavailable):
            own.submit(PROMPT, GREEDY)
        first.cancel()
