"""Speculation changes when tokens are computed, and never which: every answer equals that of an engine without it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_serving.engine.batching.backends.base import Backend
from llama_serving.engine.batching.engine import BatchingEngine
from llama_serving.engine.batching.speculation import (
    CHEAPEST,
    LENGTHS,
    PROBE,
    Guesses,
    PromptLookup,
    Speculation,
    StepCost,
    accepted,
)
from llama_serving.engine.handle import Token
from llama_serving.sampling_params import SamplingParams
from tests.support import backends, llamas
from tests.support.llamas import SHAPES

FEW: Final = st.lists(st.integers(0, 2), max_size=60)
"""Texts of three tokens, in which everything has occurred before."""


def guessed_by_search(ids: Sequence[int], count: int) -> tuple[int, ...]:
    """The definition: what followed the longest end of the text where it last occurred, again and again."""
    for length in LENGTHS:
        end = list(ids[-length:])
        for at in range(len(ids) - 1, length - 1, -1):
            if len(ids) > length and list(ids[at - length : at]) == end:
                text = list(ids)
                for n in range(count):
                    text.append(text[at + n])
                return tuple(text[len(ids) :])
    return ()


class TestLookup:
    @given(start=FEW, more=FEW, count=st.integers(1, 20))
    def test_it_is_what_followed_the_longest_end_the_last_time(
        self, start: list[int], more: list[int], count: int
    ) -> None:
        ids = list(start)
        lookup = PromptLookup(ids)
        assert lookup.guess(count) == guessed_by_search(ids, count)
        for token in more:
            ids.append(token)
            assert lookup.guess(count) == guessed_by_search(ids, count)

    @given(pairs=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2))), last=st.integers(0, 2))
    def test_guesses_are_accepted_up_to_the_first_wrong_one(
        self, pairs: list[tuple[int, int]], last: int
    ) -> None:
        guessed, drawn = [guess for guess, _ in pairs], [*(token for _, token in pairs), last]
        right = accepted(guessed, drawn)
        assert guessed[:right] == drawn[:right]
        assert right == len(guessed) or guessed[right] != drawn[right]


class TestHowMany:
    def test_more_the_likelier_they_are_and_the_cheaper_a_row(self) -> None:
        def number(right: int, generating: int) -> int:
            speculation = Speculation(15)
            guesses = Guesses(PromptLookup([1] * 20))
            for _ in range(40):
                speculation.observe(guesses, 10, right)
            return len(speculation.guess(guesses, generating, 100))

        for generating in (1, 4, 16, 64):
            counts = [number(right, generating) for right in (0, 1, 3, 10)]
            assert counts == sorted(counts)
        for right in (1, 3, 10):
            counts = [number(right, generating) for generating in (64, 16, 4, 1)]
            assert counts == sorted(counts)
        assert number(10, 1) == 15
        assert number(0, 16) == 0

    @given(
        most=st.integers(0, 63),
        left=st.integers(0, 30),
        right=st.integers(0, 5),
        generating=st.integers(1, 300),
    )
    def test_never_more_than_there_are_left(self, most: int, left: int, right: int, generating: int) -> None:
        speculation, guesses = Speculation(most), Guesses(PromptLookup([1] * 9))
        for _ in range(2 * PROBE):
            found = len(speculation.guess(guesses, generating, left))
            assert found <= min(left, most)
            if found:
                speculation.observe(guesses, found, min(right, found))

    def test_a_text_that_is_new_is_looked_at_again(self) -> None:
        speculation, guesses = Speculation(15), Guesses(PromptLookup([1] * 9))
        for _ in range(60):
            speculation.observe(guesses, 5, 0)
        for generating in (1, 16):
            counts = [len(speculation.guess(guesses, generating, 100)) for _ in range(PROBE * generating + 1)]
            assert counts == [0] * PROBE * generating + [1]
            speculation.observe(guesses, 1, 0)

    def test_off_is_off(self) -> None:
        speculation, guesses = Speculation(0), Guesses(PromptLookup([1] * 9))
        assert not any(speculation.guess(guesses, 1, 100) for _ in range(3 * PROBE))


class TestCost:
    @given(
        base=st.floats(1e-4, 1.0),
        row=st.floats(0.005, 0.5),
        rows=st.lists(st.integers(1, 64), min_size=5, max_size=50),
    )
    def test_it_is_the_slope_of_the_durations(self, base: float, row: float, rows: list[int]) -> None:
        cost = StepCost()
        for count in (1, 3, *rows):
            cost.observe(count, base * (1 + row * count))
        longest = max(base * (1 + row * count) for count in rows)
        if longest < 3 * base:  # (longer ones count as interrupted)
            assert cost.row(8) == pytest.approx(row / (1 + row * 8), rel=1e-3)

    def test_without_a_difference_it_is_assumed(self) -> None:
        cost = StepCost()
        for _ in range(100):
            cost.observe(4, 0.01)
        assert 1 / 64 < cost.row(4) < 1 / 16

    def test_rows_are_never_free(self) -> None:
        cost = StepCost()
        for count in range(1, 50):
            cost.observe(count, 1 / count)
        assert cost.row(1) == CHEAPEST


@pytest.fixture(scope="module", params=["portable", "native"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """A backend's name, and a model for it. Guesses pay, however busy the machine is."""
    shape, dtype = "grouped heads", torch.float32
    if request.param == "native":
        backends.needs(backends.instruction_set())
        shape, dtype = "heads of 64", torch.bfloat16
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepCost, "row", lambda self, rows: CHEAPEST)
        yield request.param, llamas.write(SHAPES[shape], tmp_path_factory.mktemp("llama"), dtype=dtype)


def engine(made: tuple[str, Path], blocks: int, guesses: int, **options: Any) -> BatchingEngine:
    kind, folder = made

    def load() -> Backend:
        return backends.make(kind, folder, blocks + 1)

    return BatchingEngine(load, speculative_tokens=guesses, **options)


PARAMS: Final = st.builds(
    SamplingParams,
    max_new_tokens=st.integers(0, 38),
    min_new_tokens=st.sampled_from((0, 0, 5)),
    temperature=st.sampled_from((0.0, 0.0, 0.3, 1.0)),
    top_p=st.sampled_from((1.0, 0.9)),
    top_k=st.sampled_from((0, 5)),
    repetition_penalty=st.sampled_from((1.0, 0.1, 0.1, 1.3)),
    presence_penalty=st.sampled_from((0.0, 0.5)),
    frequency_penalty=st.sampled_from((0.0, -0.5)),
    logprobs=st.sampled_from((None, 0, 3)),
    prompt_logprobs=st.sampled_from((None, None, 0, 2)),
    logit_bias=st.sampled_from(((), ((5, 100.0),), ((5, -100.0), (7, 2.0)))),
    seed=st.integers(0, 5),
    index=st.integers(0, 2),
    stop_ids=st.sets(st.integers(3, 299), max_size=20).map(frozenset),
)


@st.composite
def jobs(draw: st.DrawFn) -> list[tuple[list[int], SamplingParams, int | None, int | None]]:
    """Prompts in which runs repeat; the number of tokens after which the text is stopped, or its reader leaves."""
    found = []
    for _ in range(draw(st.integers(1, 12))):
        run = draw(st.lists(st.integers(3, 299), min_size=1, max_size=12))
        prompt = (run * 30)[: draw(st.integers(1, 90))]
        after = st.one_of(st.none(), st.integers(1, 20))
        found.append((prompt, draw(PARAMS), draw(after), draw(after)))
    return found


def answers(
    running: BatchingEngine, asked: Sequence[tuple[list[int], SamplingParams, int | None, int | None]]
) -> Iterator[tuple[list[Token], list[Token], str | None]]:
    handles = []
    for prompt, params, stop_after, leave_after in asked:
        seen: list[int] = []

        def stop(token: int, seen: list[int] = seen, after: int | None = stop_after) -> bool:
            seen.append(token)
            return len(seen) == after

        handles.append((running.submit(prompt, params, stop=stop), leave_after))
    for handle, leave_after in handles:
        found: list[Token] = []
        for token in handle:
            found.append(token)
            if len(found) == leave_after:
                handle.cancel()
                break
        left = leave_after == len(found)
        yield found, handle.prompt, None if left else handle.finish_reason


@settings(max_examples=12)
@given(
    asked=jobs(),
    blocks=st.sampled_from((9, 14, 60)),
    seqs=st.sampled_from((2, 8)),
    most=st.sampled_from((1, 4, 15)),
)
def test_every_answer_is_the_same(
    made: tuple[str, Path],
    asked: list[tuple[list[int], SamplingParams, int | None, int | None]],
    blocks: int,
    seqs: int,
    most: int,
) -> None:
    blocks = blocks if made[0] == "portable" else blocks // 2
    found = []
    for guesses in (0, most):
        running = engine(made, blocks, guesses, max_num_seqs=seqs)
        try:
            found.append(list(answers(running, asked)))
            running.drain()
            stats = running.stats()
            assert stats.kv_blocks_free == stats.kv_blocks
        finally:
            running.close()
    assert found[0] == found[1]


def test_guesses_make_fewer_steps(made: tuple[str, Path]) -> None:
    """A penalty below 1 makes texts of random models repeat themselves."""
    asked = [([5, 6, 7, 8] * 5, SamplingParams(max_new_tokens=100, repetition_penalty=0.1), None, None)]
    stats = {}
    for guesses in (0, 15):
        running = engine(made, 40, guesses)
        (answer,) = answers(running, asked)
        running.drain()
        stats[guesses] = running.stats()
        running.close()
        assert len(answer[0]) == 100
    assert stats[0].guessed_tokens == stats[0].accepted_tokens == 0
    assert stats[15].steps < stats[0].steps / 2
    assert stats[15].tokens_out == stats[0].tokens_out == 100
    assert stats[15].guessed_tokens >= stats[15].accepted_tokens > 50
    assert stats[15].rows - 20 >= stats[15].tokens_out - 1


def test_no_guess_takes_a_block_that_another_sequence_needs(made: tuple[str, Path]) -> None:
    asked = [([n + 3] * 40, SamplingParams(max_new_tokens=30), None, None) for n in range(8)]
    preempted = []
    for guesses in (0, 15):
        running = engine(made, 40 if made[0] == "portable" else 24, guesses, max_num_seqs=8)
        list(answers(running, asked))
        running.drain()
        preempted.append(running.stats().num_preemptions)
        running.close()
    assert preempted[0] == preempted[1] == 0
