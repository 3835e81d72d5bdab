"""One sequence on its way through the engine: ids and counts, no tensors."""

from collections.abc import Callable
from collections.abc import Sequence as Ids
from typing import Any

from llama_serving.engine.handle import Handle
from llama_serving.sampling_params import SamplingParams


class Sequence:
    """A prompt and what was generated after it.

    Attributes:
        number: counts up with every sequence: lower is older.
        ids: prompt and generated tokens.
        computed: how many of them have their keys and values in the cache.
        kept: how many had, before the sequence was set aside; what was generated came back by copy, and counts
            again once the prompt is there.
        blocks: the cache blocks that hold them, in order; the last may be filled in part.
        saved: keys and values of what it generated, copied out of the cache while it is set aside.
        stop: asked with every generated id; True ends the sequence (stop strings are somebody else's matter).
    """

    __slots__ = (
        "blocks", "deadline", "handle", "ids", "num_computed_tokens", "num_prompt_tokens", "num_swapped_tokens", "params", "saved", "seq_id", "stop",
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
    ) -> None:
        self.seq_id = seq_id
        self.ids = list(prompt_ids)
        self.num_prompt_tokens = len(prompt_ids)
        self.params = params
        self.handle = handle
        self.deadline = deadline
        self.stop = stop
        self.num_computed_tokens = 0
        self.num_swapped_tokens = 0
        self.blocks: list[int] = []
        self.saved: Any = None

    @property
    def num_generated(self) -> int:
        """Tokens after the prompt."""
        return len(self.ids) - self.num_prompt_tokens

    @property
    def pending(self) -> int:
        """Tokens that a forward pass has yet to see."""
        return len(self.ids) - self.num_computed_tokens

    @property
    def prefilling(self) -> bool:
        """A part of the prompt is still pending."""
        return self.num_computed_tokens < self.num_prompt_tokens

    @property
    def most_tokens(self) -> int:
        """Tokens of keys and values that it can come to; the last token drawn is never read."""
        return self.num_prompt_tokens + self.params.max_new_tokens - 1
