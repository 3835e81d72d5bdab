"""Starts a batching engine from a checkpoint."""

import logging
from pathlib import Path
from typing import Final

from llama_serving.engine import compute_threads
from llama_serving.engine.batching.backends.base import Backend
from llama_serving.engine.batching.backends.selection import BackendRequest, BackendSelection, select_backend
from llama_serving.engine.batching.cache_size import num_blocks
from llama_serving.engine.batching.checkpoint import CheckpointWeights, read_config
from llama_serving.engine.batching.engine import BatchingEngine
from llama_serving.engine.batching.packed_copy import PackedCopy
from llama_serving.errors import SetupError
from llama_serving.llama_config import LlamaConfig
from llama_serving.settings import Settings

_log = logging.getLogger(__name__)

DTYPES: Final = ("float32", "bfloat16")
FEWEST: Final = 256
"""Least number of tokens that the cache must hold."""
DEFAULTS: Final = Settings()


def gpu_in_torch() -> bool:
    """Return whether torch sees a GPU, for which this engine has no backend."""
    import torch

    return torch.cuda.is_available()


def start(checkpoint: Path, *, dtype: str, context: int, settings: Settings = DEFAULTS) -> BatchingEngine:
    """Start an engine.

    Args:
        checkpoint: a folder with `config.json` and safetensors.
        dtype: `float32` or `bfloat16`.
        context: most tokens of one sequence.
        settings: of the operator.

    Raises:
        SetupError: the checkpoint or backend cannot be used, or the memory is too small.
    """
    if dtype not in DTYPES:
        raise SetupError(
            f"The batching engine computes in {' or '.join(DTYPES)}, not {dtype}. Set LLAMA_DTYPE."
        )

    def load() -> Backend:
        import torch

        compute_threads.use(settings.threads)
        read = read_config(checkpoint)
        selection = select_backend(
            read, BackendRequest(dtype, settings.backend, settings.quantization, settings.cpu_instructions)
        )
        block_tokens = selection.block_tokens

        def blocks(config: LlamaConfig) -> int:
            number = num_blocks(
                block_bytes=config.kv_values_per_token * getattr(torch, dtype).itemsize * block_tokens,
                block_tokens=block_tokens,
                wanted_tokens=context * settings.max_num_seqs,
                limit=settings.kv_memory,
            )
            if number * block_tokens < min(context, FEWEST):
                raise SetupError(
                    f"The cache of keys and values holds {number * block_tokens} tokens, which is too few to serve. "
                    "Raise LLAMA_KV_MEMORY, or use a machine with more memory."
                )
            return number + 1  # one is reserved for the engine

        return selection.load(
            read, CheckpointWeights(checkpoint), blocks, _copy(checkpoint, selection, settings)
        )

    return BatchingEngine(
        load, max_num_seqs=settings.max_num_seqs, speculative_tokens=settings.speculative_tokens
    )


def _copy(checkpoint: Path, selection: BackendSelection, settings: Settings) -> PackedCopy | None:
    """Return the place of packed weights; None where none are kept."""
    if selection.kernels is None or settings.quantization == "none" or not settings.packed_copy:
        return None
    try:
        return PackedCopy.of(checkpoint, settings.quantization)
    except (
        OSError
    ) as error:  # where it matters, loading says so; a stray file beside the weights need not be readable
        _log.warning("packed weights are neither read nor kept: %s", error)
        return None
