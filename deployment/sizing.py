"""Model x workload x machine -> memory and speed. Pure arithmetic; every constant has its source.

Memory is counted for the worst case: as many sequences as may run, each as long as the context allows.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final

from deployment.skus import Sku
from llama_serving.catalog import ModelVariant, Shape

_MIB: Final = 1 << 20

CONTEXT_MIB: Final = 500
"""On each GPU, before the first weight: CUDA's context and the kernels of torch and cuBLAS. The rule of thumb of
pytorch/serve#2128; reports go from 102 (T4) to 426 MiB, none of them of an H100."""
USABLE: Final = 0.92
"""Share of a GPU that may be planned with, as vLLM's `gpu_memory_utilization`; the rest is what an allocator can't use."""
COMPUTE: Final = 0.48
"""Share of a GPU's operations that is reached: TensorRT-LLM 0.6.1, 7B in fp16 on an A100, 128 tokens in and 128 out,
5,586 tokens/s."""


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
_SIXTEEN_BITS: Final = (Precision.BF16, Precision.FP16)
_BANDWIDTH: Final = {Runner.PIPELINE: 0.17, Runner.VLLM: 0.69}
"""Share of the memory's bandwidth that is reached. PyTorch's gpt-fast, 7B in bf16 on an A100-80, one sequence: 25.5 tokens/s
as plain Python, 104.9 compiled; 151 is the limit."""
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
class Fit:
    """A model on a machine.

    Attributes:
        reasons: why it can't run there; none where it can.
    """

    placement: Placement
    memory: Memory
    speed: Speed
    reasons: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether it can run."""
        return not self.reasons

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
    many sequences that its operations take longer than that.
    """
    gpu, runner = placement.sku.gpu, placement.runner
    working = 1 if runner is Runner.PIPELINE else placement.gpus
    bandwidth, operations = working * gpu.bandwidth_gb_s * 1e9, working * gpu.tflops * 1e12
    weights = weight_bytes(shape, placement.precision)
    cache = workload.context / 2 * shape.kv_bytes_per_token()
    at_a_time = 1 if runner is Runner.PIPELINE else workload.concurrency

    def rate(sequences: int, bandwidth_share: float, compute_share: float) -> float:
        reading_s = (weights + sequences * cache) / (bandwidth * bandwidth_share)
        computing_s = 2 * shape.parameters * sequences / (operations * compute_share)
        return sequences / max(reading_s, computing_s)

    return Speed(
        one=rate(1, _BANDWIDTH[runner], COMPUTE),
        all=rate(at_a_time, _BANDWIDTH[runner], COMPUTE),
        prompt=operations * COMPUTE / (2 * shape.parameters),
        limit=rate(1, 1.0, 1.0),
    )


def fit(
    variant: ModelVariant, workload: Workload, precision: Precision, sku: Sku, runner: Runner | None = None
) -> Fit:
    """A model on a machine, over as few of its GPUs as hold it; or why it can't be.

    Args:
        variant: the model.
        workload: what is asked of it.
        precision: of its weights.
        sku: the machine.
        runner: the one that will do, if not given.
    """
    chosen = runner or runner_for(workload, precision)
    tried = None
    for gpus in spreads(variant.shape, sku.gpus):
        placement = Placement(sku, gpus, precision, chosen)
        takes = memory(variant.shape, workload, placement)
        rates = speed(variant.shape, workload, placement)
        tried = Fit(placement, takes, rates, tuple(_reasons(placement, takes)))
        if takes.total <= placement.limit_mib:
            break
    assert tried is not None  # noqa: S101  (one GPU is always tried)
    return tried


def runner_for(workload: Workload, precision: Precision) -> Runner:
    """Ours where one sequence at a time will do, in 16 bits."""
    return Runner.PIPELINE if workload.concurrency == 1 and precision in _SIXTEEN_BITS else Runner.VLLM


def spreads(shape: Shape, most: int) -> list[int]:
    """Over how many GPUs a model can be spread: each has as many heads of keys and values as the others."""
    return [gpus for gpus in range(1, most + 1) if shape.kv_heads % gpus == 0]


def _reasons(placement: Placement, takes: Memory) -> Iterator[str]:
    gpu, gpus, precision = placement.sku.gpu, placement.gpus, placement.precision
    if precision is Precision.BF16 and not gpu.bf16:
        yield f"{gpu.name} does not compute in bf16"
    if takes.total > placement.limit_mib:
        yield f"it takes {takes.total:,.0f} MiB, and {placement.limit_mib:,.0f} may be used of {gpus} x {gpu.name}"
    if placement.runner is Runner.PIPELINE and precision not in _SIXTEEN_BITS:
        yield f"the pipeline engine has no {precision} weights"
