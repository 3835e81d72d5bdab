"""Model x workload x machine -> memory and speed. Pure arithmetic; every constant has its source.

Memory is counted for the worst case: as many sequences as may run, each as long as the context allows.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final

from deployment.skus import Sku
from llama_serving.catalog import ModelVariant, Shape

_MIB: Final = 1 << 20

CONTEXT_MIB: Final = 500
"""On each GPU, before the first weight: CUDA's context and the kernels of torch and cuBLAS. An assumption."""
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

    PIPELINE = "pipeline"  # in the scoring process: one sequence after the other, on one GPU
    VLLM = "vllm"  # beside the scoring process: many sequences at a time, on several GPUs


_LINEAR_BITS: Final = {Precision.BF16: 16.0, Precision.FP16: 16.0, Precision.INT8: 8.0, Precision.INT4: 4.125}
"""Of a weight of the layers; embeddings, norms and head stay in 16. Four bits share a 16-bit scale among 128 weights."""
_BANDWIDTH: Final = {Runner.PIPELINE: 0.17, Runner.VLLM: 0.69}
"""Share of the memory's bandwidth that is reached. PyTorch's gpt-fast, 7B in bf16 on an A100-80, one sequence: 25.5 tokens/s
as plain Python, 104.9 compiled; 151 is the limit."""
_PROMPT_ROWS: Final = {Runner.PIPELINE: None, Runner.VLLM: 8192}
"""Tokens of prompts that go through the model at once; None is a whole prompt."""


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
        gpus: of the machine's, that it is spread over.
        memory: that it takes on these.
        limit_mib: that it may take there.
        reasons: why it can't run; none where it can.
    """

    sku: Sku
    gpus: int
    runner: Runner
    memory: Memory
    limit_mib: float
    speed: Speed
    reasons: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether it can run."""
        return not self.reasons


def weight_bytes(shape: Shape, precision: Precision) -> float:
    """Bytes of all weights."""
    linear = shape.linear_parameters
    return linear * _LINEAR_BITS[precision] / 8 + (shape.parameters - linear) * 2


def memory(shape: Shape, workload: Workload, precision: Precision, runner: Runner, gpus: int) -> Memory:
    """What a model takes on so many GPUs.

    Weights and the cache are spread over them; what is computed on the way is in part on each, CUDA on each.
    """
    tokens = workload.context * workload.concurrency
    rows = min(_PROMPT_ROWS[runner] or workload.context, tokens)
    # A layer at a time: the residual, its norm, queries and attention's output everywhere; gate and up where their columns are.
    activations = rows * 2 * (4 * shape.hidden * gpus + 2 * shape.ffn)
    logits = (
        workload.concurrency * shape.vocab * 4 * 2
    )  # in 32 bits, and the same again while they are drawn from
    return Memory(
        weights=weight_bytes(shape, precision) / _MIB,
        kv_cache=tokens * shape.kv_bytes_per_token() / _MIB,
        activations=(activations + logits) / _MIB,
        overhead=float(CONTEXT_MIB * gpus),
    )


def speed(shape: Shape, workload: Workload, precision: Precision, runner: Runner, sku: Sku, gpus: int) -> Speed:
    """Expected tokens a second: a step reads all weights once, and each sequence's keys and values, half of them there."""
    bandwidth, operations = gpus * sku.gpu.bandwidth_gb_s * 1e9, gpus * sku.gpu.tflops * 1e12
    weights, cache = weight_bytes(shape, precision), workload.context / 2 * shape.kv_bytes_per_token()
    at_a_time = 1 if runner is Runner.PIPELINE else workload.concurrency

    def step_s(sequences: int, share: float, compute: float) -> float:
        reading = (weights + sequences * cache) / (bandwidth * share)
        return max(reading, 2 * shape.parameters * sequences / (operations * compute))

    share = _BANDWIDTH[runner]
    return Speed(
        one=1 / step_s(1, share, COMPUTE),
        all=at_a_time / step_s(at_a_time, share, COMPUTE),
        prompt=operations * COMPUTE / (2 * shape.parameters),
        limit=1 / step_s(1, 1.0, 1.0),
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
    shape = variant.shape
    tried = []
    for gpus in spreads(shape, sku.gpus):
        chosen = runner or runner_for(workload, precision, gpus)
        takes = memory(shape, workload, precision, chosen, gpus)
        limit = gpus * sku.gpu.memory_mib * USABLE
        reasons = tuple(_reasons(sku, precision, chosen, gpus, takes, limit))
        rate = speed(shape, workload, precision, chosen, sku, gpus)
        tried.append(Fit(sku, gpus, chosen, takes, limit, rate, reasons))
        if not reasons:
            return tried[-1]
    return tried[-1]


def runner_for(workload: Workload, precision: Precision, gpus: int) -> Runner:
    """Ours where one GPU and one sequence at a time will do, in 16 bits."""
    simple = gpus == 1 and workload.concurrency == 1 and precision in (Precision.BF16, Precision.FP16)
    return Runner.PIPELINE if simple else Runner.VLLM


def spreads(shape: Shape, most: int) -> list[int]:
    """Over how many GPUs a model can be spread: each has as many heads of keys and values as the others."""
    return [gpus for gpus in range(1, most + 1) if shape.kv_heads % gpus == 0]


def _reasons(
    sku: Sku, precision: Precision, runner: Runner, gpus: int, takes: Memory, limit: float
) -> Iterable[str]:
    if precision is Precision.BF16 and not sku.gpu.bf16:
        yield f"{sku.gpu.name} does not compute in bf16"
    if takes.total > limit:
        yield f"it takes {takes.total:,.0f} MiB where {limit:,.0f} may be used ({gpus} x {sku.gpu.name})"
    if runner is Runner.PIPELINE and gpus > 1:
        yield "the pipeline engine is planned on one GPU only"
    if runner is Runner.PIPELINE and precision not in (Precision.BF16, Precision.FP16):
        yield f"the pipeline engine has no {precision} weights"
