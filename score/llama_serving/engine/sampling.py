"""The reference sampler: one row of logits -> one token. Plain numpy in float64, correct before fast.

The order is that of transformers' processors: penalties, minimum length, temperature, top_k, top_p,
min_p. The draw inverts the cumulative distribution over the kept ids in ascending order of id, so that no
engine has to sort a vocabulary to repeat it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llama_serving.contract.request import SamplingParams
from llama_serving.engine.base import Token
from llama_serving.engine.randomness import uniform

Row = NDArray[np.float64]


@dataclass(slots=True)
class Sampler:
    """Draws the tokens of one sequence and remembers them for the penalties."""

    params: SamplingParams
    prompt_ids: Sequence[int]
    drawn: list[int] = field(default_factory=list)

    def draw(self, logits: Row) -> Token:
        """The next token.

        Args:
            logits: float64, one value for each id of the vocabulary; left as it is.
        """
        position = len(self.drawn)
        scores = self._penalised(logits)
        if position < self.params.min_new_tokens:
            scores[list(self.params.stop_ids)] = -np.inf
        chosen = (
            int(scores.argmax())
            if self.params.temperature == 0
            else choose(
                probabilities(scores, self.params), uniform(self.params.seed, self.params.index, position)
            )
        )
        self.drawn.append(chosen)
        return _token(chosen, logits, self.params.logprobs)

    def _penalised(self, logits: Row) -> Row:
        scores = logits.copy()
        params = self.params
        if params.repetition_penalty != 1:
            seen = np.unique(np.asarray([*self.prompt_ids, *self.drawn], dtype=np.int64))
            was = scores[seen]
            scores[seen] = np.where(was < 0, was * params.repetition_penalty, was / params.repetition_penalty)
        if params.presence_penalty or params.frequency_penalty:
            for token_id, count in Counter(self.drawn).items():
                scores[token_id] -= params.presence_penalty + params.frequency_penalty * count
        return scores


def probabilities(scores: Row, params: SamplingParams) -> Row:
    """The distribution that is drawn from: temperature, then top_k, top_p and min_p."""
    scaled = scores / params.temperature
    if 0 < params.top_k < scaled.size:
        kth = np.partition(scaled, -params.top_k)[-params.top_k]
        scaled = np.where(scaled >= kth, scaled, -np.inf)
    weights = softmax(scaled)
    if params.top_p < 1:
        weights = _nucleus(weights, params.top_p)
    if params.min_p > 0:
        weights = np.where(weights >= params.min_p * weights.max(), weights, 0.0)
    return np.asarray(weights / weights.sum())


def choose(weights: Row, at: float) -> int:
    """The id at the share `at` in [0, 1) of the cumulative distribution, ids ascending."""
    cumulative = weights.cumsum()
    return int(np.searchsorted(cumulative, at * cumulative[-1], side="right"))


def softmax(scores: Row) -> Row:
    """exp(s) / Σ exp(s), without overflow."""
    weights = np.exp(scores - scores.max())
    return np.asarray(weights / weights.sum())


def _nucleus(weights: Row, top_p: float) -> Row:
    """The fewest most likely ids that together reach `top_p`; of equal ones, the lower ids."""
    order = np.argsort(-weights, kind="stable")
    before = np.cumsum(weights[order]) - weights[order]
    kept = order[before < top_p]
    result = np.zeros_like(weights)
    result[kept] = weights[kept]
    return result


def _token(chosen: int, logits: Row, alternatives: int | None) -> Token:
    if alternatives is None:
        return Token(chosen)
    best = logits.max()
    logprobs = logits - (best + np.log(np.exp(logits - best).sum()))
    order = np.argsort(-logprobs, kind="stable")[:alternatives]
    return Token(chosen, float(logprobs[chosen]), tuple((int(i), float(logprobs[i])) for i in order))
