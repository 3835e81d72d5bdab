"""Write a checkpoint as llama.cpp reads it: `python write_gguf.py CHECKPOINT OUTPUT.gguf`.

It runs with the peers' Python (`pip install gguf`), where nothing of this project is installed. Then
`llama-server -m OUTPUT.gguf -np 16 -c 32768` is a peer, given to the benchmark as `--peer llama.cpp=http://…/v1`.
The tests of `package` write their files with it too.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

Encode = Callable[[np.ndarray[Any, Any], gguf.GGMLQuantizationType], np.ndarray[Any, Any]]
"""Returns the bytes of a matrix in float32, row by row."""


def arranged(name: str, weight: torch.Tensor, config: Mapping[str, Any]) -> torch.Tensor:
    """Return the rows of q and k in llama.cpp's order: it turns neighbours together, the hub's form halves of a head."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weight
    heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
    half = weight.shape[0] // heads // 2
    return weight.view(heads, 2, half, -1).transpose(1, 2).reshape(weight.shape)


def add_metadata(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    """Describe the model."""
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])


def add_tokens(writer: gguf.GGUFWriter, tokenizer: Path, size: int) -> None:
    """Add the vocabulary of a tokenizer.json, padded to the rows of the embedding."""
    vocab = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
    pieces = sorted(vocab, key=vocab.__getitem__)
    kinds = [
        gguf.TokenType.BYTE
        if piece.startswith("<0x")
        else gguf.TokenType.CONTROL
        if number < 3
        else gguf.TokenType.NORMAL
        for number, piece in enumerate(pieces)
    ]
    padding = range(len(pieces), size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*pieces, *(f"[PAD{number}]" for number in padding)])
    writer.add_token_scores([-float(number) for number in range(size)])
    writer.add_token_types([*kinds, *(gguf.TokenType.UNUSED for _ in padding)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def write(
    checkpoint: Path,
    output: Path,
    kind_of: Callable[[str], gguf.GGMLQuantizationType],
    encode: Encode = gguf.quantize,
) -> None:
    """Write a checkpoint.

    Args:
        checkpoint: folder with config.json, tokenizer.json and safetensors.
        output: the new file.
        kind_of: returns the type of a matrix by its name on the hub; vectors are float32.
        encode: encodes a matrix; the library's own lacks some types.
    """
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(output, "llama")
    add_metadata(writer, config)
    add_tokens(writer, checkpoint / "tokenizer.json", config["vocab_size"])
    tensors = (pair for file in sorted(checkpoint.glob("*.safetensors")) for pair in load_file(file).items())
    for name, weight in tensors:
        kind = gguf.GGMLQuantizationType.F32 if weight.dim() == 1 else kind_of(name)
        values = arranged(name, weight, config).float().contiguous().numpy()
        writer.add_tensor(names.get_name(name, (".weight",)), encode(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), lambda _: gguf.GGMLQuantizationType.BF16)
