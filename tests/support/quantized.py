"""Small quantized checkpoints, written by us in each format's own layout, and the plain ones that they stand for.

Every writer quantizes in numpy and packs as the format defines it (AutoAWQ's order, AutoGPTQ's int32 columns,
compressed-tensors' rows). `plain` holds the very weights that the packed ones decode to, so that whoever reads
both has to compute nearly the same.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from llama_endpoints.nano import FOLDER
from tests.support import llamas

Array = NDArray[Any]
AWQ_ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)
"""The column that AutoAWQ puts into each half byte of an int32, from the lowest."""

LLAMA: Final = llamas.Llama(
    layers=2, hidden=128, ffn=256, heads=4, kv_heads=4, head_dim=32, vocab=4096, positions=512
)
"""Wide enough that each format's kernels take it, and with nano's vocabulary."""


INPUT_SCALE: Final = 0.08
"""Of static activations, in all layers."""


@dataclass(frozen=True)
class Quantized:
    """A linear layer's tensors, and the weights that they decode to."""

    tensors: Mapping[str, torch.Tensor]
    weight: torch.Tensor


@dataclass(frozen=True)
class Kind:
    """A way to quantize.

    Attributes:
        config: what config.json says as `quantization_config`.
        quantize: a weight (outputs, inputs) in float32.
    """

    config: Mapping[str, Any]
    quantize: Callable[[Array], Quantized]


def _grouped(weight: Array, group: int, bits: int, *, symmetric: bool) -> tuple[Array, Array, Array]:
    """Unsigned values, scales and zero points: (out, in), (out, groups), (out, groups); scales are float16's."""
    outputs, inputs = weight.shape
    size = inputs if group == -1 else group
    parts = weight.reshape(outputs, inputs // size, size)
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    if symmetric:
        scale = np.abs(parts).max(-1) / (middle - 1)
        zero = np.full(scale.shape, middle)
    else:
        low, high = np.minimum(parts.min(-1), 0), np.maximum(parts.max(-1), 0)
        scale = (high - low) / top
        zero = np.clip(np.rint(-low / scale), 0, top)
    scale = scale.astype(np.float16).astype(np.float32)
    values = np.clip(np.rint(parts / scale[..., None]) + zero[..., None], 0, top)
    return values.reshape(outputs, inputs).astype(np.int64), scale, zero.astype(np.int64)


def _decoded(values: Array, scale: Array, zero: Array) -> torch.Tensor:
    repeat = values.shape[1] // scale.shape[1]
    weight = (values - np.repeat(zero, repeat, 1)) * np.repeat(scale, repeat, 1)
    return torch.from_numpy(weight.astype(np.float32))


def _packed(values: Array, bits: int) -> torch.Tensor:
    """Consecutive values of the last axis in one int32, the first in its lowest bits."""
    count = 32 // bits
    shifts = np.arange(count, dtype=np.uint32) * np.uint32(bits)
    parts = values.reshape(*values.shape[:-1], -1, count).astype(np.uint32)
    words: Array = np.bitwise_or.reduce(parts << shifts, axis=-1)
    return torch.from_numpy(np.ascontiguousarray(words.astype(np.uint32)).view(np.int32))


def _half(scale: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(scale)).half()


def awq(group: int = 32) -> Kind:
    """AutoAWQ's GEMM layout: (in, out / 8), columns in an order of their own."""

    def quantize(weight: Array) -> Quantized:
        values, scale, zero = _grouped(weight, group, 4, symmetric=False)

        def ordered(columns: Array) -> torch.Tensor:
            parts = columns.reshape(columns.shape[0], -1, 8)[:, :, AWQ_ORDER]
            return _packed(parts.reshape(columns.shape), 4)

        tensors = {"qweight": ordered(values.T), "qzeros": ordered(zero.T), "scales": _half(scale.T)}
        return Quantized(tensors, _decoded(values, scale, zero))

    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm",
              "modules_to_not_convert": None}  # fmt: skip
    return Kind(config, quantize)


def gptq(bits: int = 4, group: int = 32) -> Kind:
    """AutoGPTQ's layout: (in / n, out), zero points one too low, and an index of groups."""

    def quantize(weight: Array) -> Quantized:
        values, scale, zero = _grouped(weight, group, bits, symmetric=True)
        inputs = weight.shape[1]
        size = inputs if group == -1 else group
        tensors = {
            "qweight": _packed(values, bits).T.contiguous(),
            "qzeros": _packed(zero.T - 1, bits),
            "scales": _half(scale.T),
            "g_idx": torch.arange(inputs, dtype=torch.int32) // size,
        }
        return Quantized(tensors, _decoded(values, scale, zero))

    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": True,
              "damp_percent": 0.01, "checkpoint_format": "gptq"}  # fmt: skip
    return Kind(config, quantize)


def _compressed(style: str, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    group = {
        "targets": ["Linear"],
        "weights": dict(weights),
        "input_activations": inputs,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": style,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "config_groups": {"group_0": group},
    }


def packed(bits: int = 4, group: int = 32, *, symmetric: bool = True) -> Kind:
    """compressed-tensors' pack-quantized: (out, in / n), zero points packed along the outputs."""

    def quantize(weight: Array) -> Quantized:
        values, scale, zero = _grouped(weight, group, bits, symmetric=symmetric)
        tensors = {
            "weight_packed": _packed(values, bits),
            "weight_scale": _half(scale),
            "weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            tensors["weight_zero_point"] = _packed(zero.T, bits).T.contiguous()
        return Quantized(tensors, _decoded(values, scale, zero))

    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "dynamic": False, "actorder": None,
               "strategy": "channel" if group == -1 else "group", "group_size": None if group == -1 else group}  # fmt: skip
    return Kind(_compressed("pack-quantized", weights, None), quantize)


def int8(strategy: str = "channel", *, static: bool = False) -> Kind:
    """compressed-tensors' int-quantized: one scale a row or a matrix, activations rounded as well."""

    def quantize(weight: Array) -> Quantized:
        axis = 1 if strategy == "channel" else None
        scale = np.asarray(np.abs(weight).max(axis=axis, keepdims=True) / 127, np.float32)
        values = np.clip(np.rint(weight / scale), -127, 127)
        scale = scale if strategy == "channel" else scale.reshape(1)
        tensors = {"weight": torch.from_numpy(values.astype(np.int8)), "weight_scale": torch.from_numpy(scale)}
        if static:
            tensors["input_scale"] = torch.tensor([INPUT_SCALE])
        return Quantized(tensors, torch.from_numpy((values * scale).astype(np.float32)))

    weights = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False, "strategy": strategy}
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": not static,
              "strategy": "tensor" if static else "token"}  # fmt: skip
    return Kind(_compressed("int-quantized", weights, inputs), quantize)


def fp8(strategy: str = "channel", *, activations: str | None = "token") -> Kind:
    """compressed-tensors' float-quantized: fp8 (e4m3) weights."""

    def quantize(weight: Array) -> Quantized:
        whole = torch.from_numpy(weight)
        top = torch.finfo(torch.float8_e4m3fn).max
        if strategy == "block":
            rows, columns = -(-whole.shape[0] // 128), -(-whole.shape[1] // 128)
            blocks = whole.reshape(rows, 128, columns, 128)
            scale = blocks.abs().amax((1, 3)) / top
            wide = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
        else:
            wide = scale = (
                whole.abs().amax(1, keepdim=True) if strategy == "channel" else whole.abs().max()
            ) / top
            scale = scale if strategy == "channel" else scale.reshape(1)
        values = (whole / wide).to(torch.float8_e4m3fn)
        tensors = {"weight": values, "weight_scale": scale}
        if activations == "static":
            tensors["input_scale"] = torch.tensor([INPUT_SCALE])
        return Quantized(tensors, values.float() * wide)

    weights: dict[str, Any] = {
        "num_bits": 8,
        "type": "float",
        "symmetric": True,
        "dynamic": False,
        "strategy": strategy,
    }
    inputs: dict[str, Any] | None = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": True}
    assert inputs is not None
    if strategy == "block":
        weights["block_structure"] = [128, 128]
        inputs |= {"strategy": "group", "group_size": 128}
    elif activations == "static":
        inputs |= {"strategy": "tensor", "dynamic": False}
    elif activations is None:
        inputs = None
    else:
        inputs |= {"strategy": activations}
    return Kind(_compressed("float-quantized", weights, inputs), quantize)


def write(
    kind: Kind, folder: Path, *, llama: llamas.Llama = LLAMA, plain: Path | None = None, seed: int = 0
) -> Path:
    """Writes a quantized checkpoint, and into `plain` the weights that it stands for, in float32.

    Embeddings, norms and head are rounded to bfloat16 first, so that both have the same ones.
    """
    model = llamas.random_model(llama, seed=seed)
    model.to(torch.bfloat16).save_pretrained(folder)
    whole = load_file(folder / "model.safetensors")
    told: dict[str, torch.Tensor] = {}
    for name, tensor in list(whole.items()):
        if name.endswith("_proj.weight"):
            made = kind.quantize(tensor.float().numpy())
            told |= {f"{name.removesuffix('weight')}{part}": each for part, each in made.tensors.items()}
            whole[name] = made.weight
        else:
            told[name] = tensor
    shutil.copyfile(FOLDER / "tokenizer.json", folder / "tokenizer.json")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if plain is not None:
        plain.mkdir()
        (plain / "config.json").write_text(json.dumps(config | {"dtype": "float32"}), encoding="utf-8")
        shutil.copyfile(FOLDER / "tokenizer.json", plain / "tokenizer.json")
        save_file(
            {name: each.float().contiguous() for name, each in whole.items()},
            plain / "model.safetensors",
            {"format": "pt"},
        )
    save_file(
        {name: each.contiguous() for name, each in told.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    write_config(folder, config | {"quantization_config": dict(kind.config)})
    return folder


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Replaces config.json."""
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


KINDS: Final[Mapping[str, Kind]] = {
    "awq": awq(),
    "awq, a group a row": awq(-1),
    "gptq int4": gptq(),
    "gptq int4, a group a row": gptq(group=-1),
    "gptq int8": gptq(8),
    "packed int4": packed(),
    "packed int4, a group a row": packed(group=-1),
    "packed int4 with zero points": packed(symmetric=False),
    "packed int8": packed(8),
    "int8 by rows": int8(),
    "int8 by matrices": int8("tensor"),
    "int8 with static activations": int8(static=True),
    "fp8 by rows": fp8(),
    "fp8 by matrices": fp8("tensor"),
    "fp8 with static activations": fp8("tensor", activations="static"),
    "fp8 weights alone": fp8(activations=None),
    "fp8 by blocks": fp8("block"),
}
"""Each kind that `package` takes."""
