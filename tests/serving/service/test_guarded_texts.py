"""Texts of a service with guards: generate, stream, agenerate and astream, whatever the pieces are that tokens arrive in."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_serving.contract.content_filter import Finding
from llama_serving.contract.request import (
    Completion,
    Delta,
    Generation,
    Infill,
    Parameters,
    ReplyShape,
    Request,
)
from llama_serving.errors import BadRequest, GuardUnavailable, ServingError
from llama_serving.service.guards.guard import Passage, Stage
from llama_serving.service.guards.guards import Guards, Installed
from llama_serving.service.guards.held_stream import Windows
from llama_serving.service.guards.rules import Rules
from llama_serving.service.service import Service
from tests.support.calls import until
from tests.support.scripted import nano_tokenizer, scripted

MARK = "seKret"
TEXT = "def f(x):\n    return x + 1  # é ☺ 🦙\n" * 4
EVIL = TEXT + MARK + TEXT
SMALL = Windows(window=16, overlap=8, max_delay_s=60.0)


class Watching:
    """Blocks what has `MARK`, and remembers what it has seen."""

    def __init__(self, *, filtered: bool = True) -> None:
        self.seen = 0
        self.threads = set[str]()
        self._filtered = filtered

    def check(self, passage: Passage) -> list[Finding]:
        self.threads.add(threading.current_thread().name)
        if MARK in passage.text:
            return [Finding("mark", self._filtered)]
        if passage.stage is Stage.TEXT:
            self.seen = max(self.seen, len(passage.text))
        return []


def guards(guard: Any, *stages: Stage, windows: Windows = SMALL, **options: Any) -> Guards:
    return Guards([Installed("watching", guard, frozenset(stages or Stage), **options)], windows)


def request(*prompts: str, **parameters: Any) -> Request:
    inputs = tuple(map(Completion, prompts or ("def f",)))
    given = Parameters(max_new_tokens=400, **parameters)
    return Request(inputs, given, ReplyShape.COMPLETION, tuple(f"prompt[{i}]" for i in range(len(inputs))), "")


def streamed(service: Service, asked: Request, take: Callable[[Delta], None] = lambda _: None) -> list[Delta]:
    deltas = []
    for delta in service.stream(replace(asked, parameters=replace(asked.parameters, stream=True))):
        take(delta)
        deltas.append(delta)
    return deltas


def astreamed(service: Service, asked: Request, take: Callable[[Delta], None] = lambda _: None) -> list[Delta]:
    async def run() -> list[Delta]:
        deltas = []
        async for delta in service.astream(asked):
            take(delta)
            deltas.append(delta)
        return deltas

    return asyncio.run(run())


def generated(service: Service, asked: Request) -> Sequence[Generation]:
    return service.generate(asked)[0]


def agenerated(service: Service, asked: Request) -> Sequence[Generation]:
    return asyncio.run(service.agenerate(asked))[0]


STREAMS = pytest.mark.parametrize("stream", [streamed, astreamed])
WHOLE = pytest.mark.parametrize("whole", [generated, agenerated])


@WHOLE
def test_a_text_that_passes_is_unchanged(whole: Any) -> None:
    watching = Watching()
    (generation,) = whole(scripted(TEXT, guards=guards(watching)), request(logprobs=0))
    assert (generation.text, generation.finish_reason, generation.findings) == (TEXT, "stop", ())
    (bare,) = whole(scripted(TEXT), request(logprobs=0))
    assert generation == bare
    assert watching.seen == len(TEXT)


@WHOLE
def test_a_blocked_text_is_empty_and_says_so(whole: Any) -> None:
    service = scripted(EVIL, TEXT, guards=guards(Watching(), Stage.TEXT))
    asked = replace(request(num_return_sequences=2, logprobs=2), return_token_ids=True)
    blocked, passed = whole(service, asked)
    assert (blocked.text, blocked.full_text, blocked.finish_reason) == ("", "", "content_filter")
    assert (blocked.logprobs, blocked.token_ids, blocked.stopped_by) == ((), (), "")
    assert blocked.findings == (Finding("mark", filtered=True),)
    assert (passed.text, passed.finish_reason) == (TEXT, "stop")


@WHOLE
def test_the_prompt_around_a_blocked_text_is_its_front_alone(whole: Any) -> None:
    service = scripted(EVIL, guards=guards(Watching(), Stage.TEXT))
    asked = replace(request(return_full_text=True), inputs=(Infill("def f(", "\n    return x"),))
    (blocked,) = whole(service, asked)
    assert blocked.full_text == "def f("


@pytest.mark.parametrize("expose", [{"return_token_ids": True}, {}])
@STREAMS
@settings(max_examples=25, deadline=None)
@given(
    pieces=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    window=st.integers(1, 60),
    overlap=st.integers(len(MARK), 60),
    at=st.integers(0, len(TEXT)),
    evil=st.booleans(),
)
def test_no_unchecked_character_leaves(
    *, stream: Any, expose: dict[str, bool], pieces: list[int], window: int, overlap: int, at: int, evil: bool
) -> None:
    """Neither as text nor as tokens, however they arrive, and of what is blocked nothing leaves."""
    said = TEXT[:at] + MARK + TEXT[at:] if evil else TEXT
    watching = Watching()
    service = scripted(said, guards=guards(watching, windows=Windows(window, overlap, 60.0)), pieces=pieces)
    out, ids = "", list[int]()

    def take(delta: Delta) -> None:
        nonlocal out
        out += delta.text
        ids.extend(delta.token_ids)
        assert len(out) <= watching.seen
        decoded = b"".join(map(nano_tokenizer().piece, ids))
        assert decoded == said.encode()[: len(decoded)]
        assert len(decoded) <= len(out.encode())

    deltas = stream(service, replace(request(logprobs=0, stream=True), **expose), take)
    last = deltas[-1].generation
    assert last is not None
    assert sum(delta.prompt_token_ids is not None for delta in deltas) == (1 if ids else 0)
    if not evil:
        assert (out, last.finish_reason, last.text) == (TEXT, "stop", TEXT)
        assert not expose or tuple(ids) == last.token_ids
        return
    assert last.finish_reason == "content_filter"
    assert out == last.text == said[: len(out)]
    assert len(out) <= at
    shown = b"".join(map(nano_tokenizer().piece, last.token_ids))
    assert out.encode().startswith(shown)
    assert len(last.logprobs or ()) <= len(last.token_ids)
    assert service.engine.handles[0].cancelled  # type: ignore[attr-defined]


@pytest.mark.parametrize("run", [generated, agenerated, streamed, astreamed])
def test_tokens_that_a_stop_string_cuts_are_checked_whole(run: Any) -> None:
    """The ids of a token tell the text behind the stop string, which is in it."""
    whole = Installed("whole", Rules("whole", deny=["return"], patterns={}), frozenset([Stage.TEXT]))
    assert b" return" in map(nano_tokenizer().piece, nano_tokenizer().encode_continuation("x return y"))
    for exposed, reason in ((True, "content_filter"), (False, "stop")):
        service = scripted("x return y", guards=Guards([whole]))
        asked = request(stop=("et",), stream=run in (streamed, astreamed) or None)
        last = run(service, replace(asked, return_token_ids=exposed))[-1]
        generation = last.generation if isinstance(last, Delta) else last
        assert generation.finish_reason == reason
        shown = b"".join(map(nano_tokenizer().piece, generation.token_ids))
        assert (b"return" in shown) is not exposed


@pytest.mark.parametrize("run", [generated, agenerated, streamed, astreamed])
def test_a_blocked_prompt_is_refused_before_a_token(run: Any) -> None:
    service = scripted(TEXT, guards=guards(Watching(), Stage.PROMPT))
    asked = request(f"say {MARK}", stream=run in (streamed, astreamed) or None)
    with pytest.raises(BadRequest) as refused:
        run(service, asked)
    assert (refused.value.code, refused.value.param) == ("content_filter", "prompt[0]")
    assert "`mark`" in refused.value.message
    assert MARK not in refused.value.message
    assert service.engine.stats().sequences == 0


def test_the_index_of_a_blocked_prompt_is_named() -> None:
    with pytest.raises(BadRequest) as refused:
        generated(scripted(TEXT, guards=guards(Watching())), request("a", "b", MARK))
    assert (refused.value.index, refused.value.param) == (2, "prompt[2]")


@STREAMS
def test_sequences_and_the_prompt_around_them(stream: Any) -> None:
    """One of three is blocked; the suffix comes behind the others alone."""
    asked = replace(
        request(num_return_sequences=3, return_full_text=True, stream=True),
        inputs=(Infill("def f(", "\n    end"),),
    )
    service = scripted(TEXT, EVIL, TEXT, guards=guards(Watching(), Stage.TEXT))
    texts, ends = ["", "", ""], {}
    for delta in stream(service, asked):
        texts[delta.index] += delta.text
        if delta.generation is not None:
            ends[delta.index] = delta.generation
    assert texts[0] == texts[2] == f"def f({TEXT}\n    end"
    assert f"def f({EVIL}".startswith(texts[1])
    assert [ends[i].finish_reason for i in range(3)] == ["stop", "content_filter", "stop"]
    assert [ends[i].full_text for i in range(3)] == texts


class Failing:
    """Fails in a way of its own, after so many good answers."""

    def __init__(self, fail: Callable[[], Any], after: int = 0) -> None:
        self._fail, self._left = fail, after

    def check(self, passage: Passage) -> Any:
        self._left -= 1
        return [] if self._left >= 0 else self._fail()


def _raise(error: BaseException) -> Any:
    raise error


NEVER = threading.Event()
FAILURES: dict[str, Callable[[], Any]] = {
    "raises": lambda: _raise(ValueError(MARK)),
    "exits": lambda: _raise(SystemExit(MARK)),
    "hangs": NEVER.wait,
    "says nothing": lambda: None,
    "says yes": lambda: True,
    "says something else": lambda: ["no finding"],
    "says an object": dict,
}


@pytest.mark.parametrize("how", FAILURES)
@pytest.mark.parametrize("run", [generated, agenerated, streamed, astreamed])
def test_a_guard_that_fails_refuses(run: Any, how: str, caplog: pytest.LogCaptureFixture) -> None:
    service = scripted(TEXT, guards=guards(Failing(FAILURES[how]), Stage.TEXT, timeout_s=0.2))
    out = list[str]()
    arguments = (lambda delta: out.append(delta.text),) if run in (streamed, astreamed) else ()
    with pytest.raises(GuardUnavailable) as refused:
        run(service, request(stream=bool(arguments) or None), *arguments)
    assert (refused.value.status, refused.value.code) == (503, "guard_unavailable")
    assert refused.value.retry_after
    assert not "".join(out)
    assert MARK not in caplog.text
    assert [(one.errors, one.blocks) for one in service.guards.counts()] == [(1, 0)]


@STREAMS
def test_a_guard_that_fails_in_the_middle_keeps_back_what_is_held(stream: Any) -> None:
    service = scripted(TEXT, guards=guards(Failing(FAILURES["raises"], after=2), Stage.TEXT))
    out = list[str]()
    with pytest.raises(ServingError):
        stream(service, request(stream=True), lambda delta: out.append(delta.text))
    assert 0 < len("".join(out)) < len(TEXT)
    assert TEXT.startswith("".join(out))
    assert service.engine.handles[0].cancelled  # type: ignore[attr-defined]


@pytest.mark.parametrize("run", [generated, agenerated])
def test_on_error_allow_lets_it_pass(run: Any) -> None:
    options = {"allow_on_error": True, "timeout_s": 0.2}
    service = scripted(TEXT, guards=guards(Failing(FAILURES["hangs"]), **options))
    assert run(service, request())[0].text == TEXT


def test_what_one_guard_blocks_stays_blocked_if_another_fails() -> None:
    several = [Installed("broken", Failing(FAILURES["raises"])), Installed("watching", Watching())]
    (blocked,) = generated(scripted(EVIL, guards=Guards([replace(one, stages=frozenset([Stage.TEXT])) for one in several])),
                           request())  # fmt: skip
    assert blocked.finish_reason == "content_filter"


@STREAMS
def test_a_stalled_text_leaves_after_the_delay(stream: Any) -> None:
    """The first token has come and the next one does not; the end of the script is far away."""
    windows = Windows(window=1000, overlap=100, max_delay_s=0.05)
    service = scripted("abc def", guards=guards(Watching(), windows=windows), pause_s=0.3)
    out = list[tuple[str, bool]]()

    def take(delta: Delta) -> None:
        out.append((delta.text, service.engine.handles[0].is_over))  # type: ignore[attr-defined]

    stream(service, request(stream=True), take)
    assert any(text and not over for text, over in out)


def test_streams_do_not_wait_for_each_other() -> None:
    """While the guard hangs on one text, another one passes."""
    hanging = threading.Event()

    class HangsOnMark:
        def check(self, passage: Passage) -> list[Finding]:
            if MARK in passage.text:
                hanging.set()
                NEVER.wait(30)
            return []

    service = scripted(EVIL, TEXT, guards=guards(HangsOnMark(), Stage.TEXT, timeout_s=30.0))

    async def both() -> str:
        first = asyncio.create_task(service.agenerate(request()))
        while not hanging.is_set():
            await asyncio.sleep(0.01)
        ((second,),) = await service.agenerate(request())
        assert not first.done()
        first.cancel()
        return second.text

    assert asyncio.run(both()) == TEXT


def test_an_annotation_passes_and_is_reported() -> None:
    service = scripted(EVIL, guards=guards(Watching(filtered=False), Stage.TEXT))
    for generation in (generated(service, request())[0], streamed(service, request())[-1].generation):
        assert generation is not None
        assert (generation.text, generation.finish_reason) == (EVIL, "stop")
        assert generation.findings == (Finding("mark", filtered=False),)


def test_guards_run_in_threads_of_their_own() -> None:
    watching = Watching()
    astreamed(scripted(TEXT, guards=guards(watching)), request(stream=True))
    assert watching.threads == {"guard watching"}


def few_threads(monkeypatch: pytest.MonkeyPatch, *installed: Installed) -> Guards:
    monkeypatch.setattr("llama_serving.service.guards.guards.MOST_THREADS", 2)
    return Guards(installed, SMALL)


def passage(text: str = "a") -> list[Passage]:
    return [Passage(Stage.TEXT, text)]


class Counting:
    """Passes all, and waits for `go` before."""

    def __init__(self) -> None:
        self.go, self.begun = threading.Event(), 0

    def check(self, passage: Passage) -> list[Finding]:
        self.begun += 1
        self.go.wait(60)
        return []


def test_more_checks_than_threads_wait_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting()
    two = few_threads(monkeypatch, Installed("counting", counting, timeout_s=60))

    async def all_at_once() -> list[Any]:
        running = [asyncio.create_task(two.acheck(passage() * 10)) for _ in range(20)]
        while counting.begun < 2:
            await asyncio.sleep(0.001)
        counting.go.set()
        return await asyncio.gather(*running)

    assert asyncio.run(all_at_once()) == [[()] * 10] * 20
    assert [(one.checks, one.errors) for one in two.counts()] == [(200, 0)]


@pytest.mark.parametrize("how", ["check", "acheck"])
def test_a_check_that_waited_for_a_thread_in_vain_refuses_and_never_runs(how: str, monkeypatch: pytest.MonkeyPatch,
                                                                         caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    counting = Counting()
    two = few_threads(monkeypatch, Installed("counting", counting, timeout_s=0.1))
    for _ in range(4):
        with pytest.raises(GuardUnavailable):
            two.check(passage()) if how == "check" else asyncio.run(two.acheck(passage()))
    until(lambda: not two._pools["counting"].num_waiting)
    assert (counting.begun, two.counts()[0].errors) == (2, 4)
    counting.go.set()
    assert two.check(passage()) == [()]
    assert counting.begun == 3
    assert "the guard counting failed (took more than 0.1 s)" in caplog.text


def test_a_guard_that_hangs_leaves_the_others_their_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = Installed("hangs", Failing(FAILURES["hangs"]), allow_on_error=True, timeout_s=0.05)
    both = few_threads(monkeypatch, hanging, Installed("watching", Watching(), timeout_s=60))
    for _ in range(5):
        assert both.check(passage(MARK)) == [(Finding("mark", filtered=True),)]
        assert both.check(passage("fine")) == [()]
    assert [(one.name, one.errors, one.blocks) for one in both.counts()] == [
        ("hangs", 10, 0),
        ("watching", 0, 5),
    ]


def test_a_system_without_threads_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    one = few_threads(monkeypatch, Installed("counting", Counting(), timeout_s=60))

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(GuardUnavailable):
            one.check(passage())
    one._installed[0].guard.go.set()  # type: ignore[attr-defined]
    assert one.check(passage()) == [()]
