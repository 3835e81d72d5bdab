"""One sequence of the engine: ids and counts, no tensors."""

from collections.abc import Callable
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from typing import Any, Protocol

from llama_serving.constraints.matcher import Matcher
from llama_serving.engine.batching.speculation import Guesses, PromptLookup
from llama_serving.engine.handle import Handle
from llama_serving.sampling_params import SamplingParams


class SoFar(Protocol):
    """What the sampler knows of a sequence."""

    @property
    def params(self) -> SamplingParams:
        """How to sample."""

    @property
    def ids(self) -> Ids[int]:
        """Prompt and generated tokens."""

    @property
    def num_prompt_tokens(self) -> int:
        """Number of prompt tokens."""

    @property
    def num_generated(self) -> int:
        """Number of tokens after the prompt."""

    @property
    def matcher(self) -> Matcher | None:
        """Holds the text to a constraint; it has taken all tokens but those `ahead`."""

    @property
    def ahead(self) -> tuple[int, ...]:
        """Guessed tokens at the end of `ids`."""


class Sequence:
    """A prompt and the tokens generated after it.

    Attributes:
        seq_id: increases with every sequence, so a lower one is older.
        ids: prompt and generated tokens.
        num_computed_tokens: tokens whose keys and values are in the cache.
        num_swapped_tokens: `num_computed_tokens` before preemption. Keys and values of generated tokens are copied back, and
            count again once the prompt is recomputed.
        blocks: the cache blocks of the tokens, in order; the last may be partly filled.
        saved: keys and values of generated tokens, copied out of the cache during preemption.
        stop: called with every generated id; True ends the sequence.
        guesses: of its next tokens.
        matcher: holds the text to a constraint. It follows `ids`, and stays as it is during preemption.
    """

    __slots__ = (
        "blocks", "deadline", "guesses", "handle", "ids", "matcher", "num_computed_tokens", "num_prompt_tokens",
        "num_swapped_tokens", "params", "saved", "seq_id", "stop",
    )  # fmt: skip

    def __init__(  # noqa: PLR0913  (one call site, all named)
        self,
        seq_id: int,
        prompt_ids: Ids[int],
        params: SamplingParams,
        handle: Handle,
        *,
        deadline: float | None = None,
        stop: Callable[[int], bool] | None = None,
        matcher: Matcher | None = None,
    ) -> None:
        self.seq_id = seq_id
        self.ids = list(prompt_ids)
        self.num_prompt_tokens = len(prompt_ids)
        self.params = params
        self.handle = handle
        self.deadline = deadline
        self.stop = stop
        self.matcher = matcher
        self.num_computed_tokens = 0
        self.num_swapped_tokens = 0
        self.blocks: list[int] = []
        self.saved: Any = None
        self.guesses = Guesses(PromptLookup(self.ids))

    @property
    def num_generated(self) -> int:
        """Number of tokens after the prompt."""
        return len(self.ids) - self.num_prompt_tokens

    @property
    def ahead(self) -> tuple[int, ...]:
        """See `SoFar.ahead`."""
        return ()

    @property
    def pending(self) -> int:
        """Number of tokens without keys and values."""
        return len(self.ids) - self.num_computed_tokens

    @property
    def prefilling(self) -> bool:
        """Whether a part of the prompt is pending."""
        return self.num_computed_tokens < self.num_prompt_tokens

    @property
    def scoring(self) -> bool:
        """Whether log-probabilities of the prompt are requested and not all delivered, so that every token is computed."""
        return self.params.prompt_logprobs is not None and len(self.handle.prompt) < self.num_prompt_tokens - 1

    @property
    def most_tokens(self) -> int:
        """Most tokens with keys and values; the last generated token never needs them."""
        return self.num_prompt_tokens + max(self.params.max_new_tokens - 1, 0)


@dataclass(frozen=True, slots=True)
class Guessed:
    """A sequence as it is if guessed tokens are accepted."""

    sequence: Sequence
    tokens: tuple[int, ...]

    @property
    def params(self) -> SamplingParams:
        """How to sample."""
        return self.sequence.params

    @property
    def ids(self) -> Ids[int]:
        """Prompt, generated and guessed tokens."""
        return [*self.sequence.ids, *self.tokens]

    @property
    def num_prompt_tokens(self) -> int:
        """Number of prompt tokens."""
        return self.sequence.num_prompt_tokens

    @property
    def num_generated(self) -> int:
        """Number of tokens after the prompt, with the guessed ones."""
        return self.sequence.num_generated + len(self.tokens)

    @property
    def matcher(self) -> Matcher | None:
        """See `SoFar.matcher`."""
        return self.sequence.matcher

    @property
    def ahead(self) -> tuple[int, ...]:
        """See `SoFar.ahead`."""
        return self.tokens
