"""Patterns are rewritten to an equal one that every engine reads alike; Python's own engine is the oracle, and reads the result too."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_serving.constraints import patterns

ALPHABET = "ab1_ \n-\u2028é\U0001f999٣"
TEXTS = st.text(ALPHABET, max_size=6)
ATOMS = st.sampled_from(
    ["a", "b", "1", "é", "\U0001f999", ".", r"\.", r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", "[ab]", "[^ab]", "[a-c1]", r"[\d_]", r"[^\d]",
     r"[^\w]", r"[^\W]", r"[\S1]", r"[^\s-]", r"\x61", r"\u00e9", r"\n", "[-a]", "[a-]"]
)  # fmt: skip


def _bigger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    group = inner.map(lambda one: f"({one})") | inner.map(lambda one: f"(?:{one})")
    times = st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{0,}", "*?"])
    return (
        st.lists(inner, min_size=2, max_size=3).map("".join)
        | st.lists(inner, min_size=2, max_size=3).map(lambda ones: f"(?:{'|'.join(ones)})")
        | st.tuples(group, times).map("".join)
    )


PATTERNS = st.recursive(ATOMS, _bigger, max_leaves=6)
EDGED = st.tuples(st.sampled_from(["", "^"]), PATTERNS, st.sampled_from(["", "$", r"\Z"])).map("".join)


@given(PATTERNS, TEXTS)
def test_what_matches_the_result_matches_the_pattern(pattern: str, text: str) -> None:
    if re.fullmatch(patterns.whole(pattern), text):
        assert re.fullmatch(pattern, text)


@given(EDGED, EDGED, TEXTS)
def test_what_has_the_result_has_the_pattern(one: str, other: str, text: str) -> None:
    pattern = f"{one}|({other})"
    if re.fullmatch(patterns.found(pattern), text):
        assert re.search(pattern, text)


@given(st.recursive(st.sampled_from(["a", "b", "[ab]", "[^a]", r"\x62", "é"]), _bigger, max_leaves=6), TEXTS)
def test_nothing_is_lost_where_all_read_it_alike(pattern: str, text: str) -> None:
    assert bool(re.fullmatch(patterns.whole(pattern), text)) == bool(re.fullmatch(pattern, text))
    assert bool(re.fullmatch(patterns.found(pattern), text)) == bool(re.search(pattern, text))


@given(PATTERNS, TEXTS)
def test_the_result_is_read_as_it_is(pattern: str, text: str) -> None:
    once = patterns.whole(pattern)
    assert bool(re.fullmatch(patterns.whole(once), text)) == bool(re.fullmatch(once, text))


@given(st.lists(st.text("ab\u2028", max_size=3), max_size=4), st.text("abc\u2028", max_size=4))
def test_all_but_some_texts(texts: list[str], text: str) -> None:
    assert bool(re.fullmatch(patterns.other_than(texts), text)) == (text not in texts)


@pytest.mark.parametrize(
    ("pattern", "text", "is_found"),
    [
        ("^a|b$", "xb", True), ("^a|b$", "xa", False), ("(^|-)a($|-)", "x-a", True), ("(^|-)a($|-)", "xa", False), ("(^a$)", "a", True),
        ("(^a$)", "ba", False), ("", "x", True), ("^$", "", True), ("^$", "x", False), ("a{2}", "baab", True), (r"\d", "٣", False),
        (r"^\S$", "\u2028", False),
    ],
)  # fmt: skip
def test_anchors_and_classes(pattern: str, text: str, *, is_found: bool) -> None:
    assert bool(re.fullmatch(patterns.found(pattern), text)) == is_found


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(?=a)b", "lookaround"), ("(?<!a)b", "lookaround"), ("(?i)a", "flags"), (r"(a)\1", "not supported"), (r"\bword", "not supported"),
        ("a^b", "anchor"), ("(a|^b)*", "anchor"), ("a**", "repetition of a repetition"), ("a++", "possessive"), ("(a", "without its"),
        ("a)", "without its"), ("[a", "without its"), ("[]", "begins with"), ("[]a]", "begins with"), ("[b-a]", "two ends"),
        ("*a", "nothing to repeat"), (r"\p{L}", "not supported"), (r"\ud800", "half"), ("a{3,2}", "exchanged"), ("a{,3}", "lower limit"),
        ("(((a{100}){100}){100})", "more than"), ("(" * 60 + "a" + ")" * 60, "nested"), ("[a&&b]", "operation"), (r"[^\s\S]", "without characters"),
        ("^*", "anchor"), ("a" * 9000, "at most"),
    ],
)  # fmt: skip
def test_what_cannot_be_held(pattern: str, why: str) -> None:
    for read in (patterns.whole, patterns.found):
        with pytest.raises(patterns.PatternError, match=why):
            read(pattern)


@given(st.text("ab()[]{}|*+?^$.\\-1,dwsWSDxu", max_size=12))
def test_no_pattern_has_another_error(pattern: str) -> None:
    try:
        result = patterns.whole(pattern)
    except patterns.PatternError:
        return
    re.compile(result)
