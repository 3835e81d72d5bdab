"""Sampling parameters of one sequence, and its finish reasons."""

from dataclasses import dataclass
from typing import Final, Literal

from llama_serving.constraints.constraint import Constraint

DEFAULT_MAX_NEW_TOKENS: Final = 256


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one sequence is sampled. Every field is set, so no library default applies.

    Attributes:
        max_new_tokens: tokens to generate at most; 0 only reads the prompt.
        min_new_tokens: tokens before `stop_ids` may be drawn.
        temperature: 0 is greedy.
        top_k: 0 is off.
        repetition_penalty: over prompt and completion, as transformers defines it.
        presence_penalty: over the completion, as OpenAI defines it; `frequency_penalty` likewise.
        stop_ids: ids that end the sequence.
        seed: 0 … 2^63 − 1.
        index: position of the sequence among those returned for a prompt; random numbers depend on it.
        logprobs: how many of the most likely tokens to report for each generated one; None reports none. The
            log-probabilities are the model's own: before penalties, temperature and top_k, top_p, min_p.
        prompt_logprobs: as `logprobs`, for the tokens of the prompt.
        logit_bias: token ids and what is added to their logits, before penalties.
        constraint: what the text must hold to; `stop_ids` that stand for no text are drawn only where it may end.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop_ids: frozenset[int] = frozenset()
    seed: int = 0
    index: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    constraint: Constraint | None = None


FinishReason = Literal["stop", "length", "deadline", "cancelled", "content_filter"]
