"""What vLLM is started with: the model, and what an operator may set. Values only."""

from dataclasses import dataclass
from pathlib import Path

START_S = 7200.0
"""138 GB of weights take 92 minutes at 25 MB/s, which is a slow day."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The checkpoint that vLLM loads.

    Attributes:
        checkpoint: the folder with config.json, tokenizer and safetensors.
        name: the name that requests use.
        dtype: of the weights and the computation.
        context: tokens of prompt and completion together.
        positions: `max_position_embeddings` of its config.json; None where that does not say.
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
    """The operator's settings for vLLM. Nothing of a request is among them.

    Attributes:
        python: the environment that has vLLM: its Python, or its `vllm` command; None is `vllm` on PATH.
        max_num_seqs: sequences that run at a time.
        kv_memory: bytes for keys and values; None leaves it to vLLM on a GPU, and to `command.cpu_kv_bytes` on a CPU.
        threads: OpenMP threads on a CPU; None is vLLM's own choice.
        tensor_parallel: GPUs that share each layer.
        pipeline_parallel: groups of GPUs that share the layers among them.
        gpu_share: of a GPU's memory, what vLLM may take.
        prefix_caching: keep the keys and values of prompts for later prompts that begin alike.
        prefill_tokens: tokens that one step computes at most (chunked prefill); None is vLLM's default.
        speculative_tokens: tokens guessed by prompt lookup in each step; 0 is none.
        kv_dtype: of keys and values: `auto` (the model's) or `fp8`.
        eager: do not compile, and record no CUDA graphs.
        start_s: seconds that a start may take until vLLM is healthy.
        log_everything: all that vLLM writes goes to our log. It may quote prompts.
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
