"""Parse a quantized checkpoint's config: which linear layers are quantized, and which tensors each one has.

The layouts are those that vLLM 0.32 loads: its `auto_awq.py`, `auto_gptq.py` and `compressed_tensors/` under
`vllm/model_executor/layers/quantization/`, and the packing of compressed-tensors 0.17 (`pack_quantized/helpers.py`).
What those sources refuse is refused here, before anything is deployed. So is what only few GPUs support, or what could not be
tested.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from llama_serving.catalog import Quantization
from llama_serving.errors import SetupError

METHODS: Final = ("awq", "gptq", "compressed-tensors")
OLD_FILES: Final[Mapping[str, str]] = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files that gave the quantization before config.json had `quantization_config`, and their method."""
GROUP_SIZES: Final = (32, 64, 128)
MOST_REPETITIONS: Final = 4
"""The most repetitions in a pattern of `ignore`. Each further `.*` makes matching about six times slower."""
FLOATS: Final = frozenset({"BF16", "F16", "F32"})
INT32: Final = frozenset({"I32"})
INT8: Final = frozenset({"I8"})
FP8: Final = frozenset({"F8_E4M3"})
FUSED: Final = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Linear layers that vLLM fuses: all of them are quantized alike, or none."""
_BLOCK: Final = 128
"""Rows and columns of a block of fp8 weights that shares one scale."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a tensor must be.

    Attributes:
        shapes: allowed shapes.
        dtypes: allowed types, by safetensors' names.
        optional: whether it may be missing.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtypes: frozenset[str]
    optional: bool = False


Tensors = Mapping[str, Expected]
"""Tensors of one linear layer, by the last part of their names."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a checkpoint is quantized.

    Attributes:
        quantization: short name, for the model's record.
        tensors: returns the tensors of a linear layer with given outputs and inputs.
        leaves_out: whether a linear layer, by its module's name, is not quantized.
    """

    quantization: Quantization
    tensors: Callable[[int, int], Tensors]
    leaves_out: Callable[[str], bool]


class _Reader:
    """Typed access to a JSON object. Errors name the key, what is allowed and what to do."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def refuse(self, name: str, allowed: str, todo: str = "Use a checkpoint quantized that way.") -> SetupError:
        found = self.values.get(name)
        shown = repr(found)[:60] if name in self.values else "missing"
        return SetupError(f"{self.where} has {name} {shown}; it must be {allowed}. {todo}")

    def one_of(self, name: str, allowed: tuple[Any, ...], *, default: Any = ...) -> Any:
        """Return a value, which must be one of `allowed` and of the same type."""
        value = self.values.get(name, ...)
        if value is ... and default is not ...:
            return default
        if not any(value is one or (type(value) is type(one) and value == one) for one in allowed):
            raise self.refuse(name, " or ".join(_json(one) for one in allowed))
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        """Return a list of strings, flattened; empty if missing or null."""
        value = self.values.get(name)
        if value is None:
            return ()
        parts = value if isinstance(value, list) else [None]
        flat = [item for part in parts for item in (part if isinstance(part, list) else [part])]
        names = tuple(item for item in flat if isinstance(item, str) and item)
        if len(names) != len(flat):
            raise self.refuse(name, "a list of names", "Download config.json again.")
        return names

    def object(self, name: str) -> "_Reader":
        """Return a nested object."""
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self.refuse(name, "an object", "Download config.json again.")
        return _Reader(value, f"{self.where}'s {name}")

    def none(self, name: str, todo: str) -> None:
        """Refuse any value except an empty one."""
        if self.values.get(name) not in (None, False, "", [], {}):
            raise self.refuse(name, "absent", todo)

    def renamed(self, name: str, older: str) -> "_Reader":
        """Return the object with an older name of a key replaced by the newer one."""
        if name in self.values or older not in self.values:
            return self
        return _Reader({**self.values, name: self.values[older]}, self.where)


def layout_of(values: object, where: str) -> Layout:
    """Return the layout that a `quantization_config` describes.

    Args:
        values: the object.
        where: its place, for messages.

    Raises:
        SetupError: it is damaged, or vLLM would not load such a checkpoint.
    """
    if not isinstance(values, dict):
        raise SetupError(f"{where} is not an object. Download it again.")
    reader = _Reader(values, where)
    method = values.get("quant_method")
    if method not in METHODS:
        raise reader.refuse(
            "quant_method",
            f"one of {', '.join(METHODS)}",
            "Use a checkpoint of one of these, or an unquantized one.",
        )
    if method == "compressed-tensors":
        return _compressed_tensors(reader)
    return _awq(reader) if method == "awq" else _gptq(reader)


def check_fused(layout: Layout, at: str, where: str) -> None:
    """Refuse a decoder layer in which only some of the fused linear layers are quantized.

    Raises:
        SetupError: there is such a layer.
    """
    for names in FUSED:
        block = "self_attn" if "q_proj" in names else "mlp"
        left_out = [name for name in names if layout.leaves_out(f"{at}.{block}.{name}")]
        if left_out and len(left_out) < len(names):
            raise SetupError(
                f"{where} leaves {', '.join(left_out)} of {at}.{block} unquantized, but not all of {', '.join(names)}, "
                "which vLLM fuses. Use a checkpoint that quantizes all of them or none."
            )


def _awq(reader: _Reader) -> Layout:
    reader = reader.renamed("bits", "w_bit").renamed("group_size", "q_group_size")
    bits = reader.one_of("bits", (4,))
    group_size = reader.one_of("group_size", (*GROUP_SIZES, -1))
    reader.one_of("zero_point", (True,))
    version = reader.values.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise reader.refuse("version", '"gemm"', "Other versions pack the weights in another order.")
    reader.none("lm_head", "Use a checkpoint whose head is not quantized.")
    skipped = reader.strings("modules_to_not_convert")

    def tensors(outputs: int, inputs: int) -> Tensors:
        group = _group(group_size, inputs)
        _divides(8, outputs)
        packed = outputs // 8
        return {
            "qweight": Expected(((inputs, packed),), INT32),
            "qzeros": Expected(((inputs // group, packed),), INT32),
            "scales": Expected(((inputs // group, outputs),), FLOATS),
        }

    quantization = Quantization("awq", bits, group_size=None if group_size == -1 else group_size)
    return Layout(quantization, tensors, lambda module: any(part in module for part in skipped))


def _gptq(reader: _Reader) -> Layout:
    bits = reader.one_of("bits", (4, 8))
    group_size = reader.one_of("group_size", (*GROUP_SIZES, -1))
    reader.one_of("sym", (True,))
    if reader.one_of("desc_act", (False, True)) and group_size != -1:
        raise reader.refuse(
            "desc_act",
            "false (or group_size -1)",
            "vLLM no longer supports activation order: use a checkpoint without it.",
        )
    reader.one_of("checkpoint_format", ("gptq", "gptq_v2"), default="gptq")
    reader.one_of("pack_dtype", ("int32",), default="int32")
    reader.none("is_marlin_format", "Use the checkpoint in GPTQ's own format.")
    reader.none("dynamic", "Use a checkpoint that quantizes all layers alike.")
    reader.none("lm_head", "Use a checkpoint whose head is not quantized.")
    only = reader.strings("modules_in_block_to_quantize")

    def tensors(outputs: int, inputs: int) -> Tensors:
        group, packed = _group(group_size, inputs), 32 // bits
        _divides(packed, outputs, inputs)
        return {
            "qweight": Expected(((inputs // packed, outputs),), INT32),
            "qzeros": Expected(((inputs // group, outputs // packed),), INT32),
            "scales": Expected(((inputs // group, outputs),), FLOATS),
            "g_idx": Expected(((inputs,),), INT32, optional=True),
            "bias": Expected(((outputs,),), FLOATS, optional=True),
        }

    quantization = Quantization("gptq", bits, group_size=None if group_size == -1 else group_size)
    return Layout(quantization, tensors, lambda module: bool(only) and not any(part in module for part in only))


def _compressed_tensors(reader: _Reader) -> Layout:
    reader.one_of("quantization_status", ("compressed", "frozen"), default="compressed")
    reader.none(
        "kv_cache_scheme",
        "Use a checkpoint without it, and set LLAMA_VLLM_KV_DTYPE=fp8 for an fp8 cache.",
    )
    reader.none("transform_config", "Use a checkpoint without transforms.")
    sparsity = reader.values.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
        raise reader.refuse(
            "sparsity_config", "absent", "vLLM no longer supports sparse weights: use a dense checkpoint."
        )
    groups = reader.object("config_groups")
    if len(groups.values) != 1:
        raise SetupError(
            f"{reader.where} has {len(groups.values)} config_groups; it must be one. Use a checkpoint that quantizes all "
            "layers alike, or leaves them out by `ignore`."
        )
    group = groups.object(next(iter(groups.values)))
    if group.values.get("targets") != ["Linear"]:
        raise group.refuse("targets", '["Linear"]')
    group.none("output_activations", "Use a checkpoint whose outputs are not quantized.")
    style = group.values.get("format") or reader.values.get("format")
    inputs = group.values.get("input_activations")
    scheme = _SCHEMES.get(style) if isinstance(style, str) else None
    if scheme is None:
        raise reader.refuse("format", " or ".join(_SCHEMES))
    quantization, tensors = scheme(
        group.object("weights"), None if inputs is None else group.object("input_activations")
    )
    ignored = tuple(_pattern(name, reader.where) for name in reader.strings("ignore"))
    return Layout(quantization, tensors, lambda module: any(one.match(module) for one in ignored))


_Scheme = tuple[Quantization, Callable[[int, int], Tensors]]


def _packed(weights: _Reader, inputs: _Reader | None) -> _Scheme:
    """int4 and int8 weights only, several of them packed in an int32."""
    weights.one_of("type", ("int",))
    bits = weights.one_of("num_bits", (4, 8))
    symmetric = weights.one_of("symmetric", (True, False) if bits == 4 else (True,), default=True)
    strategy = _strategy(weights, ("group", "channel"))
    group_size = weights.one_of("group_size", GROUP_SIZES) if strategy == "group" else -1
    _static(weights)
    if inputs is not None:
        raise SetupError(
            f"{inputs.where} quantizes activations in addition to packed weights, which few GPUs support. Use a checkpoint "
            "with int-quantized or float-quantized weights, or without input_activations."
        )

    def tensors(outputs: int, width: int) -> Tensors:
        group, packed = _group(group_size, width), 32 // bits
        _divides(packed, outputs, width)
        expected = {
            "weight_packed": Expected(((outputs, width // packed),), INT32),
            "weight_scale": Expected(((outputs, width // group),), FLOATS),
            "weight_shape": Expected(((2,),), frozenset({"I64", "I32"})),
        }
        if not symmetric:
            expected["weight_zero_point"] = Expected(((outputs // packed, width // group),), INT32)
        return expected

    size = None if group_size == -1 else group_size
    return Quantization("compressed-tensors", bits, group_size=size), tensors


def _int8(weights: _Reader, inputs: _Reader | None) -> _Scheme:
    """int8 weights and int8 activations."""
    weights.one_of("type", ("int",))
    weights.one_of("num_bits", (8,))
    weights.one_of("symmetric", (True,), default=True)
    strategy = _strategy(weights, ("channel", "tensor"))
    _static(weights)
    if inputs is None:
        raise SetupError(
            f"{weights.where} is int8 without input_activations, which vLLM accepts only as pack-quantized. Use a checkpoint "
            "of that format, or one with input_activations."
        )
    inputs.one_of("type", ("int",))
    inputs.one_of("num_bits", (8,))
    symmetric = inputs.one_of("symmetric", (True, False), default=True)
    static = _strategy(inputs, ("token", "tensor")) == "tensor"
    inputs.one_of("dynamic", (not static,), default=False)

    def tensors(outputs: int, width: int) -> Tensors:
        expected = {
            "weight": Expected(((outputs, width),), INT8),
            "weight_scale": Expected(_scale_shapes(strategy, outputs, width), FLOATS),
        }
        if static:
            expected["input_scale"] = Expected(((1,), ()), FLOATS)
        if static and not symmetric:
            expected["input_zero_point"] = Expected(((1,), ()), INT8)
        return expected

    return Quantization("compressed-tensors", 8, activations="int8"), tensors


def _fp8(weights: _Reader, inputs: _Reader | None) -> _Scheme:
    """fp8 weights, with or without fp8 activations."""
    weights.one_of("type", ("float",))
    weights.one_of("num_bits", (8,))
    weights.one_of("symmetric", (True,), default=True)
    strategy = _strategy(weights, ("channel", "tensor", "block"))
    if strategy == "block" and weights.values.get("block_structure") not in (
        [_BLOCK, _BLOCK],
        f"{_BLOCK}x{_BLOCK}",
    ):
        raise weights.refuse("block_structure", f"[{_BLOCK}, {_BLOCK}]")
    _static(weights)
    static = inputs is not None and _fp8_inputs(inputs, blocks=strategy == "block")

    def tensors(outputs: int, width: int) -> Tensors:
        if strategy == "block":
            _divides(_BLOCK, outputs)
        expected = {
            "weight": Expected(((outputs, width),), FP8),
            "weight_scale": Expected(_scale_shapes(strategy, outputs, width), FLOATS),
        }
        if static:
            expected["input_scale"] = Expected(((1,), ()), FLOATS)
        return expected

    return Quantization(
        "compressed-tensors", 8, "float", activations=None if inputs is None else "fp8"
    ), tensors


def _fp8_inputs(inputs: _Reader, *, blocks: bool) -> bool:
    """Whether the activations' scale is in the checkpoint."""
    inputs.one_of("type", ("float",))
    inputs.one_of("num_bits", (8,))
    inputs.one_of("symmetric", (True,), default=True)
    if blocks:
        _strategy(inputs, ("group",))
        inputs.one_of("group_size", (_BLOCK,))
        inputs.one_of("dynamic", (True,))
        return False
    strategy = _strategy(inputs, ("token", "tensor"))
    dynamic = inputs.one_of("dynamic", (True,) if strategy == "token" else (True, False), default=False)
    return not dynamic


_SCHEMES: Final[Mapping[str, Callable[[_Reader, _Reader | None], _Scheme]]] = {
    "pack-quantized": _packed,
    "int-quantized": _int8,
    "float-quantized": _fp8,
}


def _strategy(reader: _Reader, allowed: tuple[str, ...]) -> str:
    """Return the strategy. If none is given, the group size determines it, as in compressed-tensors."""
    if reader.values.get("strategy") is None:
        size = reader.values.get("group_size")
        meant = "tensor" if size is None else "channel" if size == -1 else "group"
        reader = _Reader({**reader.values, "strategy": meant}, reader.where)
    return str(reader.one_of("strategy", allowed))


def _static(weights: _Reader) -> None:
    weights.one_of("dynamic", (False,), default=False)
    if weights.values.get("actorder") not in (None, False, "weight", "static"):
        raise weights.refuse(
            "actorder",
            "null, weight or static",
            "vLLM no longer supports activation order by groups: use a checkpoint without it.",
        )
    if weights.values.get("scale_dtype") not in (None, "torch.float32", "torch.float16", "torch.bfloat16"):
        raise weights.refuse("scale_dtype", "a floating-point type")


def _scale_shapes(strategy: str, outputs: int, inputs: int) -> tuple[tuple[int, ...], ...]:
    if strategy == "channel":
        return ((outputs, 1),)
    if strategy == "block":
        return ((-(-outputs // _BLOCK), -(-inputs // _BLOCK)),)
    return (1,), ()


def _group(size: int, inputs: int) -> int:
    group = inputs if size == -1 else size
    _divides(group, inputs)
    return group


def _divides(by: int, *sizes: int) -> None:
    for size in sizes:
        if size % by:
            raise SetupError(
                f"config.json has a linear layer of width {size}, which is not a multiple of {by}, so it cannot be quantized that way. "
                "Download the checkpoint again, or use another one."
            )


def _pattern(name: str, where: str) -> re.Pattern[str]:
    """Compile an entry of `ignore`: a module's name, or after `re:` a regular expression matched at its start."""
    if not name.startswith("re:"):
        return re.compile(re.escape(name) + r"\Z")
    text = name.removeprefix("re:")
    # Nested groups or many repetitions could make matching take forever; names of modules need neither.
    if (
        len(text) <= 200
        and not re.search(r"\)[*+?{]", text)
        and len(re.findall(r"[*+{]", text)) <= MOST_REPETITIONS
    ):
        try:
            return re.compile(text)
        except re.error:
            pass
    raise SetupError(
        f"{where} has {name[:60]!r} in ignore, which is not a supported regular expression. List the modules instead."
    )


def _json(value: object) -> str:
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)
