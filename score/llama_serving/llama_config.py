"""Reads a Llama's `config.json`, for packaging, planning and the engines.

Defaults and alternative keys are resolved as transformers resolves them.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llama_serving.errors import SetupError

FILE: Final = "config.json"
QUANTIZED: Final = "quantization_config"
"""What a quantized checkpoint's config has."""
_THETA: Final = 1e4
_EPSILON: Final = 1e-6


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """The sizes and constants of a Llama."""

    vocab: int
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    epsilon: float
    tied: bool

    @classmethod
    def of(cls, config: Mapping[str, Any], folder: Path) -> "LlamaConfig":
        """Return the values of a config.

        Args:
            config: as `load` reads it.
            folder: where it lies, for the messages.

        Raises:
            SetupError: a value is missing or impossible.
        """
        hidden, heads = _size(config, "hidden_size", folder), _size(config, "num_attention_heads", folder)
        kv_heads = _size(config, "num_key_value_heads", folder, default=heads)
        if heads % kv_heads or hidden % heads:
            raise SetupError(
                f"{folder}/{FILE} has hidden_size {hidden}, num_attention_heads {heads} and "
                f"num_key_value_heads {kv_heads}: each must be a multiple of the next."
            )
        return cls(
            vocab=_size(config, "vocab_size", folder),
            hidden=hidden,
            ffn=_size(config, "intermediate_size", folder),
            layers=_size(config, "num_hidden_layers", folder),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=_even(_size(config, "head_dim", folder, default=hidden // heads), folder),
            rope_theta=_thetas(config, folder)[0],
            epsilon=_positive(config.get("rms_norm_eps", _EPSILON), "rms_norm_eps", folder),
            tied=_boolean(config, "tie_word_embeddings", folder),
        )

    @property
    def weights_per_token(self) -> int:
        """Number of weights that each token is multiplied with: all but the embedding."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.ffn) + self.hidden * self.vocab

    @property
    def kv_values_per_token(self) -> int:
        """Number of key and value elements of one token, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim


def load(folder: Path) -> dict[str, Any]:
    """Return the config of a checkpoint as its file has it.

    Raises:
        SetupError: it is missing or damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise SetupError(f"{folder} has no {FILE}, so it is no checkpoint. Name the folder that holds one.")
    return json_object(path)


def json_object(path: Path, remedy: str = "Download it again.") -> dict[str, Any]:
    """Return the JSON object in a checkpoint's file; `remedy` says how to replace a damaged file.

    Raises:
        SetupError: it can't be read, or it holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SetupError(f"{path} can't be read: {error}. {remedy}") from error
    if not isinstance(value, dict):
        raise SetupError(f"{path} is not a JSON object. {remedy}")
    return value


def refuse_quantized(config: Mapping[str, Any], engine: str) -> None:
    """Refuse a quantized checkpoint for an engine that does not compute it.

    Raises:
        SetupError: the checkpoint is quantized.
    """
    if config.get(QUANTIZED) is not None:
        raise SetupError(
            f"The {engine} engine doesn't compute quantized checkpoints (config.json has a {QUANTIZED}). On a CPU set "
            "LLAMA_DTYPE=bfloat16: the batching engine computes them in it. On a GPU set LLAMA_ENGINE=vllm. Or use the model's "
            "unquantized checkpoint."
        )


def positions_of(config: Mapping[str, Any], folder: Path) -> int | None:
    """Return the positions that the checkpoint says it was trained on; None if it does not say.

    Raises:
        SetupError: it is no positive integer.
    """
    if config.get("max_position_embeddings") is None:
        return None
    return _size(config, "max_position_embeddings", folder)


def rope_of(config: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Return the rotary embedding's settings as one object; older configs call it `rope_scaling`.

    Raises:
        SetupError: it is no object.
    """
    for name in ("rope_scaling", "rope_parameters"):
        if not isinstance(config.get(name) or {}, Mapping):
            raise SetupError(f"{folder}/{FILE} has {name} {config[name]!r}; an object is needed.")
    found: Mapping[str, Any] = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return found


def unused_theta(config: Mapping[str, Any], folder: Path) -> float | None:
    """Return a second `rope_theta` that differs from the one in use; None if there is none.

    Raises:
        SetupError: as `LlamaConfig.of`.
    """
    first, *more = _thetas(config, folder)
    return next((theta for theta in more if theta != first), None)


def _thetas(config: Mapping[str, Any], folder: Path) -> list[float]:
    """Return all values of `rope_theta` in a config; the first one is used."""
    given = (rope_of(config, folder).get("rope_theta"), config.get("rope_theta"))
    return [_positive(theta, "rope_theta", folder) for theta in given if theta is not None] or [_THETA]


def _size(config: Mapping[str, Any], name: str, folder: Path, *, default: int | None = None) -> int:
    value = config.get(name)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        has = f"has {name} {value!r}" if name in config else f"lacks {name}"
        raise SetupError(f"{folder}/{FILE} {has}; a positive integer is needed.")
    return value


def _even(head_dim: int, folder: Path) -> int:
    if head_dim % 2:
        raise SetupError(
            f"{folder}/{FILE} has heads of size {head_dim}; the rotary embedding needs an even one."
        )
    return head_dim


def _positive(value: Any, name: str, folder: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= sys.float_info.max:
        raise SetupError(f"{folder}/{FILE} has {name} {value!r}; a positive number is needed.")
    return float(value)


def _boolean(config: Mapping[str, Any], name: str, folder: Path) -> bool:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise SetupError(f"{folder}/{FILE} has {name} {value!r}; true or false is needed.")
    return bool(value)
