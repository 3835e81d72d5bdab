"""When vLLM is restarted, and when it is given up."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from llama_serving.engine.vllm import supervisor
from llama_serving.engine.vllm.supervisor import Supervisor, pause_s
from llama_serving.errors import SetupError
from tests.support.calls import until
from tests.support.draws import PATIENCE_S

SEVERAL = 12


class Run:
    """A vLLM that ends when the test says so."""

    def __init__(self) -> None:
        self.code: int | None = None
        self.over = threading.Event()
        self.told: list[str] = []

    def wait(self, timeout_s: float | None = None) -> bool:
        ended = self.over.wait(min(0.01, timeout_s or PATIENCE_S) if timeout_s else PATIENCE_S)
        self.code = 137 if ended else None
        return ended

    def end(self) -> None:
        self.told.append("end")
        self.over.set()

    def kill(self) -> None:
        self.told.append("kill")
        self.over.set()

    def cause(self) -> str:
        return "ValueError: no memory"

    def progress(self) -> str:
        return "loading"

    def note_requests(self) -> None:
        self.told.append("requests")


class Runs:
    """All runs that were started."""

    def __init__(self) -> None:
        self.all: list[Run] = []
        self.started = threading.Semaphore(0)
        self.refused: Exception | None = None

    def launch(self) -> Run:
        if self.refused is not None:
            raise self.refused
        self.all.append(Run())
        self.started.release()
        return self.all[-1]

    def next(self) -> Run:
        assert self.started.acquire(timeout=PATIENCE_S)
        return self.all[-1]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_S", 1e-4)


@contextmanager
def supervised(runs: Runs, *, start_s: float = PATIENCE_S, on_death: Callable[[], None] = lambda: None) -> Iterator[Supervisor]:  # fmt: skip
    made = Supervisor(runs.launch, start_s=start_s, on_death=on_death)
    try:
        yield made
    finally:
        made.close()


def test_pauses_grow_and_end_growing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert [pause_s(n) for n in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert pause_s(10_000) == 60


def test_a_healthy_one_that_dies_is_started_again() -> None:
    runs, deaths = Runs(), list[int]()
    with supervised(runs, on_death=lambda: deaths.append(1)) as made:
        for _ in range(SEVERAL):
            run = runs.next()
            made.healthy()
            assert run.told == ["requests"]
            run.over.set()
        runs.next()
        assert made.lost is None
    assert len(deaths) == SEVERAL
    assert runs.all[-1].told == ["end"]


def test_one_that_was_never_healthy_is_not_started_again() -> None:
    runs = Runs()
    with supervised(runs) as made:
        runs.next().over.set()
        until(lambda: made.lost)
        assert made.lost == "vLLM has ended (exit code 137) before it was healthy: ValueError: no memory"
    assert len(runs.all) == 1


def test_failed_starts_are_counted_and_never_the_end() -> None:
    runs = Runs()
    with supervised(runs) as made:
        runs.next()
        made.healthy()
        runs.all[-1].over.set()
        for number in range(SEVERAL):
            run = runs.next()
            assert made.failures == number
            run.over.set()
        runs.next()
        assert (made.failures, made.lost) == (SEVERAL, None)
        made.healthy()
        runs.all[-1].over.set()
        runs.next()
        assert made.failures == 0


def test_one_that_does_not_become_healthy_in_time_is_killed() -> None:
    runs = Runs()
    with supervised(runs, start_s=0.02) as made:
        run = runs.next()
        until(lambda: made.lost)
        assert run.told == ["kill"]


@pytest.mark.parametrize("refused", [OSError(12, "no memory"), RuntimeError("can't start new thread")])
def test_one_that_can_not_be_started_is_tried_again(refused: Exception) -> None:
    runs = Runs()
    with supervised(runs) as made:
        run = runs.next()
        made.healthy()
        runs.refused = refused
        run.over.set()
        until(lambda: made.failures > 2)
        runs.refused = None
        runs.next()
        assert made.lost is None


def test_a_first_start_that_fails_is_raised() -> None:
    runs = Runs()
    runs.refused = SetupError("there is none")
    with pytest.raises(SetupError, match="there is none"):
        Supervisor(runs.launch, start_s=1, on_death=lambda: None)
