"""Stop strings: a simple definition, however the text is cut; and across token borders in the real service."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llama_serving.contract.request import Completion, Parameters, ReplyShape, Request
from llama_serving.prompts.stops import StopFinder
from llama_serving.prompts.tokenizer import TextDecoder
from llama_serving.service.service import Service

# Few letters, so that stop strings overlap, nest and nearly match all the time.
few = st.text("ab", max_size=24) | st.text("abc\n", max_size=24)
stop_lists = st.lists(
    st.text("ab", min_size=1, max_size=5) | st.text("abc\n", min_size=1, max_size=4), max_size=4
)
cuts = st.lists(st.integers(0, 24), max_size=8)


def reference(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the stop string that is complete first (of those, the longest), and whether there is one."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


def pieces(text: str, at: Sequence[int]) -> Iterator[str]:
    borders = [0, *sorted(min(cut, len(text)) for cut in at), len(text)]
    return (text[a:b] for a, b in pairwise(borders))


@given(text=few, stops=stop_lists, at=cuts)
@example(text="ab", stops=["b", "ab"], at=[1])
@example(text="aab", stops=["ab"], at=[1, 2])
@example(text="abab", stops=["aba", "bab"], at=[])
def test_the_result_is_the_references_however_the_text_is_cut(
    text: str, stops: list[str], at: list[int]
) -> None:
    finder = StopFinder(stops)
    shown = "".join(map(finder.push, pieces(text, at)))
    shown += finder.finish()
    assert (shown, finder.found) == reference(text, stops)


@given(text=few, stops=stop_lists, at=cuts)
def test_no_part_of_a_matching_stop_string_is_ever_shown(text: str, stops: list[str], at: list[int]) -> None:
    finder, shown = StopFinder(stops), ""
    before, _ = reference(text, stops)
    for piece in pieces(text, at):
        shown += finder.push(piece)
        assert before.startswith(shown)


@given(text=few, stops=stop_lists, at=cuts)
def test_no_more_is_held_back_than_may_become_a_stop_string(text: str, stops: list[str], at: list[int]) -> None:
    finder, shown, seen = StopFinder(stops), "", ""
    for piece in pieces(text, at):
        shown, seen = shown + finder.push(piece), seen + piece
        if not finder.found:
            held = seen[len(shown) :]
            assert not held or any(stop.startswith(held) for stop in stops)


@given(text=few, more=few, stops=stop_lists)
def test_nothing_comes_behind_a_stop_string(text: str, more: str, stops: list[str]) -> None:
    finder = StopFinder(stops)
    finder.push(text)
    if finder.found:
        assert (finder.push(more), finder.finish()) == ("", "")


def test_a_long_stop_string_that_nearly_comes_is_let_out_in_the_end() -> None:
    stop = "a" * 20_000 + "b"
    finder = StopFinder([stop])
    shown = "".join(finder.push("a") for _ in range(5_000))
    assert (shown, finder.push("c")) == ("", "a" * 5_000 + "c")


# --- through the service --------------------------------------------------------------------------


def request(**parameters: Any) -> Request:
    """Sampled by a fixed seed: what is sampled repeats itself less than what is greedy."""
    asked = Parameters(max_new_tokens=24, temperature=1.0, seed=3, ignore_eos=True, logprobs=0)
    asked = replace(asked, **parameters)
    return Request(
        (Completion("def sort(values):"),), asked, ReplyShape.ROWS, ("input_data.input_string[0]",), ""
    )


@pytest.fixture(scope="module")
def tokens(service: Service) -> list[str]:
    """What the model writes, token by token."""
    ((plain,),) = service.generate(request())
    assert plain.logprobs is not None
    found = [token.drawn.text for token in plain.logprobs]
    assert "".join(found) == plain.text
    assert len(found) > 12, "special tokens have no text"
    return found


@pytest.mark.parametrize("border", [1, 2, 5, 12, 23])
def test_stop_strings_across_token_borders_are_found(service: Service, tokens: list[str], border: int) -> None:
    text = "".join(tokens)
    at = len("".join(tokens[:border]))
    for stop in (text[at - 1 : at + 1], text[at - 1 : at + 5], text[max(0, at - 8) : at + 1]):
        ((cut,),) = service.generate(request(stop=(stop, "never written")))
        assert (cut.text, cut.finish_reason) == (reference(text, [stop])[0], "stop")
        deltas = list(service.stream(request(stop=(stop,))))
        assert "".join(delta.text for delta in deltas) == cut.text
        assert deltas[-1].generation == cut


def test_a_stop_string_that_ends_inside_a_token_cuts_the_token(service: Service, tokens: list[str]) -> None:
    number, token = next((n, t) for n, t in enumerate(tokens) if len(t) > 2)
    stop = "".join(tokens[:number])[-3:] + token[:2]
    ((cut,),) = service.generate(request(stop=(stop,)))
    assert cut.text == reference("".join(tokens), [stop])[0]


def test_generation_ends_with_the_stop_string(service: Service, tokens: list[str]) -> None:
    stop = "".join(tokens[:3])[-2:]
    ((cut,),) = service.generate(request(stop=(stop,)))
    assert cut.usage.completion_tokens <= 3


def test_a_stop_string_that_never_comes_costs_no_text(service: Service, tokens: list[str]) -> None:
    text = "".join(tokens)
    ((whole,),) = service.generate(request(stop=(text[-3:] + "never", text + "x")))
    assert (whole.text, whole.finish_reason) == (text, "length")


def test_a_stop_string_in_a_character_of_several_tokens(service: Service) -> None:
    """The finder sees whole characters only: bytes of half a character can't match."""
    ids = service.tokenizer.encode("a🦙é")
    decoder, finder, shown = TextDecoder(service.tokenizer), StopFinder(["🦙"]), ""
    for token in ids:
        shown += finder.push(decoder.push(token))
    assert (shown, finder.found) == (" a", True)
