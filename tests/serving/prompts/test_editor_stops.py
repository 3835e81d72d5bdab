"""Where an infilling text ends for an editor: a table of gaps, and the same result however the text is divided."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llama_serving.prompts.editor_stops import EditorStops, Gap, _balance
from llama_serving.prompts.stops import StopFinder
from llama_serving.prompts.text_end import Patience, TextEnd

INSIDE: Final = "def f(x):\n    "
BELOW: Final = "\n    return y\n"


def ended(
    prefix: str, suffix: str, text: str, *, at: Sequence[int] = (), cut_off: bool = False, min_indent: int = 0
) -> str:
    """The text that is shown, given in pieces."""
    stops = EditorStops(Gap.of(prefix, suffix, min_indent))
    borders = [0, *sorted(min(cut, len(text)) for cut in at), len(text)]
    shown = ""
    for start, end in pairwise(borders):
        if not stops.found:
            shown += stops.push(text[start:end])
    return shown + stops.finish(cut_off=cut_off)


# --- the suffix -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "suffix", "text", "shown"),
    [
        # the line below comes again
        (INSIDE, BELOW, "y = x\n    return y\n", "y = x"),
        (INSIDE, BELOW, "y = x\n    return y", "y = x"),
        (INSIDE, BELOW, "y = x\n\n\n    return y\n", "y = x"),
        (INSIDE, "\n\n\n    return y\n", "y = x\n\n    return y\n", "y = x"),
        (INSIDE, BELOW, "return y\n", ""),
        ("def f(x):\n", "\n    return y", "    return y\n", ""),
        # another line that only begins like it, or is indented in another way, stays
        (INSIDE, BELOW, "y = x\n    return yes", "y = x\n    return yes"),
        (INSIDE, BELOW, "if x:\n        return y\n    y = 1", "if x:\n        return y\n    y = 1"),
        # a whole line follows the gap: its line break stays in the text
        ("def f(x):\n", "    return y\n", "    y = x\n    return y\n", "    y = x\n"),
        (INSIDE, "return y\n", "y = x\n    return y\n", "y = x\n    "),
        # the rest of the gap's line
        ("print(", ")\n", "x)\n", "x"),
        ("print(", ")\n", "foo(x))", "foo(x)"),
        ("print(", ")\n", "foo(x)", "foo(x)"),
        ("print(", ")\n", "x) + (y", "x) + (y"),
        ('print("', '")\n', 'hello")\nprint()', "hello"),
        ("foo(", ")\n", "\n    a,\n    b,\n)\n", "\n    a,\n    b,\n"),
        ("def f(x)", ":\n    return x", " -> int:\n", " -> int"),
        ("y = ", "x\n", "2 * x\n", "2 * "),
        ("y = ", "x\n", "box\n", "bo"),
        ("    ", " += c\n", "out += c\n", "out"),
        ("    return le", ")\n", "n(a)\n", "n(a"),
        ("a = abs", "a)\n", "(a)\n", "("),
        ("foo(\n    ", ")\n", "bar(a)", "bar(a)"),
        ("foo(\n    ", ")\n", "bar(a))", "bar(a)"),
        ("int f() {\n  g(", ");\n", "h(a));\n", "h(a)"),
        ("int f() {\n  g(", ");\n", "h(a)", "h(a)"),
        ("a = [", "]\n", "b[0], c]\n", "b[0], c"),
        # brackets: those that the text has opened are its own
        ("void f() {\n  ", "\n}\n", "if (a) {\n  }\n}\n", "if (a) {\n  }"),
        ("{\n  a", "\n}\n", "();\n}\n\nint b;\n", "();"),
    ],
)
def test_it_ends_where_it_meets_the_suffix(prefix: str, suffix: str, text: str, shown: str) -> None:
    assert ended(prefix, suffix, text) == shown
    assert ended(prefix, suffix, text, at=range(len(text))) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("y = x\n    ret", "y = x"),
        ("y = x\n    return y", "y = x"),
        ("y = x\n    rest", "y = x\n    rest"),
        ("y", "y"),
    ],
)
def test_a_text_that_is_cut_off_has_no_beginning_of_the_suffix(text: str, shown: str) -> None:
    assert ended(INSIDE, BELOW, text, cut_off=True) == shown


def test_a_text_that_ends_by_itself_keeps_its_end() -> None:
    assert ended(INSIDE, BELOW, "y = x\n    ret") == "y = x\n    ret"
    assert ended(INSIDE, BELOW, "y = x\n\n") == "y = x\n\n"


# --- the block ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "text", "shown"),
    [
        (INSIDE, "return x\n\n\ndef g(y):\n    return y\n", "return x"),
        (INSIDE, "if x:\n        return x\n    return 1\n\nx = f(1)\n", "if x:\n        return x\n    return 1"),
        ("def f(x):\n", "    return x\n\n\ndef g(y):\n", "    return x"),
        ("class A:\n    def f(self):", "\n        pass\n\n    def g(self):\n        pass\n\nA()", "\n        pass\n\n    def g(self):\n        pass"),
        # at the left edge: behind an indented block
        ("def f(x):", "\n    return x\n\n\ndef g(y):\n    return y\n", "\n    return x"),
        ("if x:", "\n    a()\nelse:\n    b()\nc()\n", "\n    a()\nelse:\n    b()"),
        ("if x:", "\n    a()\nelif y:\n    b()\nelephant()\n", "\n    a()\nelif y:\n    b()"),
        ("import os\n", "import re\nx = 1\n", "import re\nx = 1\n"),
        ("", "def f():\n    return 1\n\n\nprint(f())\n", "def f():\n    return 1"),
        # brackets that are open are not left
        (INSIDE, "return foo(\n1,\n)\nx\n", "return foo(\n1,\n)"),
        ("int f() {\n  ", "return 1;\n}\n\nint g() {\n", "return 1;"),
        ("int f() ", "{\n  return 1;\n}\nint g;\n", "{\n  return 1;\n}"),
        (INSIDE, 'return ":("\nx = 1', 'return ":("'),
    ],
)  # fmt: skip
def test_it_ends_with_its_block(prefix: str, text: str, shown: str) -> None:
    assert ended(prefix, "", text) == shown
    assert ended(prefix, "", text, at=range(len(text))) == shown


def test_a_client_may_know_the_indentation() -> None:
    text = "\n        x = 1\n    y = 1\n"
    assert ended("def f():", "", text, min_indent=8) == "\n        x = 1"
    assert ended("def f():", "", text, min_indent=4) == text


def test_a_line_that_follows_the_gap_needs_a_line_break() -> None:
    assert ended("def f(x):\n", "    z()\n", "    y()\ng()\n") == "    y()\n"


def test_a_line_of_megabytes_is_not_looked_for() -> None:
    """Looking for it at each token would stop the engine: the suite's time limit is the assertion."""
    line = "(" * 1_000_000
    for suffix in (line, f"\n{line}\n"):
        stops = EditorStops(Gap.of(INSIDE, suffix))
        assert "".join(stops.push("(" * 10) for _ in range(2_000)) + stops.finish() == "(" * 20_000


# --- any text -------------------------------------------------------------------------------------

code = st.text("ab ()\n:", max_size=24) | st.lists(
    st.sampled_from(["\n", "    ", "return y", "else:", "x(", ")", "}", " ", "\n\n", "if a:"]), max_size=8
).map("".join)
cuts = st.lists(st.integers(0, 60), max_size=8)


@given(prefix=code, suffix=code, text=code, at=cuts, cut_off=st.booleans())
@example(prefix="a:", suffix="", text="\n  b\nel\n", at=[6], cut_off=False)
def test_the_division_of_the_text_does_not_matter(
    prefix: str, suffix: str, text: str, at: list[int], *, cut_off: bool
) -> None:
    shown = ended(prefix, suffix, text, cut_off=cut_off)
    assert text.startswith(shown)
    assert ended(prefix, suffix, text, at=at, cut_off=cut_off) == shown
    assert ended(prefix, suffix, text, at=range(len(text)), cut_off=cut_off) == shown


@given(prefix=code, suffix=code, text=code)
def test_the_line_below_never_comes_again(prefix: str, suffix: str, text: str) -> None:
    shown = ended(prefix, suffix, f"{text}\n{suffix}", cut_off=True)
    below = next((line.rstrip() for line in suffix.split("\n")[1:] if line.strip()), None)
    if below is not None and below[:1] not in ")]}" and "(" not in text:
        assert below not in [line.rstrip() for line in shown.split("\n")[1:]]


@given(text=code, at=cuts, stop=st.sampled_from(["b", "return", "\n\n", "else:"]))
def test_stop_strings_and_both_together(text: str, at: list[int], stop: str) -> None:
    def shown(cut_at: Sequence[int]) -> str:
        end = TextEnd(StopFinder([stop]), EditorStops(Gap.of(INSIDE, BELOW)))
        borders = [0, *sorted(min(cut, len(text)) for cut in cut_at), len(text)]
        out = "".join(end.push(text[a:b]) for a, b in pairwise(borders))
        return out + end.finish()

    assert stop not in shown([])
    assert shown(at) == shown([])


def test_patience_runs_out_behind_a_line_break() -> None:
    now = 10.0
    patience = Patience(1.0, clock=lambda: now)
    assert not patience.is_over("a")
    now = 20.0
    assert not patience.is_over("b")
    assert patience.is_over("c\n")
    assert patience.is_over("d")
    assert not Patience(None).is_over("\n")


def test_quotes_around_the_gap_are_looked_at_once() -> None:
    """(Looked at from each of them on, these lines would take hours.)"""
    marks = '\\"' * 300_000
    assert _balance(f"({marks}", "()") == 1
    assert _balance("f('(', \"[(\", x[0]", "()[]") == 1
    assert _balance("f(x)  # don't (", "()") == 1
