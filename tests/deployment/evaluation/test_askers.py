"""When what the asking threads share is closed."""

from contextlib import suppress
from threading import Barrier, Event, Thread, current_thread

from llama_endpoints.evaluation.targets.askers import Askers

PATIENCE_S = 60


class RefusedError(Exception):
    """Ends a run."""


def test_what_is_shared_stays_open_while_a_call_runs_after_an_error() -> None:
    first, second, closed, both = Event(), Event(), Event(), Barrier(2)

    def ask(answer: Event) -> Thread:
        both.wait(PATIENCE_S)  # (each thread has one)
        assert answer.wait(PATIENCE_S)
        return current_thread()

    with suppress(RefusedError), Askers(2, closed.set) as askers:
        ended, running = askers.submit(ask, first), askers.submit(ask, second)
        raise RefusedError
    first.set()
    ended.result(PATIENCE_S).join(PATIENCE_S)
    assert not closed.is_set()
    second.set()
    running.result(PATIENCE_S).join(PATIENCE_S)
    assert closed.is_set()


def test_what_is_shared_is_closed_at_the_end() -> None:
    closed = Event()
    with Askers(3, closed.set) as askers:
        assert [askers.submit(abs, -number).result(PATIENCE_S) for number in range(5)] == list(range(5))
    assert closed.is_set()
