"""Words in tags: whole after any way through Azure, and never longer than a tag may be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.endpoints.tag_words import LONGEST, gather, spread, without

WORDS = st.lists(st.text("abcdefgh-=0123456789", min_size=1, max_size=40), max_size=60)


@given(words=WORDS)
def test_what_was_spread_is_gathered(words: list[str]) -> None:
    tags = {"team": "search", "was-by": "me", **spread("was", words)}
    assert gather(tags, "was") == words
    assert all(len(value) <= LONGEST < 256 for value in tags.values())
    assert without(tags, ("was",)) == {"team": "search", "was-by": "me"}


def test_no_words_are_an_empty_tag() -> None:
    assert spread("was", []) == {"was": ""}
    assert gather({"was": ""}, "was") == []
    assert gather({}, "was") is None


@pytest.mark.parametrize("gone", ["was-2", "was-3"])
def test_what_lies_behind_a_gap_does_not_count(gone: str) -> None:
    words = [f"{number:0100}" for number in range(7)]
    tags = dict(spread("was", words))
    assert set(tags) == {"was", "was-2", "was-3", "was-4"}
    del tags[gone]
    found = gather(tags, "was")
    assert found is not None
    assert list(found) == words[: len(found)] != words
