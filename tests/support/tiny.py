"""A Llama with nano's tokenizer and next to no weights, for tests that copy or damage a checkpoint."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import save, save_file

from llama_endpoints.nano import FOLDER
from llama_serving.catalog import NANO, Shape

TINY: Final = replace(
    NANO,
    shape=Shape(
        layers=2, hidden=64, ffn=176, heads=4, kv_heads=2, vocab=NANO.shape.vocab, tied_embeddings=True
    ),
)
"""nano's row, with a smaller shape."""


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama with tied embeddings, under the hub's names."""
    width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = {
        "self_attn.q_proj": (width, shape.hidden),
        "self_attn.k_proj": (kv_width, shape.hidden),
        "self_attn.v_proj": (kv_width, shape.hidden),
        "self_attn.o_proj": (shape.hidden, width),
        "mlp.gate_proj": (shape.ffn, shape.hidden),
        "mlp.up_proj": (shape.ffn, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.ffn),
        "input_layernorm": (shape.hidden,),
        "post_attention_layernorm": (shape.hidden,),
    }
    return {
        "model.embed_tokens.weight": (shape.vocab, shape.hidden),
        **{
            f"model.layers.{number}.{name}.weight": size
            for number in range(shape.layers)
            for name, size in layer.items()
        },
        "model.norm.weight": (shape.hidden,),
    }


def tiny_config() -> dict[str, Any]:
    """config.json of `TINY`."""
    shape = TINY.shape
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    sizes = {
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
    }
    return {**config, **sizes}


def write_tiny(folder: Path) -> None:
    """Writes the checkpoint of `TINY`."""
    shape = TINY.shape
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(tiny_config()), encoding="utf-8")
    shutil.copyfile(FOLDER / "tokenizer.json", folder / "tokenizer.json")
    weights = {name: np.zeros(size, dtype=np.float16) for name, size in tensor_shapes(shape).items()}
    assert sum(weight.size for weight in weights.values()) == shape.parameters
    save_file(weights, folder / "model.safetensors")


def tiny_files(*, shards: int = 1, seed: int = 0) -> dict[str, bytes]:
    """The files of a checkpoint of `TINY` with random weights, in one piece or in shards with their index."""
    rng = np.random.default_rng(seed)
    tensors = {
        name: rng.standard_normal(size).astype(np.float16) for name, size in tensor_shapes(TINY.shape).items()
    }
    names = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    place = {tensor: names[index * shards // len(tensors)] for index, tensor in enumerate(tensors)}
    files = {
        name: save({tensor: tensors[tensor] for tensor, home in place.items() if home == name})
        for name in names
    }
    if shards == 1:
        files = {"model.safetensors": files[names[0]]}
    else:
        files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": place}).encode()
    copied = ("generation_config.json", "tokenizer.json", "tokenizer_config.json")
    return {
        "config.json": json.dumps(tiny_config()).encode(),
        **{name: (FOLDER / name).read_bytes() for name in copied},
        **files,
    }
