"""What a terminal is told: code in colours, and nothing that it would obey."""

from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from llama_endpoints.chat.screen import PlainScreen, TerminalScreen, visible


def shown(*pieces: str, before: str = "", after: str = "", colour: bool = False) -> str:
    file = StringIO()
    system = "standard" if colour else None
    screen = TerminalScreen(
        Console(
            file=file, force_terminal=colour, color_system=system, highlight=False, soft_wrap=True, width=20
        )
    )
    screen.begin(before)
    for piece in pieces:
        screen.piece(piece)
    screen.end(after)
    return file.getvalue()


@given(st.lists(st.text("ab`[] \n\t:/é☺", max_size=30)))
def test_the_text_is_the_models(pieces: list[str]) -> None:
    """Whatever looks like markup, an emoji or a long line."""
    text = "".join(pieces)
    assert shown(*pieces) == (text if text.endswith("\n") or not text else f"{text}\n")


@given(st.text())
def test_no_control_character_reaches_a_terminal(text: str) -> None:
    made = visible(text)
    assert not [sign for sign in made if (sign < " " and sign not in "\n\t") or "\x7f" <= sign <= "\x9f"]
    assert len(made) == len(text)


def test_control_characters_are_shown_as_pictures() -> None:
    assert shown("a\x1b]0;owned\x07b\x9b") == "a␛]0;owned␇b\ufffd\n"
    assert "\x1b]0" not in shown("```\n\x1b]0;owned\x07\n```\n", colour=True)


def test_code_is_in_colours_by_what_precedes_it() -> None:
    inside = shown('```python\n"""\ndef f\n', colour=True).splitlines()[2]
    outside = shown("```python\nx\ndef f\n", colour=True).splitlines()[2]
    assert inside != outside
    assert "\x1b[" in outside


def test_an_unknown_language_is_plain() -> None:
    assert shown("```nonsense\nx\n```\n") == "```nonsense\nx\n```\n"


def test_what_surrounds_an_infilled_text_is_shown() -> None:
    assert shown("b", before="a", after="c") == "abc\n"
    assert shown("b", before="a", after="c", colour=True) == "\x1b[2ma\x1b[0mb\x1b[2mc\x1b[0m\n"


def test_a_pipe_gets_the_exact_text(capsys: pytest.CaptureFixture[str]) -> None:
    screen = PlainScreen()
    screen.begin("before")
    screen.piece("a\x1b[0m")
    screen.piece("b")
    screen.end("after")
    screen.error("wrong")
    assert capsys.readouterr() == ("a\x1b[0mb\n", "Error: wrong\n")
