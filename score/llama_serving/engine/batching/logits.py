"""Logits of single prompts, without an engine: to compare two checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from llama_serving.engine.batching.cache_size import free_bytes
from llama_serving.llama_config import LlamaConfig

SPARE: Final = 1.3
"""Memory that loading takes, in terms of the weights."""
DTYPES: Final = {"float32": 4, "bfloat16": 2}


def dtype_that_fits(parameters: int) -> str | None:
    """The most exact type that a model of so many weights can be loaded in here; None where there is none."""
    free = free_bytes()
    return next((name for name, size in DTYPES.items() if parameters * size * SPARE < free), None)


def next_token_logits(checkpoint: Path, prompts: Sequence[Sequence[int]], dtype: str) -> Any:
    """Logits after each prompt: an array (prompts, vocabulary) of float32.

    Raises:
        SetupError: the checkpoint can't be used.
    """
    import numpy as np

    from llama_serving.engine.batching.backends.base import Rows
    from llama_serving.engine.batching.backends.portable import BLOCK_TOKENS, Portable

    needed = [-(-len(prompt) // BLOCK_TOKENS) for prompt in prompts]

    def blocks(_: LlamaConfig) -> int:
        return max(needed) + 1  # the first is the backend's own

    model = Portable.of(checkpoint, dtype=dtype, num_blocks=blocks)
    rows = [
        Rows(prompt, 0, list(range(1, count + 1)), prefill=True, needs_logits=True)
        for prompt, count in zip(prompts, needed, strict=True)
    ]
    return np.stack([model.forward([each])[0].numpy() for each in rows])
