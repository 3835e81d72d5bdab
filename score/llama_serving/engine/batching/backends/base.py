"""The interface of all backends: rows of token ids in, logits out; keys and values are kept in blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class BackendLostError(Exception):
    """The backend is broken: every later forward pass would fail."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive tokens of one sequence.

    Attributes:
        ids: the tokens.
        start: position of the first token.
        blocks: the cache blocks from position 0 on, at least up to the last token here.
        prefill: they are prompt tokens. A row's result may depend on this, but not on the other rows of the step.
        num_logits: return the logits after the last `num_logits` tokens; 0 is none.
        layers: the first layer that they go through in this pass, and the one before which they stop; None is all. Later
            passes go on with the same rows, until the last layer. Rows of a pass with `layers` have the same ones and are last.
    """

    ids: Sequence[int]
    start: int
    blocks: Sequence[int]
    prefill: bool
    num_logits: int
    layers: tuple[int, int] | None = None


class Backend(Protocol):
    """A loaded model with its cache of keys and values. Only the thread that created it may call it.

    Attributes:
        name: for stats and logs.
        fallback_reason: why it is not the fastest backend; empty if it is.
        instructions: name of the instruction set that its kernels are compiled for; empty if it has none of its own.
        vocab: size of the vocabulary.
        num_blocks: blocks of the cache.
        block_tokens: tokens in a block.
        chunk_rows: best number of prompt rows at a time; fewer take as long.
        num_layers: layers that prompt rows can be computed in a few of at a time; 1 if only in all.
        batch_invariant: a row's logits are meant to be independent of the other rows.
    """

    name: str
    fallback_reason: str
    instructions: str
    vocab: int
    num_blocks: int
    block_tokens: int
    chunk_rows: int
    num_layers: int
    batch_invariant: bool

    def forward(self, batch: Sequence[Rows]) -> "torch.Tensor":
        """Run one forward pass; repeating it with the same rows gives the same result.

        Returns:
            (sum of `num_logits`, vocab) logits in float32, in the order of the batch.

        Raises:
            BackendLostError: every later pass would fail, too.
            Exception: this pass failed because of its rows.
        """

    def save(self, blocks: Sequence[int]) -> Any:
        """Return a copy of the keys and values in these blocks."""

    def restore(self, blocks: Sequence[int], saved: Any) -> None:
        """Write a copy back, to the same number of blocks."""

    def clear(self, blocks: Sequence[int]) -> None:
        """Write zeros to these blocks."""

    def trial(self, num_blocks: int) -> "Backend":
        """Return the model's first layer and head, sharing its weights, with a new cache of `num_blocks` blocks."""

    def stricter(self) -> str:
        """Switch to the next slower mode, in which results depend on less.

        Returns:
            A description of that mode; empty if there is none left.
        """
