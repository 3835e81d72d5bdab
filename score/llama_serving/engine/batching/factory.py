"""From a checkpoint to a running batching engine."""

from pathlib import Path
from typing import Final

from llama_serving.engine import compute_threads
from llama_serving.engine.batching.backends.base import Backend
from llama_serving.engine.batching.backends.selection import BackendRequest, select_backend
from llama_serving.engine.batching.cache_size import num_blocks
from llama_serving.engine.batching.checkpoint import CheckpointWeights, read_config
from llama_serving.engine.batching.engine import BatchingEngine
from llama_serving.errors import SetupError
from llama_serving.llama_config import LlamaConfig

DTYPES: Final = ("float32", "bfloat16")
FEWEST: Final = 256
"""Tokens that the cache must hold at least."""


def gpu_in_torch() -> bool:
    """Whether torch sees a GPU, for which this engine has no backend."""
    import torch

    return torch.cuda.is_available()


def start(  # noqa: PLR0913  (one call site, all named)
    checkpoint: Path,
    *,
    dtype: str,
    context: int,
    threads: int | None = None,
    max_num_seqs: int = 16,
    kv_memory: int | None = None,
    backend: str = "auto",
    quantization: str = "none",
) -> BatchingEngine:
    """A running engine.

    Args:
        checkpoint: a folder with `config.json` and safetensors.
        dtype: `float32` or `bfloat16`.
        context: tokens that one sequence may come to.
        threads: of torch; None is its own choice, within a container's quota.
        max_num_seqs: sequences that run at a time.
        kv_memory: bytes for keys and values; None is half of what is free.
        backend: see `BackendRequest`.
        quantization: see `BackendRequest`.

    Raises:
        SetupError: the checkpoint can't be used, there is no memory for one sequence, or what is wanted can't be had here.
    """
    if dtype not in DTYPES:
        raise SetupError(
            f"The batching engine computes in {' or '.join(DTYPES)}, not {dtype}. Set LLAMA_DTYPE."
        )

    def load() -> Backend:
        import torch

        compute_threads.use(threads)
        read = read_config(checkpoint)
        selection = select_backend(read, BackendRequest(dtype, backend, quantization))
        block_tokens = selection.block_tokens

        def blocks(config: LlamaConfig) -> int:
            number = num_blocks(
                block_bytes=config.kv_values_per_token * getattr(torch, dtype).itemsize * block_tokens,
                block_tokens=block_tokens,
                wanted_tokens=context * max_num_seqs,
                limit=kv_memory,
            )
            if number * block_tokens < min(context, FEWEST):
                raise SetupError(
                    f"The memory for keys and values holds {number * block_tokens} tokens, which is too few to serve "
                    "with. Raise LLAMA_KV_MEMORY, or use a machine with more memory."
                )
            return number + 1  # the engine's own

        return selection.load(read, CheckpointWeights(checkpoint), blocks)

    return BatchingEngine(load, max_num_seqs=max_num_seqs)
