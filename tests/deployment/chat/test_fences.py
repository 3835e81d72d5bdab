"""A text in pieces, split into prose and code: nothing is lost, and pieces make no difference."""

from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.chat.fences import FenceSplitter, Kind, Part

LINES = st.lists(
    st.sampled_from(
        [
            "```",
            "```python",
            "````",
            " ```",
            "    ```",
            "``",
            "`a`",
            "x = 1",
            "",
            "\r",
            "```js `",
            "a ```",
            "\u2028",
        ]
    )
)
TEXTS = st.one_of(LINES.map("\n".join), st.text("` \na"))


def split(*pieces: str) -> list[Part]:
    splitter = FenceSplitter()
    return [part for piece in pieces for part in splitter.feed(piece)] + list(splitter.finish())


def joined(parts: list[Part]) -> list[tuple[Kind, str, str]]:
    """Parts without regard to where prose was cut."""
    grouped = groupby(parts, key=lambda part: (part.kind, part.language))
    return [(kind, language, "".join(part.text for part in group)) for (kind, language), group in grouped]


@given(TEXTS, st.lists(st.integers(0, 60)))
def test_pieces_make_no_difference_and_nothing_is_lost(text: str, cuts: list[int]) -> None:
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[begin:end] for begin, end in pairwise(bounds)]
    parts = split(*pieces)
    assert "".join(part.text for part in parts) == text
    assert joined(parts) == joined(split(text))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a\n```python\nx\n```\nb", "x\n"),
        (" ```\nx\ny", "x\ny"),
        ("````\n```\n````\n", "```\n"),
        ("    ```\nx", ""),
        ("a ```\nx", ""),
        ("``` a`b\nx", ""),
    ],
)
def test_code_is_what_stands_between_fences(text: str, code: str) -> None:
    assert "".join(part.text for part in split(text) if part.kind is Kind.CODE) == code


def test_the_language_is_behind_the_fence() -> None:
    assert [part.language for part in split("``` c++ \nx\n")] == ["c++", "c++"]


def test_prose_is_not_held_back_unless_it_may_be_a_fence() -> None:
    splitter = FenceSplitter()
    assert [part.text for part in splitter.feed("a")] == ["a"]
    assert [part.text for part in splitter.feed("`b")] == ["`b"]
    assert list(splitter.feed("\n``")) == [Part(Kind.PROSE, "\n")]
    assert [part.text for part in splitter.feed("c")] == ["``c"]
