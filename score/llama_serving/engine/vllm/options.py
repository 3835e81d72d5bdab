"""What vLLM is started with: the model and the operator's options. Values only."""

from dataclasses import dataclass
from pathlib import Path

START_S = 7200.0
"""Loading 138 GB of weights takes 92 minutes at 25 MB/s, a slow day."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The checkpoint that vLLM serves.

    Attributes:
        checkpoint: folder of config.json, tokenizer and safetensors.
        name: the model's name in requests.
        dtype: of weights and computation.
        context: tokens of prompt and completion together.
        positions: `max_position_embeddings` of its config.json; None if missing.
        kv_bytes: bytes of keys and values for one token.
        weight_bytes: bytes of all weights.
    """

    checkpoint: Path
    name: str
    dtype: str
    context: int
    positions: int | None
    kv_bytes: int
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class VllmLaunchOptions:
    """The operator's options of vLLM; none of them depends on a request.

    Attributes:
        python: the environment that has vLLM: its Python, or its `vllm` command; None is `vllm` on PATH.
        max_num_seqs: sequences that run at a time.
        kv_memory: bytes for keys and values; None leaves it to vLLM on a GPU, and to `command.kv_bytes` on a CPU.
        threads: OpenMP threads on a CPU; None is vLLM's default.
        tensor_parallel: GPUs that share each layer.
        pipeline_parallel: groups of GPUs that share the layers among them.
        gpu_share: share of a GPU's memory that vLLM may use.
        prefix_caching: keep keys and values of prompts, to reuse them for prompts with the same prefix.
        prefill_tokens: most tokens in one step (chunked prefill); None is vLLM's default.
        speculative_tokens: tokens guessed by prompt lookup in each step; 0 is none.
        kv_dtype: type of keys and values: `auto` (the model's) or `fp8`.
        eager: neither compile nor record CUDA graphs.
        start_s: seconds until vLLM must be healthy.
        log_everything: copy all of vLLM's output to our log. It may quote prompts.
    """

    python: str | None = None
    max_num_seqs: int = 16
    kv_memory: int | None = None
    threads: int | None = None
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    gpu_share: float = 0.92
    prefix_caching: bool = True
    prefill_tokens: int | None = None
    speculative_tokens: int = 0
    kv_dtype: str = "auto"
    eager: bool = False
    start_s: float = START_S
    log_everything: bool = False
