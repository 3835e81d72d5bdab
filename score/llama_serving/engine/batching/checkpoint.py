"""A checkpoint on disk: its config, if this engine supports it, and its tensors. Does not need transformers."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from llama_serving.engine.batching.quantized_checkpoint import Decoder, Scaled
from llama_serving.errors import SetupError
from llama_serving.llama_config import FILE, QUANTIZED, LlamaConfig, load, rope_of


def read_config(folder: Path) -> LlamaConfig:
    """Return the config of a checkpoint.

    Raises:
        SetupError: it cannot be read, or this engine does not support the model.
    """
    config = load(folder)
    _refuse_other_models(config, folder)
    return LlamaConfig.of(config, folder)


def _refuse_other_models(raw: Mapping[str, Any], folder: Path) -> None:
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
        """Return the tensor of that name, which must have that shape, in a floating-point type."""

    def linear(self, name: str, shape: tuple[int, int]) -> Any:
        """Return the weights of a linear layer: an `Int4` where the checkpoint has these integers, else as `tensor` does."""


class CheckpointWeights:
    """The tensors of a checkpoint, by their names on the hub."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._decoder = _decoder(folder)
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
        self._layers: dict[str, list[str]] = {}
        for name in self._files:
            self._layers.setdefault(name.rpartition(".")[0], []).append(name)

    def tensor(self, name: str, shape: tuple[int, ...]) -> Any:
        """Return a tensor, decoded if it is quantized.

        Raises:
            SetupError: the tensor is missing, has another shape or no floating-point type, or its file is damaged.
        """
        if (layer := self._quantized(name, shape)) is not None:
            return layer.weight
        if name not in self._files:
            raise SetupError(f"The weights in {self._folder} have no {name}.")
        tensor = self._read(name)
        if tuple(tensor.shape) != shape or not tensor.dtype.is_floating_point:
            raise SetupError(
                f"{name} in {self._folder} is {list(tensor.shape)} of {tensor.dtype}; config.json says {list(shape)}, and "
                "it must be of floating-point numbers."
            )
        return tensor

    def linear(self, name: str, shape: tuple[int, int]) -> Any:
        """Return the weights of a linear layer: an `Int4` where the checkpoint has these integers, else as `tensor` does.

        Raises:
            SetupError: as `tensor`.
        """
        layer = self._quantized(name, shape)
        return self.tensor(name, shape) if layer is None else layer.int4() or layer.weight

    def _quantized(self, name: str, shape: tuple[int, ...]) -> Scaled | None:
        """Return a quantized linear layer; None for what is not quantized."""
        layer = name.rpartition(".")[0]
        names = self._layers.get(layer, [])
        if self._decoder is None or not set(names) - {name}:
            return None
        parts = {each.removeprefix(f"{layer}."): self._read(each) for each in names}
        outputs, inputs = shape
        return self._decoder.decoded(layer, parts, (outputs, inputs))

    def _read(self, name: str) -> Any:
        """Return a tensor of a file, which is opened each time, so that its mapped pages can be released."""
        try:
            with _opened(self._folder / self._files[name]) as file:
                return file.get_tensor(name)
        except Exception as error:
            raise SetupError(f"{name} in {self._folder} can't be read: {error!r}.") from error


def _decoder(folder: Path) -> Decoder | None:
    """Return what decodes a checkpoint's linear layers; None where they are not quantized."""
    if not (folder / FILE).is_file():
        return None
    config = load(folder).get(QUANTIZED)
    if config is None:
        return None
    if not isinstance(config, Mapping):
        raise SetupError(f"{folder}/{FILE} has a {QUANTIZED} that is no object. Download it again.")
    return Decoder(config, folder)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        yield file
