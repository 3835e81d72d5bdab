"""Read a PEFT adapter, check that it merges exactly, and map its tensors to the base's.

LoRA adds a product of two thin matrices to a weight: W + scale * B @ A, where scale is alpha / r, or
alpha / sqrt(r) with `use_rslora` (arXiv 2106.09685 section 4.1, arXiv 2312.03732). That is all that is merged here.
The file format is that of the library `peft` 0.21; the tests compare the results with it.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llama_endpoints.checkpoints.inspection import expected_tensors
from llama_endpoints.checkpoints.tensor_file import FLOATING, TensorFile
from llama_serving.catalog import Shape
from llama_serving.errors import SetupError
from llama_serving.llama_config import json_object

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
PICKLE: Final = "adapter_model.bin"

_PREFIX: Final = "base_model.model."
_FACTOR: Final = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(\.weight)?")
_EMBEDDING: Final = "model.embed_tokens"
_HEAD: Final = "lm_head"
_PATTERN: Final = re.compile(r"\^?[A-Za-z0-9_.]+")
_INERT: Final = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "init_lora_weights",  # checked separately
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)  # fmt: skip
"""Keys of adapter_config.json about the training; the tensors hold its result."""
_READ: Final = frozenset(
    {"alpha_pattern", "bias", "lora_alpha", "modules_to_save", "peft_type", "r", "rank_pattern", "use_rslora"}
)
_WHY: Final[Mapping[str, str]] = {
    "use_dora": "DoRA rescales each row of the sum, which this merge does not support",
    "fan_in_fan_out": "its weights are transposed, which no Llama's are",
    "lora_bias": "no Llama has biases to add it to",
    "layer_replication": "the merged model would have more layers than the base",
    "trainable_token_indices": "it replaces single rows of the embedding",
    "alora_invocation_tokens": "it is activated in the middle of a prompt",
    "target_parameters": "it changes parameters that are not weights of linear layers",
}
_FREE_INITS: Final = (True, False, "gaussian", "eva", "orthogonal")
"""Initializations that leave the base's weights unchanged; PiSSA, OLoRA, CorDA and LoftQ change them."""


@dataclass(frozen=True, slots=True)
class Update:
    """The change of one tensor of the base.

    Attributes:
        replacement: the adapter's tensor that replaces it first, if any (`modules_to_save`).
        a: name of the factor (r, inputs), if a product is added.
        b: name of the factor (outputs, r).
        scale: factor of the product.
        embedding: whether the product is transposed: an embedding is (vocabulary, hidden), its factors (r, vocabulary)
            and (hidden, r).
    """

    replacement: str | None = None
    a: str | None = None
    b: str | None = None
    scale: float = 1.0
    embedding: bool = False


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """A checked adapter.

    Attributes:
        updates: changes by name of the base's tensors.
        base: the model it was trained on, as it says.
    """

    folder: Path
    file: TensorFile
    updates: Mapping[str, Update]
    base: str | None


def read_adapter(folder: Path, shape: Shape) -> LoraAdapter:
    """Read the adapter in `folder` for a base of `shape`.

    Raises:
        SetupError: it is missing, damaged, of another shape, or cannot be merged exactly.
    """
    config = _config(folder)
    _check_config(config, folder)
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / PICKLE).is_file()
        has = (
            f"has its weights only as a pickle ({PICKLE}), and loading one runs whatever code is in it"
            if pickled
            else f"has no {WEIGHTS}"
        )
        raise SetupError(f"{folder} {has}. Save the adapter again with safe_serialization=True.")
    file = TensorFile.read(folder / WEIGHTS)
    updates = _updates(_Trained(file, config, _base_shapes(shape)))
    _check_tied(updates, shape)
    _check_complete(updates, config, shape)
    base = config.get("base_model_name_or_path")
    return LoraAdapter(folder, file, updates, base if isinstance(base, str) else None)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise SetupError(
            f"{folder} has no {CONFIG}, so it is no PEFT adapter. Name the folder that save_pretrained wrote."
        )
    return json_object(path, "Save the adapter again.")


def _check_config(config: Mapping[str, Any], folder: Path) -> None:
    path = folder / CONFIG
    if config.get("peft_type") != "LORA":
        raise SetupError(f"{path} has peft_type {config.get('peft_type')!r}; only LORA adapters are merged.")
    if config.get("bias", "none") != "none":
        raise SetupError(
            f"{path} has bias {config['bias']!r}; it must be none, since no Llama has biases. Train it so."
        )
    begun = config.get("init_lora_weights", True)
    if not any(begun is one or (isinstance(begun, str) and begun == one) for one in _FREE_INITS):
        raise SetupError(
            f"{path} has init_lora_weights {begun!r}, which may have changed the base's weights when training began, so "
            "that the adapter belongs to others than the checkpoint's. Convert it to plain LoRA when saving "
            "(path_initial_model_for_weight_conversion)."
        )
    for name, value in config.items():
        if name in _INERT or name in _READ or not value:
            continue
        why = _WHY.get(name, "what it does can't be merged, or is not known here")
        raise SetupError(
            f"{path} has {name} {str(value)[:60]}: {why}. Use an adapter without it, or merge it with `peft`."
        )


def _base_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shapes[0] for name, tensor in expected_tensors(shape).items()}


@dataclass(frozen=True, slots=True)
class _Trained:
    """The adapter's tensors, and the shapes of the base's."""

    file: TensorFile
    config: Mapping[str, Any]
    base: Mapping[str, tuple[int, ...]]


def _updates(trained: _Trained) -> dict[str, Update]:
    file, base = trained.file, trained.base
    factors: dict[str, dict[str, str]] = {}
    updates: dict[str, Update] = {}
    kept = _names(trained.config, "modules_to_save")
    for name, tensor in file.tensors.items():
        if tensor.dtype not in FLOATING:
            raise SetupError(f"{file.path} has {name} of {tensor.dtype}; it must be of {', '.join(FLOATING)}.")
        inner = name.removeprefix(_PREFIX)
        if found := _FACTOR.fullmatch(inner):
            key = found["factor"] + ("e" if found["embedding"] else "")
            factors.setdefault(found["module"], {})[key] = name
            continue
        target = inner.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        module = target.removesuffix(".weight")
        known = target in base and (".base_layer." in inner or module.endswith(kept))
        if not known:
            raise SetupError(
                f"{file.path} has {name}, which is no LoRA factor of a linear layer or embedding of this base, and no whole "
                "weight of it named in modules_to_save. Use an adapter trained on this very model."
            )
        _same_shape(file, name, tensor.shape, base[target])
        updates[target] = Update(replacement=name)
    for module, parts in factors.items():
        replaced = updates.get(f"{module}.weight", Update())
        updates[f"{module}.weight"] = _low_rank(trained, module, parts, replaced.replacement)
    if not updates:
        raise SetupError(f"{file.path} changes nothing. Name the folder of a trained adapter.")
    return updates


def _names(config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    names = config.get(key) or []
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise SetupError(f"{CONFIG} has {key} that is no list of names. Save the adapter again.")
    return tuple(names)


def _low_rank(trained: _Trained, module: str, parts: Mapping[str, str], replacement: str | None) -> Update:
    file, config = trained.file, trained.config
    embedding = module == _EMBEDDING
    keys = ("Ae", "Be") if embedding else ("A", "B")
    weight = trained.base.get(f"{module}.weight")
    if weight is None or len(weight) != 2:
        raise SetupError(
            f"{file.path} changes {module}, which this base doesn't have. Use an adapter trained on this model."
        )
    if set(parts) != set(keys):
        raise SetupError(f"{file.path} has not just the two LoRA factors of {module}. Save the adapter again.")
    a, b = parts[keys[0]], parts[keys[1]]
    rank, alpha = _rank_and_alpha(config, module)
    outputs, inputs = reversed(weight) if embedding else weight
    _same_shape(file, a, file.tensors[a].shape, (rank, inputs))
    _same_shape(file, b, file.tensors[b].shape, (outputs, rank))
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return Update(replacement, a, b, scale, embedding)


def _rank_and_alpha(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """Return r and alpha of a module: from a pattern that matches the end of its name, or the defaults."""
    rank = _pattern_value(config, "rank_pattern", module, config.get("r"))
    alpha = _pattern_value(config, "alpha_pattern", module, config.get("lora_alpha"))
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise SetupError(
            f"{CONFIG} gives {module} r {rank!r}; a positive integer is needed. Save the adapter again."
        )
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not _is_finite(alpha):
        raise SetupError(
            f"{CONFIG} gives {module} lora_alpha {alpha!r}; a number is needed. Save the adapter again."
        )
    return rank, float(alpha)


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond the range of floats
        return False


def _pattern_value(config: Mapping[str, Any], name: str, module: str, otherwise: Any) -> Any:
    patterns = config.get(name) or {}
    if not isinstance(patterns, dict) or not all(_PATTERN.fullmatch(key) for key in patterns):
        raise SetupError(
            f"{CONFIG} has {name} with more than names of modules in it. Train with the modules' own names."
        )
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), otherwise)


def _same_shape(file: TensorFile, name: str, found: tuple[int, ...], needed: tuple[int, ...]) -> None:
    if found != needed:
        raise SetupError(
            f"{file.path} has {name} of the shape {found}; with this base and {CONFIG} it must be {needed}. "
            "Use an adapter trained on this very model."
        )


def _check_tied(updates: Mapping[str, Update], shape: Shape) -> None:
    if shape.tied_embeddings and f"{_EMBEDDING}.weight" in updates:
        raise SetupError(
            "The adapter changes the embedding, which this base shares with its head, so that the sum would change both. "
            "Use an adapter for linear layers alone."
        )


def _check_complete(updates: Mapping[str, Update], config: Mapping[str, Any], shape: Shape) -> None:
    """Where the config names the modules, each of them has its factors: a file may have been saved in part."""
    targets = config.get("target_modules")
    if not isinstance(targets, list) or any(
        config.get(key) for key in ("layers_to_transform", "exclude_modules")
    ):
        return
    missing = [module for module in _named(targets, shape) if f"{module}.weight" not in updates]
    if missing:
        raise SetupError(
            f"{CONFIG} names {missing[0]} among target_modules, but {WEIGHTS} has no factors of it. Save the adapter again."
        )


def _named(targets: list[Any], shape: Shape) -> Iterator[str]:
    for name in _base_shapes(shape):
        module = name.removesuffix(".weight")
        if any(isinstance(one, str) and (module == one or module.endswith(f".{one}")) for one in targets):
            yield module
