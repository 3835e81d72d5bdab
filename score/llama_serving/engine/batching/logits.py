"""Logits of single prompts, without an engine: to compare two checkpoints, and to measure perplexity."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from llama_serving.engine.batching.cache_size import free_bytes
from llama_serving.llama_config import LlamaConfig

SPARE: Final = 1.3
"""Memory needed for loading, as a multiple of the weights."""
TOKENS_AT_ONCE: Final = 64
DTYPES: Final = {"float32": 4, "bfloat16": 2}


def dtype_that_fits(parameters: int) -> str | None:
    """Return the most exact type that fits this machine's memory for `parameters` weights; None if none fits."""
    free = free_bytes()
    return next((name for name, size in DTYPES.items() if parameters * size * SPARE < free), None)


def next_token_logits(checkpoint: Path, prompts: Sequence[Sequence[int]], dtype: str) -> Any:
    """Return the logits after each prompt: an array (prompts, vocabulary) of float32.

    Raises:
        SetupError: the checkpoint cannot be used.
    """
    import numpy as np

    from llama_serving.engine.batching.backends.base import Rows
    from llama_serving.engine.batching.backends.portable import BLOCK_TOKENS, Portable

    needed = [-(-len(prompt) // BLOCK_TOKENS) for prompt in prompts]

    def blocks(_: LlamaConfig) -> int:
        return max(needed) + 1  # the first is reserved for the backend

    model = Portable.of(checkpoint, dtype=dtype, num_blocks=blocks)
    rows = [
        Rows(prompt, 0, list(range(1, count + 1)), prefill=True, num_logits=1)
        for prompt, count in zip(prompts, needed, strict=True)
    ]
    return np.stack([model.forward([each])[0].numpy() for each in rows])


def token_logprobs(checkpoint: Path, longest: int, dtype: str) -> Callable[[Sequence[int]], list[float]]:
    """Load a model and return what computes the log-probability of each token of a text but the first, in nats.

    Args:
        checkpoint: the folder.
        longest: most tokens of a text.
        dtype: type of the weights.

    Raises:
        SetupError: the checkpoint cannot be used.
    """
    import torch

    from llama_serving.engine.batching.backends.base import Rows
    from llama_serving.engine.batching.backends.portable import BLOCK_TOKENS, Portable

    needed = -(-longest // BLOCK_TOKENS)
    blocks = list(range(1, needed + 1))  # the first is reserved for the backend
    model = Portable.of(checkpoint, dtype=dtype, num_blocks=lambda _: needed + 1)

    def logprobs(ids: Sequence[int]) -> list[float]:
        found = list[float]()
        for start in range(0, len(ids) - 1, TOKENS_AT_ONCE):
            count = min(TOKENS_AT_ONCE, len(ids) - 1 - start)
            rows = Rows(ids[start : start + count], start, blocks, prefill=True, num_logits=count)
            logits = torch.log_softmax(model.forward([rows]), dim=-1)
            following = torch.tensor(ids[start + 1 : start + count + 1])
            found += logits.gather(1, following[:, None])[:, 0].tolist()
        return found

    return logprobs
