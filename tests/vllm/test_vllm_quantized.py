"""Quantized checkpoints of every kind that `package` takes, in the real vLLM: does it read what we checked?

Each is compared with the plain weights that it stands for, computed by transformers in float32, along the same tokens.
vLLM computes in bfloat16, which alone moves a log-probability of this model by up to 0.1 (0.024 in the mean); a layout that was
misread moves it by 2 and more.
"""

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch

from llama_endpoints.checkpoints.inspection import inspect
from llama_endpoints.checkpoints.variants import custom_variant
from tests.support import llamas, quantized
from tests.support.paths import ROOT

OFFLINE: Final = Path(__file__).with_name("offline.py")
START_S: Final = 1500
"""For all checkpoints together; two minutes where nobody else computes."""
PROMPTS: Final = [[1, *map(int, np.random.default_rng(seed).integers(3, 4000, 40))] for seed in range(3)]
NEW_TOKENS: Final = 8


@dataclass(frozen=True)
class Tolerance:
    """How far log-probabilities may be off: on the average, and how far below the best a greedy token may lie."""

    mean: float
    tie: float


BF16: Final = Tolerance(0.05, 0.25)
INT8: Final = Tolerance(0.2, 0.5)
FP8: Final = Tolerance(0.3, 1.5)
"""(Inputs of linear layers are rounded to three bits, and bfloat16 tips some of them over to the next number.)"""

WITHOUT_KERNEL: Final = {
    "gptq int8": "Marlin does not support weight_bits = uint8b128",
    "packed int8": "Failed to find a kernel that can implement the WNA16 linear layer",
    "fp8 by matrices": "static_scaled_fp8_quant",
    "fp8 with static activations": "static_scaled_fp8_quant",
    "fp8 weights alone": "Failed to find a kernel that can implement the ScaledMM linear layer",
    "fp8 by blocks": "requires AMX tile support",
}
"""What vLLM 0.32's build for CPUs computes on none, or on those with AMX alone, and what it says then."""


def vllm_python() -> str:
    """The python of an environment that has vLLM; skips where there is none."""
    named = os.environ.get("LLAMA_VLLM")
    python = Path(named) if named else ROOT / ".venv-vllm" / "bin" / "python"
    if python.name == "vllm":
        python = python.with_name("python")
    if not python.is_file():
        pytest.skip("no vLLM: build .venv-vllm, or name the python of an environment that has it in LLAMA_VLLM")
    return str(python)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """For each kind the quantized checkpoint and the plain one."""
    vllm_python()
    root, made = tmp_path_factory.mktemp("quantized"), {}
    for number, (name, kind) in enumerate(quantized.KINDS.items()):
        plain = root / f"plain-{number}"
        made[name] = quantized.write(kind, root / f"quantized-{number}", plain=plain), plain
    return made


@pytest.fixture(scope="module")
def answers(folders: dict[str, tuple[Path, Path]]) -> dict[str, Any]:
    """What vLLM says to each."""
    asked = {
        "folders": [str(folder) for folder, _ in folders.values()],
        "plain": [str(plain) for _, plain in folders.values()],
        "prompts": PROMPTS,
        "dtype": "bfloat16",
        "max_tokens": NEW_TOKENS,
    }
    done = subprocess.run(
        (vllm_python(), OFFLINE),
        input=json.dumps(asked),
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(folders, map(json.loads, done.stdout.splitlines()), strict=True))


def rounded_inputs(
    config: dict[str, Any], scale: float | None
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What a checkpoint's scheme does to a linear layer's input, or None."""
    groups = config.get("config_groups", {"": {}})
    inputs = next(iter(groups.values())).get("input_activations")
    if not inputs:
        return None
    whole, top = inputs["type"] == "int", 127.0 if inputs["type"] == "int" else 448.0

    def rounded(x: torch.Tensor) -> torch.Tensor:
        step = x.abs().amax(-1, keepdim=True) / top if scale is None else torch.tensor(scale)
        values = x / step
        values = values.round().clamp(-128, 127) if whole else values.to(torch.float8_e4m3fn).float()
        return values * step

    return rounded


def expected(plain: Path, config: dict[str, Any], told: Sequence[dict[str, Any]]) -> list[torch.Tensor]:
    """Log-probabilities of each prompt with vLLM's own tokens after it: (tokens - 1, vocabulary)."""
    static = any(group["input_activations"] and not group["input_activations"]["dynamic"]
                 for group in config.get("config_groups", {}).values())  # fmt: skip
    model = llamas.reference(plain)
    if (rounded := rounded_inputs(config, quantized.INPUT_SCALE if static else None)) is not None:
        for name, layer in model.named_modules():
            if name.endswith("_proj"):
                layer.register_forward_pre_hook(lambda _, given: (rounded(given[0]),))
    with torch.inference_mode():
        ids = [torch.tensor([[*prompt, *answer["ids"]]]) for prompt, answer in zip(PROMPTS, told, strict=True)]
        return [model(each).logits.log_softmax(-1)[0, :-1] for each in ids]


@pytest.mark.timeout(START_S + 60)
@pytest.mark.parametrize("name", quantized.KINDS)
def test_vllm_reads_what_package_checks(
    name: str, folders: dict[str, tuple[Path, Path]], answers: dict[str, Any]
) -> None:
    (folder, plain), answer = folders[name], answers[name]
    found = inspect(folder, custom_variant(folder, dialog="none", infill="none"))
    assert found.variant.quantization is not None
    if found.variant.quantization.method != "awq":
        assert answer["decoded"] < 1e-6
    if "error" in answer:  # no kernel for this CPU, so that the decoding above has to do
        assert WITHOUT_KERNEL[name] in answer["error"]
        return
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    activations = found.variant.quantization.activations
    tolerance = {"int8": INT8, "fp8": FP8}.get(activations or "", BF16)
    off = []
    for prompt, told, logprobs in zip(
        PROMPTS, answer["prompts"], expected(plain, config, answer["prompts"]), strict=True
    ):
        ids = torch.tensor([*prompt, *told["ids"]])[1:]
        ours = logprobs.gather(1, ids[:, None])[:, 0]
        off += (ours - torch.tensor([*told["prompt"], *told["greedy"]])).abs().tolist()
        behind = (logprobs.amax(1) - ours)[-NEW_TOKENS:]
        assert behind.max() < tolerance.tie
    assert len(off) == len(PROMPTS) * (len(PROMPTS[0]) - 1 + NEW_TOKENS)
    assert sum(off) / len(off) < tolerance.mean
