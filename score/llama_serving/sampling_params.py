"""How the tokens of one sequence are drawn, and why it ended."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one sequence is sampled: every field decided, nothing left to a library's default.

    Attributes:
        max_new_tokens: tokens to generate at most, at least 1.
        min_new_tokens: tokens before `stop_ids` may be drawn.
        temperature: 0 is greedy.
        top_k: 0 is off.
        repetition_penalty: over prompt and completion, as transformers defines it.
        presence_penalty: over the completion, as OpenAI defines it; `frequency_penalty` likewise.
        stop_ids: ids that end the sequence.
        seed: 0 … 2^63 − 1.
        index: which of the returned sequences this is; a part of what its random numbers are made from.
        logprobs: how many best tokens to report beside each drawn one; None is off. They are of the
            model's own distribution: before penalties, temperature and cuts.
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


FinishReason = Literal["stop", "length", "deadline", "cancelled"]
