"""Memory and speed of a model, workload and machine. Pure arithmetic; every constant has its source.

Memory is counted for the concurrent sequences, each of the workload's length: the whole context, or the usual length.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final

from llama_endpoints.planning.skus import Gpu, Sku
from llama_serving.catalog import ModelVariant, Shape


class Runner(StrEnum):
    """The engine on the GPU."""

    PIPELINE = "pipeline"  # in the scoring process: one sequence, and one GPU, at a time
    VLLM = "vllm"  # a separate process: many sequences at a time, on all GPUs at once


_MIB: Final = 1 << 20
_GIB: Final = 1 << 30

CONTEXT_MIB: Final = 500
"""Per GPU, before the first weight: the CUDA context and the kernels of torch and cuBLAS. The rule of thumb of
pytorch/serve#2128; reports range from 102 (T4) to 426 MiB, none of them for an H100."""
USABLE: Final = 0.92
"""The usable share of a GPU's memory, as vLLM's `gpu_memory_utilization`; allocators cannot use the rest."""
COMPUTE: Final = 0.48
"""The achieved share of a GPU's peak operations: TensorRT-LLM 0.6.1, 7B in fp16 on an A100, 128 tokens in and 128 out,
5,586 tokens/s."""

GRAPHS_MIB: Final = 1024
"""Per GPU, for vLLM's CUDA graphs of up to 256 sequences. An assumption: vLLM's pull request #22897 logs 24 to 28 MiB per graph,
35 of which reach 256; up to 0.6 vLLM warned of 1 to 3 GiB."""
VLLM_CAPABILITY: Final = 75
"""The lowest compute capability, times ten, of the image's vLLM: its wheels and its torch are built for CUDA 13, which starts with
Turing (pytorch/pytorch#172352, support matrix). vLLM's sources still allow 7.0."""
LARGE_MIB: Final = 70 * 1024
PREFILL_TOKENS: Final = 2048
LARGE_PREFILL_TOKENS: Final = 8192
"""The defaults of vLLM's server for prompt tokens per step; the second on a GPU of 70 GiB or more that is not an A100 (vLLM 0.32,
engine/arg_utils.py, get_batch_defaults)."""

IMAGE_GIB: Final = {Runner.PIPELINE: 10, Runner.VLLM: 20}
"""Disk space for image and scratch, besides the weights. Assumptions: Python with torch and CUDA's libraries unpacks to
about 8; vLLM's kernels and its compiler add to that. (For "OutOfQuota: Disk" Azure advises a smaller image or model, and its own
catalog has no 16-bit 70B model on a disk of 128 GiB.)"""
HOST_GIB: Final = 8
"""Host memory for Python, torch, CUDA's libraries and a tensor in transit. An assumption; the files are mapped, so the kernel
can reclaim their pages."""


class Precision(StrEnum):
    """The type of the layers' weights. Activations, embeddings and head always have 16 bits."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"  # compressed-tensors
    INT8 = "int8"  # GPTQ, compressed-tensors
    INT4 = "int4"  # AWQ, GPTQ, compressed-tensors


class KvDtype(StrEnum):
    """The type of vLLM's KV cache, as in `LLAMA_VLLM_KV_DTYPE`."""

    AUTO = "auto"  # the model's 16 bits
    FP8 = "fp8"


SCALE_GROUP: Final = 128
"""Four-bit weights that share a 16-bit scale, in usual published checkpoints."""
_LINEAR_BITS: Final = {
    Precision.BF16: 16.0,
    Precision.FP16: 16.0,
    Precision.FP8: 8.0,
    Precision.INT8: 8.0,
    Precision.INT4: 4.125,
}
"""Bits per weight of the layers; embeddings, norms and head stay in 16. Four-bit groups include their 16-bit scale."""
SIXTEEN_BITS: Final = (Precision.BF16, Precision.FP16)
BANDWIDTH: Final = 0.69
"""The achieved share of memory bandwidth. PyTorch's gpt-fast, 7B in bf16 on an A100-80, one sequence, compiled:
104.9 tokens/s of a limit of 151."""
_WEIGHTS_BANDWIDTH: Final = {
    Precision.BF16: BANDWIDTH,
    Precision.FP16: BANDWIDTH,
    Precision.FP8: 0.53,
    Precision.INT8: 0.53,
    Precision.INT4: 0.41,
}
"""The same for weights that are widened while they are read. gpt-fast's 155.6 tokens/s in int8, and between its 196.8 in int4 and
the 25.3 of 70B (pytorch.org/blog/accelerating-generative-ai-2). fp8 as int8, an assumption."""
LAUNCH_S: Final = 1 / 25.5 / 32
"""Seconds for Python to launch one layer's kernels. gpt-fast without compilation: 25.5 tokens/s and "heavily CPU overhead bound", 32
layers (pytorch.org/blog/accelerating-generative-ai-2). The GPU works meanwhile, so a step takes the longer of the two."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The load on a model.

    Attributes:
        context: the most tokens of prompt and completion.
        concurrency: concurrent sequences.
        usual: usual tokens of a finished sequence; None is the whole context. vLLM allocates its cache in blocks as sequences grow, so
        this decides how many sequences fit.
    """

    context: int
    concurrency: int = 1
    usual: int | None = None

    @property
    def length(self) -> int:
        """Tokens planned per sequence."""
        return self.context if self.usual is None else min(self.usual, self.context)

    @property
    def cached_tokens(self) -> int:
        """Tokens the cache must hold: one sequence of full length, and all at their usual length."""
        return max(self.context, self.concurrency * self.length)


@dataclass(frozen=True, slots=True)
class VllmSizingOptions:
    """The vLLM options that affect memory and speed.

    Attributes:
        pipeline_parallel: groups of GPUs that share the layers.
        kv_dtype: type of the KV cache.
        prefill_tokens: prompt tokens per step; None is vLLM's default for the GPU.
        speculative_tokens: tokens speculated per step by prompt lookup. They need no weights, but cache and logits.
    """

    pipeline_parallel: int = 1
    kv_dtype: KvDtype = KvDtype.AUTO
    prefill_tokens: int | None = None
    speculative_tokens: int = 0


USUAL_OPTIONS: Final = VllmSizingOptions()
"""The default options."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model's weights are, and which engine uses them.

    Attributes:
        gpus: number of the machine's GPUs in use.
        options: vLLM's options.
    """

    sku: Sku
    gpus: int
    precision: Precision
    runner: Runner
    options: VllmSizingOptions = USUAL_OPTIONS

    @property
    def limit_mib(self) -> float:
        """Usable memory."""
        return self.gpus * self.sku.gpu.memory_mib * USABLE

    @property
    def tensor_parallel(self) -> int:
        """The number of GPUs that share each layer."""
        return self.gpus // self.options.pipeline_parallel

    def prompt_rows(self, workload: Workload) -> int:
        """Return prompt tokens per forward pass: a whole prompt in the pipeline; in vLLM the budget it reserves."""
        if self.runner is Runner.PIPELINE:
            return workload.context
        return self.options.prefill_tokens or max(workload.concurrency, prefill_tokens(self.sku.gpu))

    def kv_bytes_per_token(self, shape: Shape) -> int:
        """Return bytes of keys and values per token."""
        return shape.kv_bytes_per_token(1 if self.options.kv_dtype is KvDtype.FP8 else 2)


def prefill_tokens(gpu: Gpu) -> int:
    """Return the default prefill budget of vLLM's server."""
    large = gpu.memory_mib >= LARGE_MIB and "A100" not in gpu.name
    return LARGE_PREFILL_TOKENS if large else PREFILL_TOKENS


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Memory in MiB, over all GPUs in use."""

    weights: float
    kv_cache: float
    activations: float
    overhead: float
    graphs: float = 0.0

    @property
    def total(self) -> float:
        """The sum."""
        return self.weights + self.kv_cache + self.activations + self.overhead + self.graphs

    def to_dict(self) -> dict[str, float]:
        """Return the items and their sum."""
        return {name: round(mib, 1) for name, mib in {**asdict(self), "total": self.total}.items()}


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second.

    Attributes:
        one: of a sequence that runs alone.
        all: of all concurrent sequences together.
        prompt: of prompts.
        limit: the theoretical limit of `one`, by bandwidth or operations.
    """

    one: float
    all: float
    prompt: float
    limit: float

    def to_dict(self) -> dict[str, float]:
        """Return rounded values; estimates have no meaningful decimals."""
        return {name: round(rate) for name, rate in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Why a machine cannot run a model.

    Attributes:
        short: for a table's column.
        sentence: in full, with numbers.
    """

    short: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Fit:
    """How a model fits on a machine.

    Attributes:
        shortfalls: why it cannot run there; empty if it can.
    """

    placement: Placement
    memory: MemoryEstimate
    speed: Speed
    shortfalls: tuple[Shortfall, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it cannot run there, in sentences."""
        return tuple(shortfall.sentence for shortfall in self.shortfalls)

    @property
    def fits(self) -> bool:
        """Whether it can run there."""
        return not self.shortfalls

    @property
    def sku(self) -> Sku:
        """The machine."""
        return self.placement.sku


def weight_bytes(shape: Shape, precision: Precision) -> float:
    """Return the bytes of all weights."""
    linear = shape.linear_parameters
    return linear * _LINEAR_BITS[precision] / 8 + (shape.parameters - linear) * 2


def memory(shape: Shape, workload: Workload, placement: Placement) -> MemoryEstimate:
    """Return the memory a model takes.

    Weights and cache are spread over the GPUs. Part of the activations, CUDA and the graphs are needed on each.
    """
    gpus, guesses = placement.gpus, placement.options.speculative_tokens
    tokens = workload.cached_tokens + workload.concurrency * guesses
    # Per layer: residual, norm, queries and attention output on each GPU; gate and up sharded with their columns.
    activations = placement.prompt_rows(workload) * 2 * (4 * shape.hidden * gpus + 2 * shape.ffn)
    # Logits in 32 bits, and a copy while sampling.
    logits = workload.concurrency * (1 + guesses) * shape.vocab * 4 * 2
    return MemoryEstimate(
        weights=weight_bytes(shape, placement.precision) / _MIB,
        kv_cache=tokens * placement.kv_bytes_per_token(shape) / _MIB,
        activations=(activations + logits) / _MIB,
        overhead=float(CONTEXT_MIB * gpus),
        graphs=float(GRAPHS_MIB * gpus) if placement.runner is Runner.VLLM else 0.0,
    )


def speed(shape: Shape, workload: Workload, placement: Placement) -> Speed:
    """Return the expected tokens a second.

    A step reads all weights once, and the KV cache of each sequence, on average half full. With many sequences operations take
    longer than that, and in the pipeline Python's launches may. No format is credited with more operations than 16 bits have, and
    speculation is not credited at all.
    """
    gpu, pipeline = placement.sku.gpu, placement.runner is Runner.PIPELINE
    weights = weight_bytes(shape, placement.precision)
    cache = workload.length / 2 * placement.kv_bytes_per_token(shape)
    launching_s = shape.layers * LAUNCH_S if pipeline else 0.0
    reached = _WEIGHTS_BANDWIDTH[placement.precision]

    def rate(sequences: int, working: int) -> float:
        bandwidth, operations = working * gpu.bandwidth_gb_s * 1e9, working * gpu.tflops * 1e12
        reading_s = weights / (bandwidth * reached) + sequences * cache / (bandwidth * BANDWIDTH)
        computing_s = 2 * shape.parameters * sequences / (operations * COMPUTE)
        return sequences / max(reading_s, computing_s, launching_s)

    # A sequence occupies one pipeline stage at a time; all stages work if there is a sequence for each.
    groups = placement.options.pipeline_parallel
    alone = 1 if pipeline else placement.tensor_parallel
    together = 1 if pipeline else alone * min(groups, workload.concurrency)
    return Speed(
        one=rate(1, alone),
        all=rate(1 if pipeline else workload.concurrency, together),
        prompt=together * gpu.tflops * 1e12 * COMPUTE / (2 * shape.parameters),
        limit=1 / max((weights + cache) / (alone * gpu.bandwidth_gb_s * 1e9), 2 * shape.parameters / (alone * gpu.tflops * 1e12)),
    )  # fmt: skip


def fit(  # noqa: PLR0913  (each says something else)
    variant: ModelVariant,
    workload: Workload,
    precision: Precision,
    sku: Sku,
    runner: Runner | None = None,
    *,
    options: VllmSizingOptions = USUAL_OPTIONS,
    own_disk: bool = True,
) -> Fit:
    """Fit a model on a machine, over as few of its GPUs as hold it, or say why it does not fit.

    Args:
        variant: the model.
        workload: the load.
        precision: type of the weights.
        sku: the machine.
        runner: the engine; by default vLLM, or the pipeline on a GPU too old for vLLM.
        options: vLLM's options.
        own_disk: whether weights and image are on the machine's own disk.
    """
    runner = runner or usual_runner(sku.gpu, workload, precision)
    spread = spreads(variant.shape, sku.gpus, runner, options.pipeline_parallel, precision)
    tried = None
    for gpus in spread or [options.pipeline_parallel]:
        placement = Placement(sku, gpus, precision, runner, options)
        takes = memory(variant.shape, workload, placement)
        rates = speed(variant.shape, workload, placement)
        shortfalls = (*_engine_shortfalls(placement), *_gpu_shortfalls(placement, takes), *_host_shortfalls(variant.shape, placement, own_disk=own_disk))  # fmt: skip
        tried = Fit(placement, takes, rates, shortfalls)
        if takes.total <= placement.limit_mib:
            break
    assert tried is not None  # noqa: S101  (at least one is tried)
    return tried


def full_length(one: Fit, shape: Shape, workload: Workload) -> int:
    """Return how many sequences fit if all have the full context."""
    room = (one.placement.limit_mib - one.memory.total + one.memory.kv_cache) * _MIB
    return min(
        workload.concurrency, math.floor(room / (workload.context * one.placement.kv_bytes_per_token(shape)))
    )


def is_for_pipeline(workload: Workload, precision: Precision) -> bool:
    """Whether the pipeline can serve it: one sequence at a time, in 16 bits."""
    return workload.concurrency == 1 and precision in SIXTEEN_BITS


def usual_runner(gpu: Gpu, workload: Workload, precision: Precision) -> Runner:
    """Return the default engine on a GPU: vLLM if possible, as with `LLAMA_ENGINE=auto`."""
    too_old = gpu.capability < VLLM_CAPABILITY
    return Runner.PIPELINE if too_old and is_for_pipeline(workload, precision) else Runner.VLLM


def spreads(
    shape: Shape, most: int, runner: Runner, groups: int = 1, precision: Precision = Precision.BF16
) -> list[int]:
    """Return the numbers of GPUs a model can be spread over.

    The pipeline puts whole layers on each GPU. vLLM splits each layer and needs an even split: of heads, of KV heads, of the FFN's
    columns (in four bits: of the groups that share a scale), and of the vocabulary (padded to a multiple of 64). With pipeline
    parallelism each group has whole layers, and each of its GPUs a part of them.
    """
    numbers = range(1, most + 1)
    if runner is Runner.PIPELINE:
        return list(numbers)
    between = shape.ffn // SCALE_GROUP if precision is Precision.INT4 else shape.ffn
    cut = (shape.heads, shape.kv_heads, between, 64 * math.ceil(shape.vocab / 64))
    parts = [gpus for gpus in numbers if all(part % gpus == 0 for part in cut)]
    return [gpus * groups for gpus in parts if gpus * groups <= most] if groups <= shape.layers else []


def _engine_shortfalls(placement: Placement) -> Iterator[Shortfall]:
    """Yield what vLLM cannot do on this GPU, or on this many."""
    gpu, groups = placement.sku.gpu, placement.options.pipeline_parallel
    if placement.runner is Runner.PIPELINE:
        return
    if gpu.capability < VLLM_CAPABILITY:
        yield Shortfall(
            "too old for vLLM",
            f"{gpu.name} has compute capability {gpu.capability / 10}, but vLLM's wheels for CUDA 13 need "
            f"{VLLM_CAPABILITY / 10}: use the engine pipeline, in fp16",
        )
    if placement.options.kv_dtype is KvDtype.FP8 and not gpu.fp8:
        yield Shortfall(
            "no fp8 cache",
            f"{gpu.name} does not compute in fp8; vLLM's fp8 cache needs Ada or Hopper",
        )
    if placement.gpus > placement.sku.gpus:
        yield Shortfall(
            f"{groups} groups", f"it has {placement.sku.gpus} GPUs for {groups} groups (pipeline parallelism)"
        )


def _gpu_shortfalls(placement: Placement, takes: MemoryEstimate) -> Iterator[Shortfall]:
    gpu, gpus, limit = placement.sku.gpu, placement.gpus, placement.limit_mib
    if placement.precision is Precision.BF16 and not gpu.bf16:
        yield Shortfall("no bf16", f"{gpu.name} does not compute in bf16")
    if takes.total > limit:
        yield Shortfall(
            f"{takes.total - limit:,.0f} MiB short",
            f"it takes {takes.total:,.0f} MiB of {limit:,.0f} MiB usable on {gpus} x {gpu.name}",
        )


def _host_shortfalls(shape: Shape, placement: Placement, *, own_disk: bool) -> Iterator[Shortfall]:
    sku, weights = placement.sku, weight_bytes(shape, placement.precision) / _GIB
    image = IMAGE_GIB[placement.runner]
    if own_disk and sku.disk_gib is not None and weights + image > sku.disk_gib:
        yield Shortfall(
            f"{weights + image - sku.disk_gib:,.1f} GiB of disk short",
            f"weights of {weights:,.1f} GiB and an image of {image} GiB do not fit on its disk of {sku.disk_gib:,} GiB",
        )
    if sku.ram_gib < HOST_GIB:
        yield Shortfall(
            f"{HOST_GIB - sku.ram_gib} GiB of RAM short",
            f"its {sku.ram_gib} GiB of RAM are less than the {HOST_GIB} GiB that loading takes",
        )
