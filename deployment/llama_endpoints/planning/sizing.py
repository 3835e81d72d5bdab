"""Model x workload x machine -> memory and speed. Pure arithmetic; every constant has its source.

Memory is counted for as many sequences as may run, each as long as the workload says: the whole context, or the usual length.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final

from llama_endpoints.planning.skus import Gpu, Sku
from llama_serving.catalog import ModelVariant, Shape


class Runner(StrEnum):
    """What computes on the GPU."""

    PIPELINE = "pipeline"  # in the scoring process: one sequence after the other, one GPU after the other
    VLLM = "vllm"  # beside the scoring process: many sequences at a time, all GPUs at once


_MIB: Final = 1 << 20
_GIB: Final = 1 << 30

CONTEXT_MIB: Final = 500
"""On each GPU, before the first weight: CUDA's context and the kernels of torch and cuBLAS. The rule of thumb of
pytorch/serve#2128; reports go from 102 (T4) to 426 MiB, none of them of an H100."""
USABLE: Final = 0.92
"""Share of a GPU that may be planned with, as vLLM's `gpu_memory_utilization`; the rest is what an allocator can't use."""
COMPUTE: Final = 0.48
"""Share of a GPU's operations that is reached: TensorRT-LLM 0.6.1, 7B in fp16 on an A100, 128 tokens in and 128 out,
5,586 tokens/s."""

GRAPHS_MIB: Final = 1024
"""On each GPU, for the CUDA graphs that vLLM captures up to 256 sequences. An assumption: vLLM's own pull request #22897 logs 24 to
28 MiB for a graph, 35 of which reach 256; up to 0.6 vLLM warned of 1 to 3 GiB."""
VLLM_CAPABILITY: Final = 75
"""The least compute capability, times ten, of the image's vLLM: its wheels and its torch are built for CUDA 13, which begins with
Turing (pytorch/pytorch#172352, support matrix). vLLM's sources themselves still name 7.0."""
LARGE_MIB: Final = 70 * 1024
PREFILL_TOKENS: Final = 2048
LARGE_PREFILL_TOKENS: Final = 8192
"""vLLM's default for its server: tokens of prompts in one step, on a GPU of 70 GiB or more that is no A100 the second (vLLM 0.32,
engine/arg_utils.py, get_batch_defaults)."""

IMAGE_GIB: Final = {Runner.PIPELINE: 10, Runner.VLLM: 20}
"""Of the machine's disk: image and scratch, beside the weights. Assumptions; Python with torch and CUDA's libraries unpacks to
about 8, and vLLM's kernels and what it compiles them with come on top. (Azure's "OutOfQuota: Disk" is told to be met with a smaller image or model, and its own catalog has no 16-bit model of
70B on a disk of 128 GiB.)"""
HOST_GIB: Final = 8
"""Of the host's memory: Python, torch, CUDA's libraries, and a tensor on its way. An assumption; the files are mapped, so that the
kernel takes their pages back."""


class Precision(StrEnum):
    """What the weights of the layers are held in. Activations, embeddings and head have 16 bits in all of them."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"  # compressed-tensors
    INT8 = "int8"  # GPTQ, compressed-tensors
    INT4 = "int4"  # AWQ, GPTQ, compressed-tensors


class KvDtype(StrEnum):
    """What vLLM holds keys and values in, as `LLAMA_VLLM_KV_DTYPE` names it."""

    AUTO = "auto"  # the model's 16 bits
    FP8 = "fp8"


SCALE_GROUP: Final = 128
"""Weights of four bits that share a 16-bit scale, in the checkpoints that people publish."""
_LINEAR_BITS: Final = {
    Precision.BF16: 16.0,
    Precision.FP16: 16.0,
    Precision.FP8: 8.0,
    Precision.INT8: 8.0,
    Precision.INT4: 4.125,
}
"""Of a weight of the layers; embeddings, norms and head stay in 16. Four bits share a 16-bit scale in each group."""
SIXTEEN_BITS: Final = (Precision.BF16, Precision.FP16)
BANDWIDTH: Final = 0.69
"""Share of the memory's bandwidth that is reached. PyTorch's gpt-fast, 7B in bf16 on an A100-80, one sequence, compiled:
104.9 tokens/s where 151 is the limit."""
_WEIGHTS_BANDWIDTH: Final = {
    Precision.BF16: BANDWIDTH,
    Precision.FP16: BANDWIDTH,
    Precision.FP8: 0.53,
    Precision.INT8: 0.53,
    Precision.INT4: 0.41,
}
"""The same while weights are read that have to be widened. gpt-fast's 155.6 tokens/s in int8, and between its 196.8 in int4 and the
25.3 of 70B (pytorch.org/blog/accelerating-generative-ai-2); fp8 as int8, an assumption."""
LAUNCH_S: Final = 1 / 25.5 / 32
"""Until Python has launched one layer's kernels. The same without compiling: 25.5 tokens/s and "heavily CPU overhead bound", 32
layers (pytorch.org/blog/accelerating-generative-ai-2). The GPU works meanwhile, so that a step takes the longer of the two."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked of a model.

    Attributes:
        context: tokens of prompt and completion, at most.
        concurrency: sequences that are computed at a time.
        usual: tokens that a sequence has when it ends, usually; None is all of the context. vLLM gives out its cache in blocks, as
            sequences grow, so that this is what decides how many there is room for.
    """

    context: int
    concurrency: int = 1
    usual: int | None = None

    @property
    def length(self) -> int:
        """Tokens of a sequence that are reckoned with."""
        return self.context if self.usual is None else min(self.usual, self.context)

    @property
    def cached_tokens(self) -> int:
        """Tokens that there has to be room for: one sequence at its longest, and all at their usual length."""
        return max(self.context, self.concurrency * self.length)


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """What an operator may ask of vLLM, and what memory and speed follow from.

    Attributes:
        pipeline_parallel: groups of GPUs that share the layers among them.
        kv_dtype: of keys and values.
        prefill_tokens: of prompts in one step; None is vLLM's own choice for the GPU.
        speculative_tokens: guessed in each step by looking into the prompt; no weights, but room for them and their logits.
    """

    pipeline_parallel: int = 1
    kv_dtype: KvDtype = KvDtype.AUTO
    prefill_tokens: int | None = None
    speculative_tokens: int = 0


USUAL_OPTIONS: Final = VllmOptions()
"""Where nobody asks for anything else."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model's weights are, and what computes with them.

    Attributes:
        gpus: of the machine's, that it is spread over.
        options: of vLLM.
    """

    sku: Sku
    gpus: int
    precision: Precision
    runner: Runner
    options: VllmOptions = USUAL_OPTIONS

    @property
    def limit_mib(self) -> float:
        """What may be planned with."""
        return self.gpus * self.sku.gpu.memory_mib * USABLE

    @property
    def tensor_parallel(self) -> int:
        """GPUs that share each layer."""
        return self.gpus // self.options.pipeline_parallel

    def prompt_rows(self, workload: Workload) -> int:
        """Tokens of prompts that go through the model at once: whole prompts in the pipeline; vLLM cuts them, and reserves so many."""
        if self.runner is Runner.PIPELINE:
            return workload.context
        return self.options.prefill_tokens or max(workload.concurrency, prefill_tokens(self.sku.gpu))

    def kv_bytes_per_token(self, shape: Shape) -> int:
        """Bytes of keys and values."""
        return shape.kv_bytes_per_token(1 if self.options.kv_dtype is KvDtype.FP8 else 2)


def prefill_tokens(gpu: Gpu) -> int:
    """What vLLM's server takes of prompts in one step, where nobody says how much."""
    large = gpu.memory_mib >= LARGE_MIB and "A100" not in gpu.name
    return LARGE_PREFILL_TOKENS if large else PREFILL_TOKENS


@dataclass(frozen=True, slots=True)
class Memory:
    """MiB, over all GPUs that are used."""

    weights: float
    kv_cache: float
    activations: float
    overhead: float
    graphs: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.kv_cache + self.activations + self.overhead + self.graphs

    def to_dict(self) -> dict[str, float]:
        """The items and their sum."""
        return {name: round(mib, 1) for name, mib in {**asdict(self), "total": self.total}.items()}


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second.

    Attributes:
        one: of a sequence that runs alone.
        all: of all that may run at a time, together.
        prompt: at which prompts are read.
        limit: what `one` would be if nothing were lost: the bandwidth, or the operations.
    """

    one: float
    all: float
    prompt: float
    limit: float

    def to_dict(self) -> dict[str, float]:
        """Rounded; nobody knows the tenth of a token."""
        return {name: round(rate) for name, rate in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Lack:
    """Why a machine can't run a model.

    Attributes:
        short: in a column.
        sentence: with the numbers.
    """

    short: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Fit:
    """A model on a machine.

    Attributes:
        lacks: why it can't run there; none where it can.
    """

    placement: Placement
    memory: Memory
    speed: Speed
    lacks: tuple[Lack, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it can't run there, in sentences."""
        return tuple(lack.sentence for lack in self.lacks)

    @property
    def fits(self) -> bool:
        """Whether it can run."""
        return not self.lacks

    @property
    def sku(self) -> Sku:
        """The machine."""
        return self.placement.sku


def weight_bytes(shape: Shape, precision: Precision) -> float:
    """Bytes of all weights."""
    linear = shape.linear_parameters
    return linear * _LINEAR_BITS[precision] / 8 + (shape.parameters - linear) * 2


def memory(shape: Shape, workload: Workload, placement: Placement) -> Memory:
    """What a model takes.

    Weights and the cache are spread over the GPUs; what is computed on the way is in part on each, CUDA and graphs on each.
    """
    gpus, guesses = placement.gpus, placement.options.speculative_tokens
    tokens = workload.cached_tokens + workload.concurrency * guesses
    # Of one layer: residual, norm, queries and attention's output on each GPU; gate and up where their columns are.
    activations = placement.prompt_rows(workload) * 2 * (4 * shape.hidden * gpus + 2 * shape.ffn)
    # In 32 bits, and once more while they are drawn from.
    logits = workload.concurrency * (1 + guesses) * shape.vocab * 4 * 2
    return Memory(
        weights=weight_bytes(shape, placement.precision) / _MIB,
        kv_cache=tokens * placement.kv_bytes_per_token(shape) / _MIB,
        activations=(activations + logits) / _MIB,
        overhead=float(CONTEXT_MIB * gpus),
        graphs=float(GRAPHS_MIB * gpus) if placement.runner is Runner.VLLM else 0.0,
    )


def speed(shape: Shape, workload: Workload, placement: Placement) -> Speed:
    """Expected tokens a second.

    A step reads all weights once, and the keys and values of each sequence, half of whose tokens are there; or it has so
    many sequences that its operations take longer than that; or the pipeline's Python is not done launching it. No format is
    credited with more operations than 16 bits have, and no guess with being right.
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

    # A sequence is in one group of GPUs at a time; groups are all at work where there is a sequence for each.
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
    options: VllmOptions = USUAL_OPTIONS,
    own_disk: bool = True,
) -> Fit:
    """A model on a machine, over as few of its GPUs as hold it; or why it can't be.

    Args:
        variant: the model.
        workload: what is asked of it.
        precision: of its weights.
        sku: the machine.
        runner: the one that will do, if not given: vLLM, or the pipeline where a GPU is too old for vLLM.
        options: of vLLM.
        own_disk: whether weights and image lie on the disk that comes with the machine.
    """
    runner = runner or usual_runner(sku.gpu, workload, precision)
    spread = spreads(variant.shape, sku.gpus, runner, options.pipeline_parallel, precision)
    tried = None
    for gpus in spread or [options.pipeline_parallel]:
        placement = Placement(sku, gpus, precision, runner, options)
        takes = memory(variant.shape, workload, placement)
        rates = speed(variant.shape, workload, placement)
        lacks = (*_engine_lacks(placement), *_gpu_lacks(placement, takes), *_host_lacks(variant.shape, placement, own_disk=own_disk))  # fmt: skip
        tried = Fit(placement, takes, rates, lacks)
        if takes.total <= placement.limit_mib:
            break
    assert tried is not None  # noqa: S101  (one is always tried)
    return tried


def full_length(one: Fit, shape: Shape, workload: Workload) -> int:
    """Sequences that there is room for where all of them are as long as the context."""
    room = (one.placement.limit_mib - one.memory.total + one.memory.kv_cache) * _MIB
    return min(
        workload.concurrency, math.floor(room / (workload.context * one.placement.kv_bytes_per_token(shape)))
    )


def is_for_pipeline(workload: Workload, precision: Precision) -> bool:
    """Whether ours could compute it: one sequence at a time, in 16 bits."""
    return workload.concurrency == 1 and precision in SIXTEEN_BITS


def usual_runner(gpu: Gpu, workload: Workload, precision: Precision) -> Runner:
    """What computes on a GPU where nobody says what: vLLM where it can, as `LLAMA_ENGINE=auto` has it."""
    too_old = gpu.capability < VLLM_CAPABILITY
    return Runner.PIPELINE if too_old and is_for_pipeline(workload, precision) else Runner.VLLM


def spreads(
    shape: Shape, most: int, runner: Runner, groups: int = 1, precision: Precision = Precision.BF16
) -> list[int]:
    """Over how many GPUs a model can be spread.

    The pipeline gives each whole layers. vLLM cuts each layer, and refuses a cut that leaves a rest: of heads, of keys' and
    values' heads, of the columns between (in four bits: of the groups of them that share a scale), of the vocabulary (filled up to a
    multiple of 64). With groups (pipeline parallel) each
    has whole layers, and each of its GPUs a part of them.
    """
    numbers = range(1, most + 1)
    if runner is Runner.PIPELINE:
        return list(numbers)
    between = shape.ffn // SCALE_GROUP if precision is Precision.INT4 else shape.ffn
    cut = (shape.heads, shape.kv_heads, between, 64 * math.ceil(shape.vocab / 64))
    parts = [gpus for gpus in numbers if all(part % gpus == 0 for part in cut)]
    return [gpus * groups for gpus in parts if gpus * groups <= most] if groups <= shape.layers else []


def _engine_lacks(placement: Placement) -> Iterator[Lack]:
    """What vLLM can't do on such a GPU, or on so many."""
    gpu, groups = placement.sku.gpu, placement.options.pipeline_parallel
    if placement.runner is Runner.PIPELINE:
        return
    if gpu.capability < VLLM_CAPABILITY:
        yield Lack(
            "too old for vLLM",
            f"{gpu.name} has compute capability {gpu.capability / 10}, and vLLM's wheels for CUDA 13 begin with "
            f"{VLLM_CAPABILITY / 10}: the engine pipeline takes it, in fp16",
        )
    if placement.options.kv_dtype is KvDtype.FP8 and not gpu.fp8:
        yield Lack(
            "no fp8 cache",
            f"{gpu.name} does not compute in fp8, and vLLM keeps keys and values in it from Ada and Hopper on",
        )
    if placement.gpus > placement.sku.gpus:
        yield Lack(
            f"{groups} groups", f"it has {placement.sku.gpus} GPUs for {groups} groups (pipeline parallel)"
        )


def _gpu_lacks(placement: Placement, takes: Memory) -> Iterator[Lack]:
    gpu, gpus, limit = placement.sku.gpu, placement.gpus, placement.limit_mib
    if placement.precision is Precision.BF16 and not gpu.bf16:
        yield Lack("no bf16", f"{gpu.name} does not compute in bf16")
    if takes.total > limit:
        yield Lack(
            f"{takes.total - limit:,.0f} MiB short",
            f"it takes {takes.total:,.0f} MiB, and {limit:,.0f} may be used of {gpus} x {gpu.name}",
        )


def _host_lacks(shape: Shape, placement: Placement, *, own_disk: bool) -> Iterator[Lack]:
    sku, weights = placement.sku, weight_bytes(shape, placement.precision) / _GIB
    image = IMAGE_GIB[placement.runner]
    if own_disk and sku.disk_gib is not None and weights + image > sku.disk_gib:
        yield Lack(
            f"{weights + image - sku.disk_gib:,.1f} GiB of disk short",
            f"weights of {weights:,.1f} GiB and an image of {image} don't fit on its disk of {sku.disk_gib:,} GiB",
        )
    if sku.ram_gib < HOST_GIB:
        yield Lack(
            f"{HOST_GIB - sku.ram_gib} GiB of RAM short",
            f"its {sku.ram_gib} GiB of RAM are less than the {HOST_GIB} that loading takes",
        )
