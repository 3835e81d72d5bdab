"""How long work will take on this machine, without doing it: from what its memory and its arithmetic can do."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from llama_serving.engine.batching.checkpoint import LlamaConfig

READ: Final = 1 << 28
"""Bytes that are read to see how fast memory is: more than any cache has."""
PRODUCT: Final = (256, 2048, 2048)
"""Rows, inputs and outputs of the product that shows how fast arithmetic is."""
ROUNDS: Final = 5
LAYER_S: Final = 0.45e-3
"""What the small operations of a layer take in each step, whatever its size; measured with torch 2.13 on two cores."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What a machine can do.

    Attributes:
        bytes_per_s: that all cores together read of their memory.
        flops: of matrix products, a second.
        item_bytes: of one weight.
    """

    bytes_per_s: float
    flops: float
    item_bytes: int

    @classmethod
    def measured(cls, dtype: str, threads: int | None = None, *, on_gpu: bool = False) -> "Speed":
        """This machine's, in less than a second.

        Args:
            dtype: of the weights.
            threads: of torch; None is torch's own choice.
            on_gpu: its GPU's, if it has one.
        """
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        device = "cuda" if on_gpu and torch.cuda.is_available() else "cpu"
        memory = torch.ones(READ // 4, device=device)
        rows, inputs, outputs = PRODUCT
        left, right = (
            torch.ones(shape, dtype=getattr(torch, dtype), device=device)
            for shape in ((rows, inputs), (inputs, outputs))
        )

        def best(do: Callable[[], Any], amount: float) -> float:
            rates = []
            for _ in range(ROUNDS):
                began = time.perf_counter()
                float(do())  # (a number: the device has done whatever is behind it)
                rates.append(amount / (time.perf_counter() - began))
            return max(rates)

        return cls(
            best(memory.sum, READ),
            best(lambda: torch.mm(left, right)[0, 0], 2.0 * rows * inputs * outputs),
            left.itemsize,
        )

    def seconds(
        self, config: LlamaConfig, *, rows: int, prompt_tokens: int, new_tokens: int, slots: int
    ) -> float:
        """What some rows take, roughly: each step reads all weights once, and the keys and values of the rows in it.

        Args:
            config: of the model.
            rows: how many.
            prompt_tokens: of all together.
            new_tokens: of all together.
            slots: rows that are generated at a time.
        """
        if not rows:
            return 0.0
        weights, together = config.weights_per_token, min(slots, rows)
        context = (prompt_tokens + new_tokens / 2) / rows
        read = self.item_bytes * (weights + together * context * config.kv_values_per_token)
        step = max(read / self.bytes_per_s, 2 * weights * together / self.flops) + config.layers * LAYER_S
        return 2 * weights * prompt_tokens / self.flops + step * new_tokens / together
