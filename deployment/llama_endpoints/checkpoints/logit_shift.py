"""How far an adapter moves a model: logits after a few fixed prompts, of the base and of the merged checkpoint."""

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
    """What a comparison found.

    Attributes:
        dtype: that both models were computed in.
        prompts: number of them.
        mean: absolute difference of a logit.
        largest: likewise.
        divergence: Kullback-Leibler, of the merged model's next token from the base's, in nats; the mean.
        changed: prompts after which another token is now the most likely one.
    """

    dtype: str
    prompts: int
    mean: float
    largest: float
    divergence: float
    changed: int

    def __str__(self) -> str:
        """A sentence."""
        return (
            f"Logits after {self.prompts} fixed prompts moved by {self.mean:.3g} on average and {self.largest:.3g} at most "
            f"(KL divergence {self.divergence:.3g}, {self.dtype}); the most likely next token is another one after "
            f"{self.changed} of them."
        )


def measure(base: Path, merged: Path, variant: ModelVariant) -> LogitShift | str:
    """The shift, or why it was not computed: a sentence.

    Raises:
        SetupError: a checkpoint can't be read.
    """
    parameters = variant.shape.parameters
    dtype = dtype_that_fits(parameters)
    if dtype is None:
        needed = int(parameters * min(DTYPES.values()) * SPARE)
        return (
            f"Logits were not compared: that takes about {needed:,} bytes of free memory, more than there is."
        )
    tokenizer = Tokenizer.from_folder(base, variant.special_ids)
    prompts = [[variant.bos_id, *tokenizer.encode(text)] for text in PROMPTS]
    try:
        before, after = (next_token_logits(folder, prompts, dtype) for folder in (base, merged))
    except SetupError as error:  # our own engine can't compute it; another one may
        return f"Logits were not compared: {error}"
    return compare(before, after, dtype)


def compare(before: Any, after: Any, dtype: str) -> LogitShift:
    """The shift from one array of logits (prompts, vocabulary) to another."""
    moved = np.abs(after.astype(np.float64) - before)
    old, new = _log_softmax(before), _log_softmax(after)
    divergence = (np.exp(old) * (old - new)).sum(-1).mean()
    changed = int((before.argmax(-1) != after.argmax(-1)).sum())
    return LogitShift(dtype, len(before), float(moved.mean()), float(moved.max()), float(divergence), changed)


def _log_softmax(logits: Any) -> Any:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
