"""The reference sampler against transformers' own processors, and its draw against the distribution."""

from dataclasses import replace
from itertools import permutations
from typing import Any, Final

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from llama_serving.engine.reference_sampler import Row, Sampler, choose, probabilities, softmax
from llama_serving.engine.seeded_random import MAX_SEED, fresh_seed, uniform
from llama_serving.sampling_params import SamplingParams

VOCAB: Final = 97
GREEDY: Final = SamplingParams(max_new_tokens=8)
SAMPLED: Final = replace(GREEDY, temperature=1.0)


def logits_of(seed: int, scale: float = 3.0) -> Row:
    return np.random.default_rng(seed).normal(scale=scale, size=VOCAB)


# --- against transformers -------------------------------------------------------------------------

CUTS: Final[dict[str, dict[str, Any]]] = {
    "temperature 0.2": {"temperature": 0.2},
    "temperature 2": {"temperature": 2.0},
    "top_k 1": {"top_k": 1},
    "top_k 7": {"top_k": 7},
    "top_k all": {"top_k": VOCAB},
    "top_k more than all": {"top_k": 2**31 - 1},
    "top_p 0.9": {"top_p": 0.9},
    "top_p tiny": {"top_p": 1e-9},
    "min_p 0.1": {"min_p": 0.1},
    "min_p 1": {"min_p": 1.0},
    "repetition 1.3": {"repetition_penalty": 1.3},
    "repetition 0.5": {"repetition_penalty": 0.5},
    "temperature, top_p": {"temperature": 0.2, "top_p": 0.9},
    "top_k, top_p": {"top_k": 9, "top_p": 0.7},
    "all": {"temperature": 0.7, "top_k": 30, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.2},
}


def warped_by_transformers(logits: Row, params: SamplingParams, ids: list[int]) -> Row:
    """The distribution of transformers' processors, for the same parameters and in the same order."""
    processors: Any = transformers.LogitsProcessorList()
    if params.repetition_penalty != 1:
        processors.append(transformers.RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.temperature not in (0, 1):
        processors.append(transformers.TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        processors.append(transformers.TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        processors.append(transformers.TopPLogitsWarper(params.top_p))
    if params.min_p:
        processors.append(transformers.MinPLogitsWarper(params.min_p))
    scores = processors(torch.tensor([ids]), torch.tensor(logits)[None])
    weights: Row = scores.softmax(-1)[0].numpy()
    return weights


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS.keys())
def test_the_distribution_is_transformers_own(cuts: dict[str, Any], seed: int) -> None:
    params = replace(SAMPLED, **cuts)
    logits, prompt = logits_of(seed), [3, 14, 15, 92, 65, 35, 3]
    expected = warped_by_transformers(logits, params, prompt)
    weights = probabilities(Sampler(params, prompt)._penalised(logits), params)
    assert np.array_equal(weights > 0, expected > 0)
    np.testing.assert_allclose(weights, expected, rtol=1e-9, atol=1e-300)


def test_the_repetition_penalty_covers_prompt_and_completion() -> None:
    params = replace(GREEDY, repetition_penalty=1.7)
    sampler, ids = Sampler(params, [5, 6]), [5, 6]
    for step in range(12):
        logits = logits_of(step // 4)
        expected = int(warped_by_transformers(logits, params, ids).argmax())
        assert sampler.draw(logits).id == expected
        ids.append(expected)
    assert len(set(ids)) > 4


@pytest.mark.parametrize(("presence", "frequency"), [(0.5, 0.0), (0.0, 0.7), (-1.0, 0.3), (2.0, -2.0)])
def test_presence_and_frequency_are_openais(presence: float, frequency: float) -> None:
    """`logit - count · frequency - [count > 0] · presence`, over the completion alone."""
    params = replace(GREEDY, presence_penalty=presence, frequency_penalty=frequency)
    sampler, counts = Sampler(params, [1, 2, 3]), np.zeros(VOCAB)
    for step in range(30):
        logits = logits_of(step % 2, scale=1.0)
        expected = logits - counts * frequency - (counts > 0) * presence
        drawn = sampler.draw(logits).id
        assert drawn == int(expected.argmax())
        counts[drawn] += 1
    assert counts.max() > 1


# --- steps of their own ---------------------------------------------------------------------------


def test_greedy_takes_the_lowest_of_equal_bests() -> None:
    assert Sampler(GREEDY, [0]).draw(np.array([0.0, 5.0, 5.0, 1.0])).id == 1


def test_stop_ids_wait_for_the_minimum() -> None:
    logits = np.array([0.0, 9.0, 8.0, 7.0])
    sampler = Sampler(replace(GREEDY, min_new_tokens=2, stop_ids=frozenset({1, 2})), [0])
    assert [sampler.draw(logits).id for _ in range(4)] == [3, 3, 1, 1]
    unstoppable = Sampler(replace(GREEDY, min_new_tokens=2), [0])
    assert unstoppable.draw(logits).id == 1


def test_a_nucleus_of_equal_tokens_has_the_lower_ids() -> None:
    weights = probabilities(np.zeros(10), replace(SAMPLED, top_p=0.3))
    assert weights.nonzero()[0].tolist() == [0, 1, 2]


def test_logits_are_left_as_they_are() -> None:
    logits = logits_of(1)
    before = logits.copy()
    params = replace(
        SAMPLED, repetition_penalty=2.0, presence_penalty=1.0, min_new_tokens=9, stop_ids=frozenset({1})
    )
    sampler = Sampler(params, [1, 2])
    for _ in range(3):
        sampler.draw(logits)
    assert np.array_equal(logits, before)


@pytest.mark.parametrize("temperature", [1e-3, 1e-300, 5e-324])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = logits_of(2)
    for seed in range(20):
        assert (
            Sampler(replace(SAMPLED, temperature=temperature, seed=seed), [0]).draw(logits).id
            == logits.argmax()
        )


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1.0])
@pytest.mark.parametrize("penalty", [1e-300, 5e-324, 10.0])
def test_an_extreme_repetition_penalty_still_draws_a_token(penalty: float, temperature: float) -> None:
    params = replace(SAMPLED, temperature=temperature, repetition_penalty=penalty, top_p=0.9)
    sampler = Sampler(params, range(VOCAB))
    assert all(0 <= sampler.draw(logits_of(seed)).id < VOCAB for seed in range(20))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_logits_that_are_no_numbers_are_a_fault_and_not_a_token(params: SamplingParams, bad: float) -> None:
    logits = logits_of(3)
    logits[7] = bad
    with pytest.raises(ArithmeticError, match="not finite"):
        Sampler(params, [0]).draw(logits)


def test_impossible_tokens_are_never_drawn() -> None:
    logits = logits_of(4)
    logits[10:] = -np.inf
    assert all(Sampler(replace(SAMPLED, temperature=2.0, seed=s), [0]).draw(logits).id < 10 for s in range(50))


# --- log-probabilities ----------------------------------------------------------------------------


@pytest.mark.parametrize("alternatives", [0, 1, 5])
def test_logprobs_are_of_the_models_own_distribution(alternatives: int) -> None:
    params = replace(SAMPLED, temperature=0.3, repetition_penalty=3.0, top_k=4, logprobs=alternatives)
    logits = logits_of(5)
    expected = torch.tensor(logits).log_softmax(-1).numpy()
    token = Sampler(params, [int(logits.argmax())]).draw(logits)
    assert token.logprob == pytest.approx(expected[token.id], rel=1e-12)
    best = np.argsort(-expected)[:alternatives]
    assert [i for i, _ in token.top] == best.tolist()
    assert [p for _, p in token.top] == pytest.approx(expected[best].tolist(), rel=1e-12)


def test_logprobs_are_off_unless_asked_for() -> None:
    token = Sampler(GREEDY, [0]).draw(logits_of(6))
    assert (token.logprob, token.top) == (None, ())


# --- the draw -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "expected"), [(0.0, 1), (0.249, 1), (0.25, 2), (0.749, 2), (0.75, 4), (1 - 2**-53, 4)]
)
def test_the_draw_inverts_the_cumulative_distribution_by_id(at: float, expected: int) -> None:
    assert choose(np.array([0.0, 0.25, 0.5, 0.0, 0.25, 0.0]), at) == expected


@given(
    raw=st.lists(st.sampled_from([0.0, 1e-300, 1e-17, 0.1, 0.3, 1.0, 7.0]), min_size=1, max_size=12).filter(
        any
    ),
    at=st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, 1 - 2**-53, 0.5]),
)
def test_what_has_no_weight_is_never_chosen(raw: list[float], at: float) -> None:
    weights = np.array(raw)
    assert weights[choose(weights / weights.sum(), at)] > 0


def test_even_shares_give_each_token_its_weight() -> None:
    weights, shares = softmax(logits_of(7)), 20_000
    drawn = np.bincount([choose(weights, (k + 0.5) / shares) for k in range(shares)], minlength=VOCAB)
    assert np.abs(drawn - weights * shares).max() <= 1


def test_seeds_draw_the_distribution() -> None:
    """Chi-square over 4,000 seeds: 30.6 is what 15 degrees of freedom exceed once in a hundred times."""
    logits = np.log(np.arange(1.0, 17.0))
    drawn = np.bincount(
        [Sampler(replace(SAMPLED, seed=s), [0]).draw(logits).id for s in range(4_000)], minlength=16
    )
    expected = softmax(logits) * 4_000
    assert ((drawn - expected) ** 2 / expected).sum() < 30.6


def test_a_sequence_is_the_same_in_any_batch() -> None:
    params = [replace(SAMPLED, seed=9, index=index) for index in range(3)]
    rows = [logits_of(step) for step in range(6)]
    alone = []
    for one in params:
        sampler = Sampler(one, [0])
        alone.append([sampler.draw(row).id for row in rows])
    together = [Sampler(one, [0]) for one in reversed(params)]
    mixed = list(zip(*([sampler.draw(row).id for sampler in together] for row in rows), strict=True))
    assert [list(ids) for ids in reversed(mixed)] == alone
    assert len({tuple(ids) for ids in alone}) == 3


# --- random numbers -------------------------------------------------------------------------------


@given(seed=st.integers(0, MAX_SEED), index=st.integers(0, 15), position=st.integers(0, 100_000))
def test_uniform_is_at_least_0_and_below_1(seed: int, index: int, position: int) -> None:
    assert 0 <= uniform(seed, index, position) < 1


@pytest.mark.parametrize(
    ("seed", "index", "position", "expected"),
    [
        (0, 0, 0, 0.156742553465558),
        (42, 0, 0, 0.127800788776263),
        (42, 1, 0, 0.24425469308967074),
        (42, 0, 1, 0.2480908728867547),
        (MAX_SEED, 15, 99_999, 0.34064186116935735),
    ],
)
def test_known_answers(seed: int, index: int, position: int, expected: float) -> None:
    """Other engines and versions must draw the same."""
    assert uniform(seed, index, position) == expected


def test_seed_index_and_position_are_told_apart() -> None:
    assert len({uniform(*order) for order in permutations((1, 2, 3))}) == 6


def test_uniform_is_uniform() -> None:
    """Chi-square over 16 bins, as above."""
    shares = [
        uniform(seed, index, position) for seed in range(20) for index in range(4) for position in range(100)
    ]
    bins = np.histogram(shares, bins=16, range=(0, 1))[0]
    assert ((bins - 500) ** 2 / 500).sum() < 30.6


def test_fresh_seeds_are_seeds_and_differ() -> None:
    seeds = {fresh_seed() for _ in range(50)}
    assert len(seeds) == 50
    assert all(0 <= seed <= MAX_SEED for seed in seeds)
