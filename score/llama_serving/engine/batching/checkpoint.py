"""A checkpoint on disk: its config, if this engine computes it, and its tensors. transformers is not needed."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from llama_serving.errors import SetupError
from llama_serving.llama_config import LlamaConfig, load, rope_of


def read_config(folder: Path) -> LlamaConfig:
    """The config of a checkpoint that this engine computes.

    Raises:
        SetupError: it can't be read, or it is of another model.
    """
    config = load(folder)
    _refuse_other_models(config, folder)
    return LlamaConfig.of(config, folder)


def _refuse_other_models(raw: Mapping[str, Any], folder: Path) -> None:
    if raw.get("quantization_config") is not None:
        raise SetupError(
            "The batching engine doesn't compute quantized checkpoints (config.json has a quantization_config). "
            "Set LLAMA_ENGINE=vllm, or use the model's unquantized checkpoint."
        )
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
    """Where a model's tensors come from."""

    def tensor(self, name: str, shape: tuple[int, ...]) -> Any:
        """The one of that name, in that shape."""
        ...


class CheckpointWeights:
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
