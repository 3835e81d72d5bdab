"""The batched sampler draws what the reference draws, row by row, whatever stands in the other rows."""

from collections.abc import Sequence as List
from collections.abc import Set as AbstractSet
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_serving.constraints.matcher import Mask, Matcher
from llama_serving.engine.batching import sampler
from llama_serving.engine.batching.sequence import Sequence
from llama_serving.engine.handle import Handle
from llama_serving.engine.reference_sampler import Sampler, probabilities
from llama_serving.engine.seeded_random import uniform
from llama_serving.sampling_params import SamplingParams

GREEDY = SamplingParams(max_new_tokens=100)
STOPS = frozenset({2, 11})


class Allowing(Matcher):
    """A matcher that always allows the same ids of a vocabulary; none of them in particular is all."""

    def __init__(self, ids: AbstractSet[int]) -> None:
        self._ids = ids

    def allowed(self, vocab: int, ahead: List[int] = ()) -> tuple[Mask, bool]:
        del ahead
        return np.isin(np.arange(vocab), list(self._ids)) | (not self._ids), bool(
            self._ids
        ) and self._ids <= STOPS

    def advance(self, token_id: int) -> None:
        pass


def sequence(
    params: SamplingParams,
    prompt: tuple[int, ...] = (1, 5, 7),
    generated: tuple[int, ...] = (),
    matcher: Matcher | None = None,
) -> Sequence:
    one = Sequence(0, prompt, params, Handle(), matcher=matcher)
    one.ids += generated
    return one


def reference(logits: np.ndarray, one: Sequence) -> Any:
    """The reference's token after the same history."""
    sampler_ = Sampler(one.params, one.ids[: one.num_prompt_tokens], one.matcher)
    for token in one.ids[one.num_prompt_tokens :]:
        sampler_._seen.add(token)
        sampler_._drawn[token] += 1
        sampler_._position += 1
    return sampler_.draw(logits.astype(np.float64))


def near_a_border(logits: np.ndarray, one: Sequence, share: float = 1e-5) -> bool:
    """Where the draw falls so close to the next id that a rounding of float32 may decide."""
    sampler_ = Sampler(one.params, one.ids[: one.num_prompt_tokens])
    for token in one.ids[one.num_prompt_tokens :]:
        sampler_._seen.add(token)
        sampler_._drawn[token] += 1
    scores = sampler_._penalised(logits.astype(np.float64))
    allowed, over = (None, False) if one.matcher is None else one.matcher.allowed(len(scores))
    if one.num_generated < one.params.min_new_tokens and not over:
        scores[list(one.params.stop_ids)] = -np.inf
    if allowed is not None:
        scores[~allowed] = -np.inf
    if one.params.temperature == 0:
        best = np.sort(scores)[-2:]
        return bool(best[1] - best[0] < share)
    at = uniform(one.params.seed, one.params.index, one.num_generated)
    near = []
    for nudge in (1 - share, 1.0, 1 + share):
        cut = replace(
            one.params, top_p=min(1.0, one.params.top_p * nudge), min_p=min(1.0, one.params.min_p * nudge)
        )
        weights = probabilities(scores, cut)
        near.append((weights > 0).sum())
        borders = weights.cumsum()
        near.append(int(np.searchsorted(borders, at * borders[-1] * nudge, side="right")))
    return len(set(near[::2])) > 1 or len(set(near[1::2])) > 1


params = st.builds(
    SamplingParams,
    max_new_tokens=st.just(100),
    min_new_tokens=st.sampled_from((0, 2)),
    temperature=st.sampled_from((0.0, 0.01, 0.2, 0.8, 1.0, 2.0)),
    top_p=st.sampled_from((0.01, 0.5, 0.9, 0.999, 1.0)),
    top_k=st.sampled_from((0, 1, 3, 63, 64, 65, 200, 100_000)),
    min_p=st.sampled_from((0.0, 0.05, 0.5, 1.0)),
    repetition_penalty=st.sampled_from((1.0, 0.5, 1.3)),
    presence_penalty=st.sampled_from((0.0, -1.0, 2.0)),
    frequency_penalty=st.sampled_from((0.0, 0.3)),
    stop_ids=st.just(STOPS),
    seed=st.integers(0, 2**63 - 1),
    index=st.integers(0, 15),
)


constraints = st.none() | st.builds(Allowing, st.frozensets(st.integers(0, 49), max_size=12))


@settings(max_examples=400, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            params, st.lists(st.integers(0, 49), max_size=6), st.sampled_from((0.3, 2.0, 8.0)), constraints
        ),
        min_size=1,
        max_size=6,
    ),
    vocab=st.sampled_from((50, 64, 65, 700, 3000)),
    seed=st.integers(0, 1000),
    coarse=st.booleans(),
)
def test_every_row_is_drawn_as_the_reference_draws_it(
    rows: list[tuple[SamplingParams, list[int], float, Allowing | None]], vocab: int, seed: int, coarse: bool
) -> None:
    """`coarse` logits have many ties, as bf16 has."""
    rng = np.random.default_rng(seed)
    logits = np.stack([rng.normal(scale=scale, size=vocab) for _, _, scale, _ in rows]).astype(np.float32)
    logits = np.round(logits * 4) / 4 if coarse else logits
    sequences = [sequence(p, generated=tuple(g), matcher=held) for p, g, _, held in rows]
    drawn = sampler.draw(torch.from_numpy(logits), sequences)
    for row, one, token in zip(logits, sequences, drawn, strict=True):
        assert token.id == reference(row, one).id or near_a_border(row, one), one.params


def test_a_row_is_drawn_alike_in_any_batch() -> None:
    rng = np.random.default_rng(3)
    logits = torch.from_numpy(rng.normal(size=(24, 500)).astype(np.float32))
    choices = product((0.0, 0.2, 1.0), (0.5, 1.0), (0, 7), (1.0, 1.5))
    sequences = [
        sequence(
            SamplingParams(max_new_tokens=9, temperature=t, top_p=p, top_k=k, repetition_penalty=r, seed=9)
        )
        for t, p, k, r in choices
    ]
    for number, one in enumerate(sequences[::3]):
        one.matcher = Allowing(frozenset(range(number, 40 * number + 3)))
    together = sampler.draw(logits, sequences)
    assert together == [sampler.draw(logits[i : i + 1], [one])[0] for i, one in enumerate(sequences)]
    back = sampler.draw(logits.flip(0), sequences[::-1])
    assert back == together[::-1]


def test_the_frequencies_are_those_of_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    expected = logits.softmax(-1)[0].tolist()
    ids = [
        sampler.draw(logits, [sequence(replace(GREEDY, temperature=1.0, seed=seed))])[0].id
        for seed in range(4000)
    ]
    assert [ids.count(i) / 4000 for i in range(4)] == pytest.approx(expected, abs=0.03)


def test_the_logits_are_left_as_they_are() -> None:
    logits = torch.randn(2, 90)
    before = logits.clone()
    harsh = replace(
        GREEDY, repetition_penalty=2.0, presence_penalty=1.0, min_new_tokens=3, stop_ids=frozenset({4})
    )
    sampler.draw(logits, [sequence(harsh, generated=(3,)), sequence(replace(harsh, temperature=1.0))])
    assert torch.equal(logits, before)


def test_no_stop_id_is_drawn_before_the_minimum() -> None:
    logits = torch.zeros(1, 20)
    logits[0, 4] = 50.0
    one = sequence(replace(GREEDY, min_new_tokens=2, stop_ids=frozenset({4})), generated=(9,))
    assert sampler.draw(logits, [one])[0].id != 4
    one.ids.append(9)
    assert sampler.draw(logits, [one])[0].id == 4


@pytest.mark.parametrize("wanted", [0, 1, 5])
def test_logprobs_are_of_the_distribution_before_temperature_cuts_and_penalties(wanted: int) -> None:
    logits = torch.randn(1, 60, generator=torch.Generator().manual_seed(1))
    one = sequence(
        SamplingParams(max_new_tokens=5, temperature=2.0, top_k=2, presence_penalty=2.0, logprobs=wanted)
    )
    token = sampler.draw(logits, [one])[0]
    expected = reference(logits[0].numpy(), one)
    assert token.logprob == pytest.approx(expected.logprob, abs=1e-6)
    assert [i for i, _ in token.top] == [i for i, _ in expected.top]
    assert [v for _, v in token.top] == pytest.approx([v for _, v in expected.top], abs=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    logits = torch.randn(2, 30)
    logits[1, 7] = bad
    with pytest.raises(ArithmeticError, match="not finite"):
        sampler.draw(logits, [sequence(GREEDY), sequence(GREEDY)])


def test_the_vocabulary_is_not_sorted_where_few_ids_settle_it(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []
    best = sampler._best

    def counted(scaled: torch.Tensor, number: int) -> Any:
        looked_at.append(number)
        return best(scaled, number)

    monkeypatch.setattr(sampler, "_best", counted)
    logits = torch.randn(3, 32_000, generator=torch.Generator().manual_seed(2)) * 4
    plain = replace(GREEDY, temperature=0.2, top_p=0.9)
    sampler.draw(
        logits, [sequence(plain), sequence(GREEDY), sequence(replace(plain, temperature=1.0, top_p=1.0))]
    )
    assert looked_at == [sampler.BEST]
    sampler.draw(logits / 40, [sequence(replace(plain, temperature=1.0)), sequence(plain), sequence(GREEDY)])
    assert looked_at[1:] == [64, 1024, 32_000], "a flat row is looked at again, by itself"
