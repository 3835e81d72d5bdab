"""Model x workload x machine -> memory and speed. Pure arithmetic; every constant has its source.

Memory is counted for the worst case: as many sequences as may run, each as long as the context allows.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final

from deployment.skus import Sku
from llama_serving.catalog import ModelVariant, Shape

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

IMAGE_GIB: Final = 10
"""Of the machine's disk: image and scratch, beside the weights. An assumption; Python with torch and CUDA's libraries unpacks to
about 8. (Azure's "OutOfQuota: Disk" is told to be met with a smaller image or model, and its own catalog has no 16-bit model of
70B on a disk of 128 GiB.)"""
HOST_GIB: Final = 8
"""Of the host's memory: Python, torch, CUDA's libraries, and a tensor on its way. An assumption; the files are mapped, so that the
kernel takes their pages back."""


class Precision(StrEnum):
    """What the weights are held in. Keys, values and activations have 16 bits in all of them."""

    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"


class Runner(StrEnum):
    """What computes on the GPU."""

    PIPELINE = "pipeline"  # in the scoring process: one sequence after the other, one GPU after the other
    VLLM = "vllm"  # beside the scoring process: many sequences at a time, all GPUs at once


_LINEAR_BITS: Final = {Precision.BF16: 16.0, Precision.FP16: 16.0, Precision.INT8: 8.0, Precision.INT4: 4.125}
"""Of a weight of the layers; embeddings, norms and head stay in 16. Four bits share a 16-bit scale among 128 weights."""
SIXTEEN_BITS: Final = (Precision.BF16, Precision.FP16)
BANDWIDTH: Final = 0.69
"""Share of the memory's bandwidth that is reached. PyTorch's gpt-fast, 7B in bf16 on an A100-80, one sequence, compiled:
104.9 tokens/s where 151 is the limit."""
LAUNCH_S: Final = 1 / 25.5 / 32
"""Until Python has launched one layer's kernels. The same without compiling: 25.5 tokens/s and "heavily CPU overhead bound", 32
layers (pytorch.org/blog/accelerating-generative-ai-2). The GPU works meanwhile, so that a step takes the longer of the two."""
_PROMPT_ROWS: Final = {Runner.PIPELINE: 1, Runner.VLLM: 8192}
"""Tokens of prompts that go through the model at once, where there are so many; a whole prompt always does. (vLLM cuts long
prompts, and then takes less than is said here.)"""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked of a model.

    Attributes:
        context: tokens of prompt and completion, at most.
        concurrency: sequences that are computed at a time.
    """

    context: int
    concurrency: int = 1


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model's weights are, and what computes with them.

    Attributes:
        gpus: of the machine's, that it is spread over.
    """

    sku: Sku
    gpus: int
    precision: Precision
    runner: Runner

    @property
    def limit_mib(self) -> float:
        """What may be planned with."""
        return self.gpus * self.sku.gpu.memory_mib * USABLE


@dataclass(frozen=True, slots=True)
class Memory:
    """MiB, over all GPUs that are used."""

    weights: float
    kv_cache: float
    activations: float
    overhead: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.kv_cache + self.activations + self.overhead

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

    Weights and the cache are spread over the GPUs; what is computed on the way is in part on each, CUDA on each.
    """
    gpus, tokens = placement.gpus, workload.context * workload.concurrency
    rows = max(workload.context, min(_PROMPT_ROWS[placement.runner], tokens))
    # Of one layer: residual, norm, queries and attention's output on each GPU; gate and up where their columns are.
    activations = rows * 2 * (4 * shape.hidden * gpus + 2 * shape.ffn)
    logits = workload.concurrency * shape.vocab * 4 * 2  # in 32 bits, and once more while they are drawn from
    return Memory(
        weights=weight_bytes(shape, placement.precision) / _MIB,
        kv_cache=tokens * shape.kv_bytes_per_token() / _MIB,
        activations=(activations + logits) / _MIB,
        overhead=float(CONTEXT_MIB * gpus),
    )


def speed(shape: Shape, workload: Workload, placement: Placement) -> Speed:
    """Expected tokens a second.

    A step reads all weights once, and the keys and values of each sequence, whose context is half full; or it has so
    many sequences that its operations take longer than that; or the pipeline's Python is not done launching it.
    """
    gpu, pipeline = placement.sku.gpu, placement.runner is Runner.PIPELINE
    working = 1 if pipeline else placement.gpus
    bandwidth, operations = working * gpu.bandwidth_gb_s * 1e9, working * gpu.tflops * 1e12
    weights = weight_bytes(shape, placement.precision)
    cache = workload.context / 2 * shape.kv_bytes_per_token()
    launching_s = shape.layers * LAUNCH_S if pipeline else 0.0

    def rate(sequences: int) -> float:
        reading_s = (weights + sequences * cache) / (bandwidth * BANDWIDTH)
        computing_s = 2 * shape.parameters * sequences / (operations * COMPUTE)
        return sequences / max(reading_s, computing_s, launching_s)

    return Speed(
        one=rate(1),
        all=rate(1 if pipeline else workload.concurrency),
        prompt=operations * COMPUTE / (2 * shape.parameters),
        limit=1 / max((weights + cache) / bandwidth, 2 * shape.parameters / operations),
    )


def fit(  # noqa: PLR0913  (each says something else)
    variant: ModelVariant,
    workload: Workload,
    precision: Precision,
    sku: Sku,
    runner: Runner | None = None,
    *,
    own_disk: bool = True,
) -> Fit:
    """A model on a machine, over as few of its GPUs as hold it; or why it can't be.

    Args:
        variant: the model.
        workload: what is asked of it.
        precision: of its weights.
        sku: the machine.
        runner: the one that will do, if not given: the pipeline for one sequence at a time on one GPU, else vLLM.
        own_disk: whether weights and image lie on the disk that comes with the machine.
    """
    tried = None
    for placement in _placements(variant.shape, workload, precision, sku, runner):
        takes = memory(variant.shape, workload, placement)
        rates = speed(variant.shape, workload, placement)
        lacks = (*_gpu_lacks(placement, takes), *_host_lacks(variant.shape, placement, own_disk=own_disk))
        tried = Fit(placement, takes, rates, lacks)
        if takes.total <= placement.limit_mib:
            break
    assert tried is not None  # noqa: S101  (one GPU is always tried)
    return tried


def is_for_pipeline(workload: Workload, precision: Precision) -> bool:
    """Whether ours could compute it: one sequence at a time, in 16 bits."""
    return workload.concurrency == 1 and precision in SIXTEEN_BITS


def _placements(
    shape: Shape, workload: Workload, precision: Precision, sku: Sku, runner: Runner | None
) -> Iterator[Placement]:
    """From the fewest GPUs on. What one GPU does not hold is vLLM's, which has all of them at work at once."""
    alone = runner is None and is_for_pipeline(workload, precision)
    for gpus in spreads(shape, sku.gpus, runner or Runner.VLLM):
        yield Placement(sku, gpus, precision, Runner.PIPELINE if alone and gpus == 1 else runner or Runner.VLLM)


def spreads(shape: Shape, most: int, runner: Runner) -> list[int]:
    """Over how many GPUs a model can be spread.

    The pipeline gives each whole layers. vLLM cuts each layer, and refuses a cut that leaves a rest: of heads, of keys' and
    values' heads, of the columns between, of the vocabulary (filled up to a multiple of 64).
    """
    numbers = range(1, most + 1)
    if runner is Runner.PIPELINE:
        return list(numbers)
    cut = (shape.heads, shape.kv_heads, shape.ffn, 64 * math.ceil(shape.vocab / 64))
    return [gpus for gpus in numbers if all(part % gpus == 0 for part in cut)]


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
    if own_disk and sku.disk_gib is not None and weights + IMAGE_GIB > sku.disk_gib:
        yield Lack(
            f"{weights + IMAGE_GIB - sku.disk_gib:,.1f} GiB of disk short",
            f"weights of {weights:,.1f} GiB and an image of {IMAGE_GIB} don't fit on its disk of {sku.disk_gib:,} GiB",
        )
    if sku.ram_gib < HOST_GIB:
        yield Lack(
            f"{HOST_GIB - sku.ram_gib} GiB of RAM short",
            f"its {sku.ram_gib} GiB of RAM are less than the {HOST_GIB} that loading takes",
        )
