"""Measure how far an adapter moves a model: compare logits of the base and the merged checkpoint after fixed prompts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from llama_serving.catalog import ModelVariant
from llama_serving.engine.batching.logits import DTYPES, SPARE, dtype_that_fits, next_token_logits
from llama_serving.errors import SetupError
from llama_serving.prompts.tokenizer import Tokenizer

PROMPTS: Final = (
    "def fibonacci(n):\n    ",
    "import os\nimport ",
    "class Stack:\n    def push(self, item):\n",
    "SELECT name FROM ",
    "The capital of France is",
    "Q: What does `git rebase` do?\nA:",
    "[INST] Write a function that reverses a string. [/INST]",
    "[INST] Say hello. [/INST]",
)


@dataclass(frozen=True, slots=True)
class LogitShift:
    """The result of a comparison.

    Attributes:
        dtype: type both models were computed in.
        prompts: number of prompts.
        mean: mean absolute difference of a logit.
        largest: largest absolute difference.
        divergence: mean Kullback-Leibler divergence of the merged model's next token from the base's, in nats.
        changed: number of prompts with another most likely next token.
    """

    dtype: str
    prompts: int
    mean: float
    largest: float
    divergence: float
    changed: int

    def __str__(self) -> str:
        """Return the result as a sentence."""
        return (
            f"Logits after {self.prompts} fixed prompts moved by {self.mean:.3g} on average and {self.largest:.3g} at most "
            f"(KL divergence {self.divergence:.3g}, {self.dtype}); the most likely next token is another one after "
            f"{self.changed} of them."
        )


def measure(base: Path, merged: Path, variant: ModelVariant) -> LogitShift | str:
    """Return the shift, or a sentence why it was not computed.

    Raises:
        SetupError: a checkpoint cannot be read.
    """
    parameters = variant.shape.parameters
    dtype = dtype_that_fits(parameters)
    if dtype is None:
        needed = int(parameters * min(DTYPES.values()) * SPARE)
        return f"Logits were not compared: that takes about {needed:,} bytes of free memory, more than is available."
    tokenizer = Tokenizer.from_folder(base, variant.special_ids)
    prompts = [[variant.bos_id, *tokenizer.encode(text)] for text in PROMPTS]
    try:
        before, after = (next_token_logits(folder, prompts, dtype) for folder in (base, merged))
    except SetupError as error:  # our own engine cannot run it; another one may
        return f"Logits were not compared: {error}"
    return compare(before, after, dtype)


def compare(before: Any, after: Any, dtype: str) -> LogitShift:
    """Compare two arrays of logits (prompts, vocabulary)."""
    moved = np.abs(after.astype(np.float64) - before)
    old, new = _log_softmax(before), _log_softmax(after)
    divergence = (np.exp(old) * (old - new)).sum(-1).mean()
    changed = int((before.argmax(-1) != after.argmax(-1)).sum())
    return LogitShift(dtype, len(before), float(moved.mean()), float(moved.max()), float(divergence), changed)


def _log_softmax(logits: Any) -> Any:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
