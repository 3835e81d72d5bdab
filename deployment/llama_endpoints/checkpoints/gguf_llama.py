"""Translate a GGUF file's metadata and tensors into a Llama's config.json and the hub's tensors."""

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from llama_endpoints.checkpoints.gguf_file import DOWNLOAD_AGAIN, GgufFile, GgufTensor, read_rows
from llama_endpoints.checkpoints.inspection import plain_tensors, shape_of
from llama_serving.catalog import Shape
from llama_serving.errors import SetupError
from llama_serving.llama_config import LlamaConfig

DECODED: Final = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0")
"""llama.cpp's Q4_0, Q4_K_S and Q4_K_M files have some tensors in Q5_K and Q6_K (`llama_tensor_get_type`)."""
_PLAIN: Final[Mapping[str, str]] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TENSORS_A_LAYER: Final = 9
_INSTEAD: Final = "Use the model's safetensors checkpoint."
_LAYOUT: Final = "Meta AI original pth"
"""llama.tensor_data_layout of files that llama.cpp converted from Meta's own: their order of rows is GGUF's."""
_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "general.quantization_version": (2,),  # of the layout of blocks
    "llama.expert_count": (0,),
    "llama.expert_used_count": (0,),
    "llama.attention.causal": (True,),
    "llama.tensor_data_layout": (_LAYOUT,),
    "llama.rope.scale_linear": (1.0,),
    "llama.rope.scaling.type": ("none", "linear"),
}
"""Keys that describe another model unless they have these values."""
_READ: Final = frozenset({
    "llama.context_length", "llama.embedding_length", "llama.block_count", "llama.feed_forward_length",
    "llama.vocab_size", "llama.attention.head_count", "llama.attention.head_count_kv",
    "llama.attention.layer_norm_rms_epsilon", "llama.attention.key_length", "llama.attention.value_length",
    "llama.rope.freq_base", "llama.rope.dimension_count", "llama.rope.scaling.factor",
    "llama.rope.scaling.original_context_length", "llama.rope.scaling.finetuned",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufLlama:
    """A GGUF file that holds a Llama.

    Attributes:
        file: the file.
        config: the config.json.
        shape: the shape that the config describes.
        sources: the file's tensors by the hub's names, in the order of the layers.
    """

    file: GgufFile
    config: Mapping[str, Any]
    shape: Shape
    sources: Mapping[str, GgufTensor]

    @classmethod
    def of(cls, file: GgufFile) -> "GgufLlama":
        """Return the Llama in a file.

        Raises:
            SetupError: it holds something else, or what cannot be served exactly.
        """
        _check_kind(file)
        config = _config(file)
        shape = shape_of(LlamaConfig.of(config, file.path))
        return cls(file, config, shape, _sources(file, shape))

    @property
    def kinds(self) -> str:
        """The types of the matrices, the most frequent first."""
        counts = Counter(tensor.kind for tensor in self.sources.values() if len(tensor.shape) > 1)
        return ", ".join(kind for kind, _ in counts.most_common())

    @property
    def source_bytes(self) -> int:
        """The size of the tensors in the file."""
        return sum(tensor.size for tensor in self.sources.values())

    def permuted(self, name: str) -> bool:
        """Return whether the rows of each head are in llama.cpp's order."""
        return name.endswith(("q_proj.weight", "k_proj.weight"))


def _check_kind(file: GgufFile) -> None:
    for key, served in (("general.architecture", "llama"), ("general.type", "model")):
        if file.metadata.get(key, "model") != served:
            raise SetupError(f"{_says(file, key)}; only {served!r} is served. {_INSTEAD}")
    if file.metadata.get("split.count", 0) not in (0, 1):
        raise SetupError(
            f"{file.path} is one of {file.metadata['split.count']} parts. Join them first: "
            "llama-gguf-split --merge FIRST_PART OUTPUT.gguf."
        )
    for key, value in file.metadata.items():
        if key in _NEUTRAL and value not in _NEUTRAL[key]:
            allowed = " or ".join(map(repr, _NEUTRAL[key]))
            raise SetupError(f"{_says(file, key)}; only {allowed} is served. {_INSTEAD}")
        if key.startswith("llama.") and key not in _READ and key not in _NEUTRAL:
            raise SetupError(f"{file.path} has {key}, which no model of this family has. {_INSTEAD}")
    for tensor in file.tensors.values():
        if tensor.kind not in DECODED:
            raise SetupError(
                f"{file.path} has {tensor.name} in {tensor.kind}; the types read are {', '.join(DECODED)}. "
                "Use a file of one of these types, such as Q4_K_M or Q8_0."
            )


def _config(file: GgufFile) -> dict[str, Any]:
    hidden, heads = _size(file, "llama.embedding_length"), _size(file, "llama.attention.head_count")
    kv_heads = _size(file, "llama.attention.head_count_kv", heads)
    if hidden % heads or heads % kv_heads:
        raise SetupError(
            f"{file.path} has llama.embedding_length {hidden}, llama.attention.head_count {heads} and "
            f"llama.attention.head_count_kv {kv_heads}: each must be a multiple of the next. {DOWNLOAD_AGAIN}"
        )
    embedding = file.tensors.get("token_embd.weight")
    vocab = _size(file, "llama.vocab_size", embedding.shape[0] if embedding is not None else None)
    types = {tensor.kind for tensor in file.tensors.values() if len(tensor.shape) > 1}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": _size(file, "llama.feed_forward_length"),
        "num_hidden_layers": _layers(file),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": _head_dim(file, hidden // heads),
        "max_position_embeddings": _size(file, "llama.context_length"),
        "rms_norm_eps": _positive(file, "llama.attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": _token(file, "tokenizer.ggml.bos_token_id", 1, vocab),
        "eos_token_id": _token(file, "tokenizer.ggml.eos_token_id", 2, vocab),
        "dtype": _dtype(types),
    }


def _dtype(types: set[str]) -> str:
    """Return the type that holds all matrices: the file's own, float16 for decoded ones, float32 for mixtures."""
    if not types <= _PLAIN.keys():
        return "float16"  # a Q8_0 weight is a float16 scale times 8 bits
    return _PLAIN[types.pop()] if len(types) == 1 else "float32"


def _layers(file: GgufFile) -> int:
    layers = _size(file, "llama.block_count")
    if layers * _TENSORS_A_LAYER > len(file.tensors):
        raise SetupError(
            f"{file.path} has llama.block_count {layers}, but only {len(file.tensors)} tensors. {DOWNLOAD_AGAIN}"
        )
    return layers


def _head_dim(file: GgufFile, usual: int) -> int:
    width = _size(file, "llama.attention.key_length", usual)
    names = ("llama.attention.value_length", "llama.rope.dimension_count")
    found = [width, *(_size(file, name, width) for name in names)]
    if len(set(found)) > 1 or width % 2:
        raise SetupError(
            f"{file.path} has heads of {width}, with values of {found[1]}, of which the rotary embedding turns {found[2]}; "
            f"these must be one even number. {_INSTEAD}"
        )
    return width


def _rope(file: GgufFile) -> dict[str, Any]:
    theta = _positive(file, "llama.rope.freq_base", 1e4)  # llama.cpp's default
    factor = _positive(file, "llama.rope.scaling.factor", 1.0)
    if file.metadata.get("llama.rope.scaling.type", "none") == "none" or factor == 1:
        return {"rope_type": "default", "rope_theta": theta}
    return {"rope_type": "linear", "rope_theta": theta, "factor": factor}


def _sources(file: GgufFile, shape: Shape) -> dict[str, GgufTensor]:
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.layers)
    found: dict[str, GgufTensor] = {}
    for name, expected in plain_tensors(shape).items():
        theirs = names.get_name(name, (".weight",)) or name
        tensor = file.tensors.get(theirs)
        if tensor is None or tensor.shape != expected:
            has = "lacks" if tensor is None else f"has the shape {tensor.shape} for"
            raise SetupError(
                f"{file.path} {has} {theirs}, which should be {expected} by its metadata. {DOWNLOAD_AGAIN}"
            )
        found[name] = tensor
    used = {tensor.name for tensor in found.values()}
    for name in file.tensors.keys() - used:
        if name != "rope_freqs.weight":
            raise SetupError(f"{file.path} has the tensor {name}, which no Llama has. {_INSTEAD}")
        _check_frequencies(file, file.tensors[name])
    return found


def _check_frequencies(file: GgufFile, tensor: GgufTensor) -> None:
    """Check that the factors of rotary frequencies (Llama 3.1's scaling) have no effect."""
    with file.path.open("rb") as stream:
        if tensor.rows != 1 or (read_rows(stream, tensor, 0, 1) != 1).any():
            raise SetupError(
                f"{file.path} scales its rotary frequencies (rope_freqs.weight), as Llama 3.1 does; that is not served. "
                + _INSTEAD
            )


def _size(file: GgufFile, key: str, default: int | None = None) -> int:
    value = file.metadata.get(key, default)
    if type(value) is not int or not 1 <= value < 1 << 31:
        raise SetupError(f"{_says(file, key)}; a positive integer is needed. {_INSTEAD}")
    return value


def _positive(file: GgufFile, key: str, default: float | None = None) -> float:
    value = file.metadata.get(key, default)
    if type(value) is not float or not 0 < value <= sys.float_info.max:
        raise SetupError(f"{_says(file, key)}; a positive number is needed. {_INSTEAD}")
    with np.errstate(over="ignore"):
        stored = np.float32(value)
    return float(str(stored)) if float(stored) == value else value  # 1e-05, not 9.999999747378752e-06


def _token(file: GgufFile, key: str, default: int, vocab: int) -> int:
    value = file.metadata.get(key, default)
    if type(value) is not int or not 0 <= value < vocab:
        raise SetupError(f"{_says(file, key)}; an id below {vocab} is needed. {DOWNLOAD_AGAIN}")
    return value


def _says(file: GgufFile, key: str) -> str:
    if key not in file.metadata:
        return f"{file.path} lacks {key}"
    text = repr(file.metadata[key])
    return f"{file.path} has {key} {text if len(text) <= 40 else text[:40] + '…'}"
