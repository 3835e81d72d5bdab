"""A checkpoint on disk: its config, if this engine supports it, and its tensors. Does not need transformers."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from llama_serving.errors import SetupError
from llama_serving.llama_config import LlamaConfig, load, refuse_quantized, rope_of


def read_config(folder: Path) -> LlamaConfig:
    """Return the config of a checkpoint.

    Raises:
        SetupError: it cannot be read, or this engine does not support the model.
    """
    config = load(folder)
    _refuse_other_models(config, folder)
    return LlamaConfig.of(config, folder)


def _refuse_other_models(raw: Mapping[str, Any], folder: Path) -> None:
    refuse_quantized(raw, "batching")
    rope = rope_of(raw, folder)
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
    """A source of a model's tensors."""

    def tensor(self, name: str, shape: tuple[int, ...]) -> Any:
        """Return the tensor of that name, which must have that shape."""


class CheckpointWeights:
    """The tensors of a checkpoint, by their names on the hub."""

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
        except Exception as error:  # safetensors' own error derives from Exception
            raise SetupError(f"The weights in {folder} can't be read: {error!r}.") from error
        if not self._files:
            raise SetupError(f"{folder} has no weights as safetensors.")

    def tensor(self, name: str, shape: tuple[int, ...]) -> Any:
        """Return a tensor. The file is opened each time, so that its mapped pages can be released.

        Raises:
            SetupError: the tensor is missing, has another shape or no floating-point type, or its file is damaged.
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
