"""The loop with a model that is told what to do: Ctrl-C, errors in the middle, what ends it."""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llama_endpoints.chat.conversation import Conversation
from llama_endpoints.chat.loop import talk
from llama_endpoints.chat.model import Body, Events, Refused


class Scripted:
    """A model whose answer is a generator's."""

    name = "scripted"
    capabilities = ("completion", "infilling", "chat")

    def __init__(self, script: Callable[[], Iterator[str]]) -> None:
        self.script = script

    def stream(self, body: Body) -> Events:
        del body
        for text in self.script():
            yield {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


class Screen:
    """What was shown, as a list."""

    def __init__(self, at_end: Callable[[], None]) -> None:
        self.shown: list[str] = []
        self.at_end = at_end

    def begin(self, before: str) -> None:
        self.shown.append("begin" + before)

    def piece(self, text: str) -> None:
        self.shown.append(text)

    def end(self, after: str) -> None:
        self.shown.append("end" + after)
        self.at_end()

    def note(self, text: str) -> None:
        self.shown.append(f"note: {text}")

    error = note


class Typed:
    """What is typed; an exception is raised."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self._lines = iter(lines)

    def read(self) -> str:
        line = next(self._lines, EOFError)
        if isinstance(line, str):
            return line
        raise line


def run(
    script: Callable[[], Iterator[str]],
    *lines: Any,
    interactive: bool = True,
    at_end: Callable[[], None] = lambda: None,
) -> tuple[bool, list[str], Conversation]:
    screen, conversation = Screen(at_end), Conversation(chats=True)
    whole = talk(Scripted(script), conversation, Typed(*lines), screen, interactive=interactive)
    return whole, screen.shown, conversation


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    """What Python starts with, whatever ran before; and it is there again at the end."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_ctrl_c_again_while_an_answer_is_stopped_has_no_effect() -> None:
    def script() -> Iterator[str]:
        yield "some "
        signal.raise_signal(signal.SIGINT)
        yield "text"

    whole, shown, conversation = run(script, "hello", at_end=lambda: signal.raise_signal(signal.SIGINT))
    assert shown == ["begin", "some ", "end", "note: stopped"]
    assert conversation.turns[-1]["content"] == "some "
    assert whole


def test_an_ignored_signal_stays_ignored() -> None:
    def script() -> Iterator[str]:
        signal.raise_signal(signal.SIGINT)
        yield "text"

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    whole, shown, _ = run(script, "hello", interactive=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert (whole, shown) == (True, ["begin", "text", "end"])


def test_an_answer_that_breaks_off_is_kept() -> None:
    def script() -> Iterator[str]:
        yield "half"
        raise Refused("The engine died.")

    whole, shown, conversation = run(script, "hello")
    assert shown == ["begin", "half", "end", "note: The engine died."]
    assert (whole, conversation.turns[-1]["content"]) == (False, "half")


def test_a_dialog_that_is_too_long_is_told_the_way_out() -> None:
    def script() -> Iterator[str]:
        if asked.append("x") or len(asked) > 1:
            raise Refused("Too long.", "context_length_exceeded")
        yield "text"

    asked: list[str] = []
    _, shown, _ = run(script, "hello", "again")
    assert shown[-1] == "note: Too long. /undo and /new make the dialog shorter."


def test_ctrl_c_right_behind_an_answer_ends_nothing() -> None:
    def end() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt  # as if the answer's own handler were gone already

    whole, shown, _ = run(lambda: iter(["text"]), "hello", "/undo", at_end=end)
    assert shown == ["begin", "text", "end", "note: Ctrl-D or /exit ends.", "note: The dialog is empty."]
    assert not whole


def test_ctrl_c_at_the_prompt_ends_nothing_but_a_pipe() -> None:
    whole, shown, _ = run(lambda: iter(()), KeyboardInterrupt, "/exit", "lost")
    assert (whole, shown) == (True, ["note: Ctrl-D or /exit ends."])
    with pytest.raises(KeyboardInterrupt):
        run(lambda: iter(()), KeyboardInterrupt, interactive=False)


def test_a_mistake_makes_the_end_a_failure() -> None:
    whole, shown, _ = run(lambda: iter(["text"]), "/nonsense", " ", "hello", interactive=False)
    assert not whole
    assert shown[1:] == ["begin", "text", "end"]


def test_a_completion_is_shown_behind_its_text_and_continued_without_it() -> None:
    _, shown, conversation = run(
        lambda: iter(["b"]), "/complete a", "/more", "/infill x<FILL_ME>y", interactive=False
    )
    assert shown == ["begina", "b", "end", "begin", "b", "end", "beginx", "b", "endy"]
    assert conversation.last_text == "abb"
