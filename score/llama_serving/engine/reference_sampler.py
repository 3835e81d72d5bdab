"""The reference sampler: one row of logits -> one token. Plain numpy in float64; correctness before speed.

The order is that of transformers' processors: bias, penalties, minimum length, constraint, temperature, top_k, top_p, min_p. The draw inverts
the cumulative distribution over the kept ids in ascending order of id, so other engines can repeat it without sorting the
vocabulary.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llama_serving.constraints.matcher import Matcher
from llama_serving.engine.handle import Token
from llama_serving.engine.seeded_random import uniform
from llama_serving.sampling_params import SamplingParams

Row = NDArray[np.float64]

_LARGEST: Final = np.finfo(np.float64).max


class Sampler:
    """Draws the tokens of one sequence, and records them for the penalties."""

    def __init__(
        self, params: SamplingParams, prompt_ids: Sequence[int], matcher: Matcher | None = None
    ) -> None:
        self.params = params
        self._seen = set(prompt_ids)
        self._drawn: Counter[int] = Counter()
        self._position = 0
        self._matcher = matcher
        self._biased = [token for token, _ in params.logit_bias]
        self._bias = np.array([bias for _, bias in params.logit_bias], np.float32)

    def draw(self, logits: Row) -> Token:
        """Return the next token.

        Args:
            logits: float64, one value for each id of the vocabulary; not modified.

        Raises:
            ArithmeticError: the largest logit is NaN or infinite.
            BadRequest: the constraint has become too complex.
        """
        if not np.isfinite(logits.max()):
            raise ArithmeticError("the model's logits are not finite")
        params = self.params
        scores = self._penalised(logits)
        allowed, over = (None, False) if self._matcher is None else self._matcher.allowed(len(scores))
        if self._position < params.min_new_tokens and not over:
            scores[list(params.stop_ids)] = -np.inf
        if allowed is not None:
            scores[~allowed] = -np.inf
        chosen = (
            int(scores.argmax())
            if params.temperature == 0
            else choose(probabilities(scores, params), uniform(params.seed, params.index, self._position))
        )
        self._seen.add(chosen)
        self._drawn[chosen] += 1
        self._position += 1
        if self._matcher is not None:
            self._matcher.advance(chosen)
        return _token(chosen, logits, params.logprobs)

    def _penalised(self, logits: Row) -> Row:
        scores, params = logits.copy(), self.params
        if params.logit_bias:
            scores[self._biased] += self._bias
        if params.repetition_penalty != 1:
            seen = np.fromiter(self._seen, np.int64)
            was = scores[seen]
            with np.errstate(over="ignore"):  # division by a penalty near 0 overflows
                now = np.where(was < 0, was * params.repetition_penalty, was / params.repetition_penalty)
            scores[seen] = np.clip(now, -_LARGEST, _LARGEST)
        if params.presence_penalty or params.frequency_penalty:
            drawn = np.fromiter(self._drawn.keys(), np.int64)
            counts = np.fromiter(self._drawn.values(), np.float64)
            scores[drawn] -= params.presence_penalty + params.frequency_penalty * counts
        return scores


def probabilities(scores: Row, params: SamplingParams) -> Row:
    """Return the distribution to draw from: temperature, then top_k, top_p and min_p."""
    with np.errstate(over="ignore"):  # a temperature near 0 makes all but the best -inf
        scaled = (scores - scores.max()) / params.temperature
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
    """Return the id at the share `at` in [0, 1) of the cumulative distribution, ids ascending."""
    cumulative = weights.cumsum()
    return int(np.searchsorted(cumulative, at * cumulative[-1], side="right"))


def softmax(scores: Row) -> Row:
    """Return exp(s) / Σ exp(s), without overflow."""
    weights = np.exp(scores - scores.max())
    return np.asarray(weights / weights.sum())


def _nucleus(weights: Row, top_p: float) -> Row:
    """Keep the fewest most likely ids that together reach `top_p`; of equal ones, the lower ids."""
    order = np.argsort(-weights, kind="stable")
    before = np.cumsum(weights[order]) - weights[order]
    kept = order[before < top_p]
    result = np.zeros_like(weights)
    result[kept] = weights[kept]
    return result


def read(logits: Row, token_id: int, alternatives: int) -> Token:
    """Return a token that is given, with the model's own log-probabilities; `logits` are those before it.

    Raises:
        ArithmeticError: the largest logit is NaN or infinite.
    """
    if not np.isfinite(logits.max()):
        raise ArithmeticError("the model's logits are not finite")
    return replace(_token(token_id, logits, alternatives), rank=1 + int((logits > logits[token_id]).sum()))


def _token(chosen: int, logits: Row, alternatives: int | None) -> Token:
    if alternatives is None:
        return Token(chosen)
    best = logits.max()
    logprobs = logits - (best + np.log(np.exp(logits - best).sum()))
    order = np.argsort(-logprobs, kind="stable")[:alternatives]
    return Token(chosen, float(logprobs[chosen]), tuple((int(i), float(logprobs[i])) for i in order))
