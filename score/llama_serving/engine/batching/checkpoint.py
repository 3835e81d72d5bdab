"""A checkpoint on disk: `config.json` and safetensors, read directly. transformers is not needed."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llama_serving.errors import SetupError


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """The sizes and constants of a Llama, as its `config.json` has them."""

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
    def read(cls, folder: Path) -> "LlamaConfig":
        """The config of a checkpoint.

        Raises:
            SetupError: it can't be read, or it is of a model that this engine does not compute.
        """
        path = folder / "config.json"
        try:
            raw: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            _refuse_other_models(raw)
            rope = raw.get("rope_parameters") or {}
            heads = raw["num_attention_heads"]
            return cls(
                vocab=raw["vocab_size"],
                hidden=raw["hidden_size"],
                ffn=raw["intermediate_size"],
                layers=raw["num_hidden_layers"],
                heads=heads,
                kv_heads=raw.get("num_key_value_heads") or heads,
                head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
                rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10_000.0),
                epsilon=float(raw.get("rms_norm_eps", 1e-6)),
                tied=bool(raw.get("tie_word_embeddings", False)),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SetupError(f"{path} can't be used: {error!r}.") from error

    @property
    def weights_per_token(self) -> int:
        """Weights that every token is multiplied with: all but the embedding."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.ffn) + self.hidden * self.vocab

    @property
    def kv_values_per_token(self) -> int:
        """Keys and values of one token, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim


def _refuse_other_models(raw: Mapping[str, Any]) -> None:
    if raw.get("quantization_config") is not None:
        raise SetupError(
            "The batching engine doesn't compute quantized checkpoints (config.json has a quantization_config). "
            "Set LLAMA_ENGINE=vllm, or use the model's unquantized checkpoint."
        )
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    for name, found, computed in (
        ("model_type", raw.get("model_type"), "llama"),
        ("hidden_act", raw.get("hidden_act", "silu"), "silu"),
        ("rope_type", kind, "default"),
        ("attention_bias", raw.get("attention_bias", False), False),
        ("mlp_bias", raw.get("mlp_bias", False), False),
    ):
        if found != computed:
            raise SetupError(
                f"The batching engine computes models with {name} {computed}, not {found}. Set LLAMA_ENGINE=pipeline."
            )


class Tensors(Protocol):
    """Where a model's tensors come from."""

    def tensor(self, name: str, shape: tuple[int, ...]) -> Any:
        """The one of that name, in that shape."""
        ...


class Weights:
    """The tensors of a checkpoint, by the hub's names."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        index = folder / "model.safetensors.index.json"
        try:
            if index.is_file():
                self._files: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            else:
                self._files = {}
                for path in sorted(folder.glob("*.safetensors")):
                    with _opened(path) as file:
                        self._files |= dict.fromkeys(file.keys(), path.name)
        except Exception as error:  # safetensors raises its own, bare Exception's child
            raise SetupError(f"The weights in {folder} can't be read: {error!r}.") from error
        if not self._files:
            raise SetupError(f"{folder} has no weights as safetensors.")

    def tensor(self, name: str, shape: tuple[int, ...]) -> Any:
        """A tensor. The file is opened anew each time: what is mapped of it can be dropped after.

        Raises:
            SetupError: there is no such tensor, it has another shape or no floating dtype, or its file is damaged.
        """
        if name not in self._files:
            raise SetupError(f"The weights in {self._folder} have no {name}.")
        try:
            with _opened(self._folder / self._files[name]) as file:
                tensor = file.get_tensor(name)
        except Exception as error:
            raise SetupError(f"{name} in {self._folder} can't be read: {error!r}.") from error
        if tuple(tensor.shape) != shape or not tensor.dtype.is_floating_point:
            raise SetupError(
                f"{name} in {self._folder} is {list(tensor.shape)} of {tensor.dtype}; config.json says {list(shape)}, and "
                "it must be of floating-point numbers."
            )
        return tensor


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        yield file
