"""What every backend is: rows of token ids in, logits of the wanted ones out, keys and values kept in blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class BackendLostError(Exception):
    """The backend can't go on: no later forward pass would succeed."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive tokens of one sequence.

    Attributes:
        ids: the tokens.
        start: the position of the first.
        blocks: the cache blocks of the positions from 0 on; they reach at least to the last token here.
        prefill: they are a part of the prompt. A row's result may depend on this, and on nothing that
            happens to go through the model with it.
        needs_logits: the logits after the last token are wanted.
    """

    ids: Sequence[int]
    start: int
    blocks: Sequence[int]
    prefill: bool
    needs_logits: bool


class Backend(Protocol):
    """A loaded model with its cache of keys and values. One thread calls it, the one that made it.

    Attributes:
        name: what stats and logs call it.
        fallback_reason: why it is not the fastest there is; empty where it is.
        vocab: ids that the model knows.
        num_blocks: blocks of the cache.
        block_tokens: tokens in a block.
        chunk_rows: rows of a prompt that it is best given at a time; a smaller part costs as much.
        batch_invariant: a row's logits are made to depend on nothing that happens to be computed with it.
    """

    name: str
    fallback_reason: str
    vocab: int
    num_blocks: int
    block_tokens: int
    chunk_rows: int
    batch_invariant: bool

    def forward(self, batch: Sequence[Rows]) -> "torch.Tensor":
        """One pass over all rows; doing it again with the same rows changes nothing.

        Returns:
            (wanted, vocab) logits in float32, in the order of the batch.

        Raises:
            BackendLostError: nothing can be computed any more.
            Exception: this pass failed; its rows, or some of them, are at fault.
        """
        ...

    def save(self, blocks: Sequence[int]) -> Any:
        """A copy of the keys and values in these blocks."""
        ...

    def restore(self, blocks: Sequence[int], saved: Any) -> None:
        """Write a copy back, to blocks that may be others."""
        ...

    def clear(self, blocks: Sequence[int]) -> None:
        """Write zeros to these blocks."""
        ...

    def trial(self, num_blocks: int) -> "Backend":
        """The model's first layer and its head, which share the weights, over a cache of so many blocks of its own."""
        ...

    def stricter(self) -> str:
        """Compute in the next slower way from now on, one in which results depend on less.

        Returns:
            What that way is; empty where there is none left.
        """
        ...
