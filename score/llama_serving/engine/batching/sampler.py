"""Logits -> tokens, for all rows of a step at once; draws what `engine/reference_sampler.py` would draw.

The vocabulary is never sorted: a few best ids decide nearly every row, and only undecided rows are retried with more.
"""

from collections.abc import Iterator
from collections.abc import Sequence as List
from functools import lru_cache
from typing import Final, NamedTuple

import torch
from torch import Tensor

from llama_serving.constraints.matcher import Matcher
from llama_serving.engine.batching.sequence import SoFar
from llama_serving.engine.handle import Token
from llama_serving.engine.seeded_random import uniform
from llama_serving.sampling_params import SamplingParams

BEST: Final = 64
MANY: Final = 1024
"""Number of best ids to look at: first few, then many, then all."""

_LARGEST: Final = torch.finfo(torch.float32).max


def draw(logits: Tensor, sequences: List[SoFar]) -> list[Token]:
    """Return the next token of each sequence.

    Args:
        logits: (sequences, vocab) in float32; not modified.
        sequences: in the order of the rows.

    Raises:
        ArithmeticError: the largest logit of a row is NaN or infinite.
    """
    _check(logits)
    chosen = torch.empty(len(sequences), dtype=torch.int64)
    free = [i for i, sequence in enumerate(sequences) if sequence.matcher is None]
    if free:
        own = [sequences[i] for i in free]
        chosen[free] = _chosen(_scores(logits if len(free) == len(logits) else logits[free], own), own)
    for i, sequence in enumerate(sequences):
        if sequence.matcher is not None:
            chosen[i] = _among_allowed(logits[i], sequence, sequence.matcher)
    return [
        _token(int(i), row, s.params.logprobs)
        for i, row, s in zip(chosen.tolist(), logits, sequences, strict=True)
    ]


def read(logits: Tensor, ids: List[int], alternatives: int) -> list[Token]:
    """Return tokens that are given, with the model's own log-probabilities.

    Args:
        logits: (tokens, vocab) in float32, each row before its token.
        ids: of the tokens.
        alternatives: how many of the most likely ids to report with each.

    Raises:
        ArithmeticError: the largest logit of a row is NaN or infinite.
    """
    _check(logits)
    logprobs = logits.double().log_softmax(-1)
    own = logprobs.gather(-1, torch.tensor(ids)[:, None])
    ranks = (logprobs > own).sum(-1) + 1
    values, best = _best(logprobs, min(max(alternatives, 1), logprobs.shape[-1]))
    columns = (own[:, 0].tolist(), ranks.tolist(), best.tolist(), values.tolist())
    return [
        Token(i, logprob, tuple(zip(top, theirs, strict=True))[:alternatives], rank)
        for i, logprob, rank, top, theirs in zip(ids, *columns, strict=True)
    ]


def _scores(logits: Tensor, sequences: List[SoFar]) -> Tensor:
    """Return the logits after penalties and minimum length; the same tensor if there are none."""
    changed = [i for i, sequence in enumerate(sequences) if _changes(sequence)]
    if not changed:
        return logits
    scores = logits.clone()
    for i in changed:
        _penalise(scores[i], sequences[i])
    return scores


def _among_allowed(logits: Tensor, sequence: SoFar, matcher: Matcher) -> Tensor:
    """Return the token of a sequence under a constraint, (1,), from its logits, (vocab,), which are not modified.

    To copy what is allowed takes an eighth of the time of masking the rest.
    """
    allowed, over = matcher.allowed(len(logits), sequence.ahead)
    scores = logits.clone() if _changes(sequence) else logits
    _penalise(scores, sequence, may_end=over)
    ids = torch.from_numpy(allowed.nonzero()[0])
    return ids[_chosen(scores.index_select(0, ids)[None], [sequence])]


def _check(logits: Tensor) -> None:
    """Raise `ArithmeticError` if the largest logit of a row is not finite."""
    if not bool(torch.isfinite(logits.amax(-1)).all()):
        raise ArithmeticError("the model's logits are not finite")


def _first_best(scores: Tensor) -> Tensor:
    """Return the lowest of the best ids of each row. (torch's search takes ten times as long as numpy's, which is vectorised.)"""
    return torch.from_numpy(scores.numpy().argmax(-1))


def _changes(sequence: SoFar) -> bool:
    params = sequence.params
    penalised = params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty
    return bool(penalised) or bool(params.logit_bias) or sequence.num_generated < params.min_new_tokens


def _penalise(scores: Tensor, sequence: SoFar, *, may_end: bool = False) -> None:
    """Apply bias, penalties and minimum length to a row; `may_end` leaves the latter out, since nothing but the end can come."""
    params = sequence.params
    if params.logit_bias:
        biased, bias = _biases(params.logit_bias)
        scores.index_add_(0, biased, bias)
    if params.repetition_penalty != 1:
        seen = torch.unique(torch.tensor(sequence.ids))
        was = scores[seen]
        now = torch.where(was < 0, was * params.repetition_penalty, was / params.repetition_penalty)
        scores[seen] = now.clamp(-_LARGEST, _LARGEST)
    if params.presence_penalty or params.frequency_penalty:
        generated = torch.tensor(sequence.ids[sequence.num_prompt_tokens :], dtype=torch.int64)
        drawn, counts = torch.unique(generated, return_counts=True)
        scores[drawn] -= params.presence_penalty + params.frequency_penalty * counts
    if sequence.num_generated < params.min_new_tokens and not may_end:
        scores[list(params.stop_ids)] = -torch.inf


@lru_cache(maxsize=256)
def _biases(pairs: tuple[tuple[int, float], ...]) -> tuple[Tensor, Tensor]:
    ids, values = zip(*pairs, strict=True)
    return torch.tensor(ids), torch.tensor(values, dtype=torch.float32)


def _chosen(scores: Tensor, sequences: List[SoFar]) -> Tensor:
    """Return the place of each row's token: the best one at temperature 0, otherwise one that is sampled."""
    sampled = [i for i, sequence in enumerate(sequences) if sequence.params.temperature > 0]
    if len(sampled) == len(sequences):
        return _sampled(scores, sequences)
    chosen = _first_best(scores)
    if sampled:
        chosen[sampled] = _sampled(scores[sampled], [sequences[i] for i in sampled])
    return chosen


def _sampled(scores: Tensor, sequences: List[SoFar]) -> Tensor:
    """Sample: (rows, vocab) -> (rows,) ids."""
    params, vocab = [sequence.params for sequence in sequences], scores.shape[-1]
    at = [uniform(s.params.seed, s.params.index, s.num_generated) for s in sequences]
    chosen = torch.empty(len(params), dtype=torch.int64)
    whole = [i for i, p in enumerate(params) if _keeps_all(p, vocab)]
    cut = [i for i, p in enumerate(params) if not _keeps_all(p, vocab)]
    for part in _parts(whole):
        chosen[part] = _choose(_scaled(scores, params, part).exp_(), torch.tensor([at[i] for i in part]))
    best = BEST
    while cut:
        tops = [_top(_scaled(scores, params, part), min(best, vocab)) for part in _parts(cut)]
        values, ids, totals = (torch.cat(column) for column in zip(*tops, strict=True))
        top = _Top(values, ids, totals, vocab)
        chosen[cut], settled = _among_best(top, [params[i] for i in cut], [at[i] for i in cut])
        cut = [i for i, done in zip(cut, settled.tolist(), strict=True) if not done]
        best = MANY if best < MANY else vocab
    return chosen


def _parts(rows: List[int]) -> Iterator[List[int]]:
    """Yield as many rows at a time as there are threads: numbers for the whole vocabulary of more would not stay in the cache."""
    count = torch.get_num_threads()
    for start in range(0, len(rows), count):
        yield rows[start : start + count]


def _scaled(scores: Tensor, params: List[SamplingParams], rows: List[int]) -> Tensor:
    """Return some rows' scores over their temperature, 0 at the top of each row, in float64 like the reference.

    In float32 a temperature near 0 underflows.
    """
    own = scores if len(rows) == len(scores) else scores.index_select(0, torch.tensor(rows))
    scaled = own.double().sub_(own.amax(-1, keepdim=True))
    temperatures = [params[i].temperature for i in rows]
    if any(temperature != 1 for temperature in temperatures):
        scaled.div_(torch.tensor(temperatures, dtype=torch.float64)[:, None])
    return scaled


class _Top(NamedTuple):
    """The best ids of rows.

    Attributes:
        values: (rows, number), scaled scores, best first.
        ids: (rows, number).
        totals: (rows, 1), the sum of the weights of all ids.
        vocab: number of all ids.
    """

    values: Tensor
    ids: Tensor
    totals: Tensor
    vocab: int


def _top(scaled: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return values, ids and totals of `_Top`; overwrites the scores."""
    return *_best(scaled, number), scaled.exp_().sum(-1, keepdim=True)


def _keeps_all(params: SamplingParams, vocab: int) -> bool:
    return params.top_p >= 1 and params.min_p == 0 and not 0 < params.top_k < vocab


def _among_best(top: _Top, params: List[SamplingParams], at: List[float]) -> tuple[Tensor, Tensor]:
    """Draw from the best ids of each row.

    Args:
        top: the best ids.
        params: of each row.
        at: where in each row's distribution to draw.

    Returns:
        (rows,) ids, and (rows,) whether the cuts fell among the best ids; other rows are undecided.
    """

    def column(values: List[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)[:, None]

    values, ids, totals, vocab = top
    number = values.shape[-1]
    weights = values.exp()
    # top_k keeps all ids that equal the k-th best.
    kth = torch.tensor([min(p.top_k or vocab, number) - 1 for p in params])[:, None]
    limited = torch.tensor([[0 < p.top_k < vocab] for p in params])
    inside = ~limited | (values >= values.gather(-1, kth))
    weights = weights * inside
    total = torch.where(limited, weights.sum(-1, keepdim=True), totals)
    weights = weights / total
    before = weights.cumsum(-1) - weights
    top_p = column([p.top_p for p in params])
    kept = (
        inside
        & ((before < top_p) | (top_p >= 1))
        & (weights >= column([p.min_p for p in params]) * weights[:, :1])
    )
    # Ids that equal the last of the best may lie outside of them.
    last = values == values[:, -1:]
    unsettled = (kept & last).any(-1) | (limited & last.gather(-1, kth))[:, 0]
    settled = ~unsettled | (number == vocab)
    ids, order = ids.sort(dim=-1)
    places = _choose((weights * kept).gather(-1, order), torch.tensor(at))
    return ids.gather(-1, places[:, None])[:, 0], settled


def _best(scaled: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Return the best of each row, best first; of equal ones the lower ids first."""
    if number == scaled.shape[-1]:
        return scaled.sort(dim=-1, descending=True, stable=True)
    values, ids = scaled.topk(number, dim=-1)
    ids, order = ids.sort(dim=-1)
    values, order = values.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, order)


def _choose(weights: Tensor, at: Tensor) -> Tensor:
    """Return the index at the share `at` in [0, 1) of each row's cumulative weights."""
    cumulative = weights.cumsum(-1)
    targets = at.to(cumulative)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True)[:, 0].clamp(max=weights.shape[-1] - 1)


def _token(chosen: int, logits: Tensor, alternatives: int | None) -> Token:
    """Return a token, with the model's own log-probabilities if they are requested."""
    if alternatives is None:
        return Token(chosen)
    logprobs = logits.double().log_softmax(-1)
    values, ids = _best(logprobs[None], min(max(alternatives, 1), len(logprobs)))
    top = zip(ids[0].tolist(), values[0].tolist(), strict=True)
    return Token(chosen, float(logprobs[chosen]), tuple(top)[:alternatives])
