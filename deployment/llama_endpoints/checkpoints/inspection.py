"""Inspect a checkpoint on disk: is it complete, safe, and the model it is said to be?

Reads the config, the tokenizer and the headers of the weights, but not the weights.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from llama_endpoints.checkpoints.file_patterns import OPTIONAL_FILES, PICKLES, SMALL_FILES
from llama_endpoints.checkpoints.quantization import FLOATS, OLD_FILES, Expected, Layout, check_fused, layout_of
from llama_endpoints.checkpoints.tensor_file import TensorFile
from llama_serving.catalog import Fact, ModelVariant, Shape
from llama_serving.errors import SetupError
from llama_serving.llama_config import FILE, LlamaConfig, json_object, load, positions_of, unused_theta
from llama_serving.prompts.tokenizer import Tokenizer

_SHARD: Final = re.compile(r"[^/\\]+\.safetensors")
INFILL_PIECES: Final = {"prefix": "▁<PRE>", "suffix": "▁<SUF>", "middle": "▁<MID>", "eot": "▁<EOT>"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An inspected checkpoint.

    Attributes:
        folder: the checkpoint's folder.
        weights: the safetensors files, and the index if there are several.
        small: other files that are needed or worth keeping.
        warnings: differences between its config and the catalog; the config takes precedence.
        config: the config.json of the packaged model, if it must differ from the checkpoint's.
        merged: what it was made of, where an adapter was merged into it; for the model's record.
        gguf: the GGUF file it was converted from, and its types; for the model's record.
    """

    folder: Path
    variant: ModelVariant
    weights: tuple[Path, ...]
    small: tuple[Path, ...]
    warnings: tuple[str, ...]
    config: Mapping[str, Any] | None = None
    merged: Mapping[str, Any] | None = None
    gguf: Mapping[str, Any] | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The folder and its files, which must outlive packaging."""
        return (self.folder, *self.weights, *self.small)

    @property
    def weight_bytes(self) -> int:
        """The size of the weights on disk, in bytes."""
        return sum(path.stat().st_size for path in self.weights)


def inspect(folder: Path, variant: ModelVariant) -> Checkpoint:
    """Read and check everything that packaging needs.

    Raises:
        SetupError: a file is missing or damaged, the weights are pickles, or it is another model.
    """
    config = read_config(folder)
    adapted, warnings = adapt(variant, config, folder)
    layout, completed = _quantized(folder, config)
    weights = _weights(folder)
    _check_headers(weights, adapted, layout)
    check_tokenizer(Tokenizer.from_folder(folder), adapted)
    small = [folder / name for name in SMALL_FILES]
    small += sorted(path for pattern in OPTIONAL_FILES for path in folder.glob(pattern) if path.is_file())
    if layout is not None:
        adapted = replace(adapted, quantization=layout.quantization)
    return Checkpoint(folder, adapted, weights, tuple(small), warnings, completed)


def _quantized(folder: Path, config: dict[str, Any]) -> tuple[Layout | None, dict[str, Any] | None]:
    """Return the quantization, and the config with the quantization added if another file gives it.

    vLLM reads config.json only.
    """
    if config.get("quantization_config") is not None:
        return layout_of(config["quantization_config"], f"{folder}/config.json's quantization_config"), None
    if (said := config.get("compression_config")) is not None:  # older compressed-tensors
        return layout_of(said, f"{folder}/config.json's compression_config"), {
            **config,
            "quantization_config": said,
        }
    for name, method in OLD_FILES.items():
        if (folder / name).is_file():
            said = {"quant_method": method, **json_object(folder / name)}
            return layout_of(said, f"{folder}/{name}"), {**config, "quantization_config": said}
    return None, None


def read_config(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a Llama.

    Raises:
        SetupError: it is missing, damaged, or of another architecture.
    """
    path, config = folder / FILE, load(folder)
    if config.get("model_type") != "llama":
        raise SetupError(
            f"{path} says model_type {config.get('model_type')}; only llama checkpoints are served."
        )
    if "auto_map" in config:
        raise SetupError(f"{path} has auto_map, which names code to run. Remote code is never run: remove it.")
    return config


def shape_of(config: LlamaConfig) -> Shape:
    """Return the shape that a config describes."""
    return Shape(
        layers=config.layers,
        hidden=config.hidden,
        ffn=config.ffn,
        heads=config.heads,
        kv_heads=config.kv_heads,
        vocab=config.vocab,
        tied_embeddings=config.tied,
        own_head_dim=None if config.head_dim == config.hidden // config.heads else config.head_dim,
    )


def adapt(
    variant: ModelVariant, config: Mapping[str, Any], folder: Path
) -> tuple[ModelVariant, tuple[str, ...]]:
    """Return the catalog row adjusted to the checkpoint's config, and a sentence for each difference.

    Raises:
        SetupError: the shape differs.
    """
    said = LlamaConfig.of(config, folder)
    shape = shape_of(said)
    if shape != variant.shape:
        fields = [name for name in Shape.__slots__ if getattr(shape, name) != getattr(variant.shape, name)]
        names = [name.removeprefix("own_") for name in fields]  # a head always has a width
        found = ", ".join(f"{n} {getattr(shape, n)} instead of {getattr(variant.shape, n)}" for n in names)
        raise SetupError(f"{folder} is not {variant.name}: its config has {found}. Name the right --variant.")
    warnings = []
    if (unused := unused_theta(config, folder)) is not None:
        warnings.append(
            f"config.json has rope_theta twice: {said.rope_theta:g} in rope_parameters, {unused:g} beside it"
        )
    if said.rope_theta != variant.rope_theta:
        warnings.append(
            f"rope_theta is {said.rope_theta:g} in config.json, {variant.rope_theta:g} in the catalog"
        )
        variant = replace(variant, rope_theta=said.rope_theta)
    positions = positions_of(config, folder)
    if positions is not None and positions != variant.trained_positions.value:
        warnings.append(
            f"max_position_embeddings is {positions} in config.json, "
            f"{variant.trained_positions.value} in the catalog"
        )
        trained = Fact(positions, "config.json")
        reach = variant.max_context if variant.max_context.value >= positions else trained
        variant = replace(variant, trained_positions=trained, max_context=reach)
    return variant, tuple(f"{text}: the checkpoint's own value is used" for text in warnings)


def _weights(folder: Path) -> tuple[Path, ...]:
    """Return the files that transformers would load: a single file takes precedence over an index."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return (single,)
    if index.is_file():
        names = shards_of(index)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise SetupError(f"{folder} lacks {', '.join(missing)}, which the index names. Download the rest.")
        return (index, *(folder / name for name in names))
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise SetupError(
            f"{folder} has its weights only as pickles ({', '.join(pickles[:3])}), and loading a pickle runs "
            "whatever code is in it. Use the safetensors files of the same model."
        )
    raise SetupError(f"{folder} has no weights: model.safetensors is missing.")


def shards_of(index: Path) -> list[str]:
    """Return the safetensors files that an index lists.

    Raises:
        SetupError: it cannot be read, or lists other files.
    """
    weight_map = json_object(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) and _SHARD.fullmatch(name) for name in names):
        raise SetupError(f"{index} must map tensors to safetensors files beside it. Download it again.")
    return sorted(set(names))


def _check_headers(weights: tuple[Path, ...], variant: ModelVariant, layout: Layout | None) -> None:
    """Check that every tensor exists with the right shape and type, and that no file is cut short."""
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    places: dict[str, Path] = {}
    for path in weights:
        if path.suffix != ".safetensors":
            continue
        try:
            with safe_open(path, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    part = tensors.get_slice(name)
                    found[name], places[name] = (tuple(part.get_shape()), str(part.get_dtype())), path
        except (SafetensorError, OSError) as error:
            raise SetupError(f"{path} is damaged or cut short: {error}. Download it again.") from error
    for name, expected in expected_tensors(variant.shape, layout).items():
        if name not in found and expected.optional:
            continue
        _check_tensor(name, found.get(name), expected)
    if layout is not None:
        _check_small_tensors(places, found, layout)


def _check_tensor(name: str, found: tuple[tuple[int, ...], str] | None, expected: Expected) -> None:
    shape = " or ".join(map(str, expected.shapes))
    if found is None or found[0] not in expected.shapes:
        has = "is missing" if found is None else f"has the shape {found[0]}"
        raise SetupError(f"The weights don't match config.json: {name} {has}; it should be {shape}.")
    if found[1] not in expected.dtypes:
        types = " or ".join(sorted(expected.dtypes))
        raise SetupError(
            f"The weights don't match config.json: {name} is of {found[1]}; it should be of {types}."
        )


def _check_small_tensors(
    places: Mapping[str, Path], found: Mapping[str, tuple[tuple[int, ...], str]], layout: Layout
) -> None:
    """Check small tensors that vLLM ignores or drops: their values must have no effect."""
    files = {path: TensorFile.read(path) for path in set(places.values())}
    size = layout.quantization.group_size
    for name, path in places.items():
        module, _, part = name.rpartition(".")
        if part == "g_idx" and _orders(files[path].integers(name).tolist(), size):
            raise SetupError(
                f"{name} reorders the weights (desc_act), which vLLM no longer supports. "
                "Use a checkpoint without activation order."
            )
        if part == "bias" and f"{module}.qweight" in places and files[path].floats(name).any():
            raise SetupError(
                f"{name} is not zero, but no Llama has biases and vLLM would drop it. Download it again."
            )
        if part == "weight_shape" and f"{module}.weight_packed" in found:
            packed = found[f"{module}.weight_packed"][0]
            rows, columns = files[path].integers(name).tolist()
            if (rows, columns) != (packed[0], packed[1] * (32 // layout.quantization.bits)):
                raise SetupError(
                    f"{name} says {rows} x {columns}, but weight_packed has another shape. Download it again."
                )


def _orders(g_idx: list[int], group_size: int | None) -> bool:
    size = group_size or len(g_idx)
    return any(group != index // size for index, group in enumerate(g_idx))


def expected_tensors(shape: Shape, layout: Layout | None = None) -> dict[str, Expected]:
    """Return the tensors of a Llama, by the hub's names. Embeddings, norms and head are never quantized.

    Raises:
        SetupError: a linear layer of this shape cannot be quantized this way.
    """
    plain = {name: Expected((size,), FLOATS) for name, size in plain_tensors(shape).items()}
    if layout is None:
        return plain
    for layer in range(shape.layers):
        check_fused(layout, f"model.layers.{layer}", "config.json")
    expected: dict[str, Expected] = {}
    for name, tensor in plain.items():
        module = name.removesuffix(".weight")
        if not module.endswith("_proj") or layout.leaves_out(module):
            expected[name] = tensor
            continue
        outputs, inputs = tensor.shapes[0]
        expected |= {f"{module}.{part}": each for part, each in layout.tensors(outputs, inputs).items()}
    return expected


def plain_tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the shapes of an unquantized Llama's tensors, by the hub's names."""
    hidden, width, kv = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    expected: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape.vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    if not shape.tied_embeddings:
        expected["lm_head.weight"] = (shape.vocab, hidden)
    for layer in range(shape.layers):
        at = f"model.layers.{layer}"
        expected |= {
            f"{at}.self_attn.q_proj.weight": (width, hidden),
            f"{at}.self_attn.k_proj.weight": (kv, hidden),
            f"{at}.self_attn.v_proj.weight": (kv, hidden),
            f"{at}.self_attn.o_proj.weight": (hidden, width),
            f"{at}.mlp.gate_proj.weight": (shape.ffn, hidden),
            f"{at}.mlp.up_proj.weight": (shape.ffn, hidden),
            f"{at}.mlp.down_proj.weight": (hidden, shape.ffn),
            f"{at}.input_layernorm.weight": (hidden,),
            f"{at}.post_attention_layernorm.weight": (hidden,),
        }
    return expected


def check_tokenizer(tokenizer: Tokenizer, variant: ModelVariant) -> None:
    """Check that a tokenizer fits the model, and that its infilling tokens are the variant's.

    Raises:
        SetupError: it does not.
    """
    if tokenizer.size > variant.shape.vocab:
        raise SetupError(
            f"tokenizer.json has {tokenizer.size} pieces, the model {variant.shape.vocab}: they don't belong together."
        )
    tokens = variant.infill.value
    for field, piece in INFILL_PIECES.items() if tokens is not None else ():
        found, expected = tokenizer.special_id(piece), getattr(tokens, field)
        if found != expected:
            has = "has no such token" if found is None else f"has it as {found}"
            raise SetupError(f"{variant.name} infills with {piece} as {expected}; tokenizer.json {has}.")
