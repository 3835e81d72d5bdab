"""Published measurements of such models, with sources, to compare the planner with."""

from dataclasses import dataclass, replace
from typing import Final

from llama_endpoints.planning.sizing import Placement, Precision, Runner, Workload, speed
from llama_endpoints.planning.skus import SKUS, Gpu
from llama_serving.catalog import CATALOG, Shape

_7B: Final = CATALOG["codellama/CodeLlama-7b-hf"].shape
_70B: Final = CATALOG["codellama/CodeLlama-70b-hf"].shape
_8B: Final = replace(_7B, ffn=14_336, kv_heads=8, vocab=128_256)
_A10: Final = SKUS["Standard_NV36ads_A10_v5"].gpu
_A100_PCIE: Final = SKUS["Standard_NC24ads_A100_v4"].gpu
_A100: Final = SKUS["Standard_ND96amsr_A100_v4"].gpu
_A100_40: Final = SKUS["Standard_ND96asr_v4"].gpu
_A6000: Final = Gpu("A6000", 49_140, 768, 155, capability=86, source="NVIDIA's A6000 datasheet")
_GPT_FAST: Final = "pytorch.org/blog/accelerating-generative-ai-2"


@dataclass(frozen=True, slots=True)
class Published:
    """A published measurement.

    Attributes:
        model: the model, in words.
        shape: its shape.
        gpu: the GPU; one was used.
        precision: type of the weights.
        runner: the planner's engine to compare with.
        workload: the number of sequences and their tokens.
        measured: completion tokens a second, all sequences together.
        source: author, software and place.
        with_prompts: whether one prompt token was read per completion token in the same time.
    """

    model: str
    shape: Shape
    gpu: Gpu
    precision: Precision
    runner: Runner
    workload: Workload
    measured: float
    source: str
    with_prompts: bool = False

    @property
    def planned(self) -> float:
        """The planner's prediction."""
        sku = replace(SKUS["Standard_ND96amsr_A100_v4"], gpu=self.gpu)
        found = speed(self.shape, self.workload, Placement(sku, 1, self.precision, self.runner))
        return 1 / (1 / found.all + 1 / found.prompt) if self.with_prompts else found.all


_BF16, _FP16, _INT8, _INT4 = Precision.BF16, Precision.FP16, Precision.INT8, Precision.INT4
_PLAIN, _COMPILED = Runner.PIPELINE, Runner.VLLM

PUBLISHED: Final = (
    Published("7B", _7B, _A100_PCIE, _BF16, _PLAIN, Workload(400), 25.5, f"gpt-fast, not compiled: {_GPT_FAST}"),
    Published("7B", _7B, _A100_PCIE, _BF16, _PLAIN, Workload(400), 24, "transformers' pipeline: OpenNMT/CTranslate2#1388"),
    Published("7B", _7B, _A100_PCIE, _BF16, _PLAIN, Workload(400), 27, "transformers: lm-sys/FastChat#3192"),
    Published("7B", _7B, _A6000, _BF16, _PLAIN, Workload(400), 188 / 7.84, "transformers: hamelsmu/llama-inference, hf/bench.csv"),
    Published("7B", _7B, _A10, _BF16, _PLAIN, Workload(400), 1 / 0.034, "transformers: InternLM/lmdeploy#210"),
    Published("7B", _7B, _A100, _BF16, _COMPILED, Workload(400), 104.9, f"gpt-fast: {_GPT_FAST}"),
    Published("7B", _7B, _A100, _INT8, _COMPILED, Workload(400), 155.6, f"gpt-fast: {_GPT_FAST}"),
    Published("7B", _7B, _A100, _INT4, _COMPILED, Workload(400), 196.8, f"gpt-fast: {_GPT_FAST}"),
    Published("70B", _70B, _A100, _INT4, _COMPILED, Workload(400), 25.3, f"gpt-fast: {_GPT_FAST}"),
    Published("Llama-3.1-8B", _8B, _A100_40, _BF16, _COMPILED, Workload(2304), 75, "vLLM 0.23, 1,024 in and 128 out: johnmusgrave.com, vLLM sweep on A100"),
    Published("7B", _7B, _A100, _FP16, _COMPILED, Workload(384, 384), 5586, "TensorRT-LLM 0.6.1, 128 in and 128 out: its performance page", with_prompts=True),
)  # fmt: skip
"""The constants of `sizing` come from gpt-fast and TensorRT-LLM; the other rows check them."""
