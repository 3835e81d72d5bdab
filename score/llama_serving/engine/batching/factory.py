"""Starts a batching engine from a checkpoint."""

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
"""Least number of tokens that the cache must hold."""


def gpu_in_torch() -> bool:
    """Return whether torch sees a GPU, for which this engine has no backend."""
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
    """Start an engine.

    Args:
        checkpoint: a folder with `config.json` and safetensors.
        dtype: `float32` or `bfloat16`.
        context: most tokens of one sequence.
        threads: of torch; None is torch's default, within the container's quota.
        max_num_seqs: sequences that run at a time.
        kv_memory: bytes for keys and values; None is half of the free memory.
        backend: see `BackendRequest`.
        quantization: see `BackendRequest`.

    Raises:
        SetupError: the checkpoint or backend cannot be used, or the memory is too small.
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
                    f"The cache of keys and values holds {number * block_tokens} tokens, which is too few to serve. "
                    "Raise LLAMA_KV_MEMORY, or use a machine with more memory."
                )
            return number + 1  # one is reserved for the engine

        return selection.load(read, CheckpointWeights(checkpoint), blocks)

    return BatchingEngine(load, max_num_seqs=max_num_seqs)
