"""Write the measured model as llama.cpp reads it: `python write_gguf.py CHECKPOINT OUTPUT.gguf`.

It runs with the peers' Python (`pip install gguf`), where nothing of this project is installed. Then
`llama-server -m OUTPUT.gguf -np 16 -c 32768` is a peer, given to the benchmark as `--peer llama.cpp=http://…/v1`.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}

checkpoint, output = Path(sys.argv[1]), sys.argv[2]
config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
heads = config["num_attention_heads"]


def name_of(name: str) -> str:
    """llama.cpp's name of a tensor."""
    whole = {
        "model.embed_tokens.weight": "token_embd",
        "model.norm.weight": "output_norm",
        "lm_head.weight": "output",
    }
    if name in whole:
        return f"{whole[name]}.weight"
    _, _, layer, *part, _ = name.split(".")
    return f"blk.{layer}.{NAMES['.'.join(part)]}.weight"


def arranged(name: str, weight: torch.Tensor) -> torch.Tensor:
    """llama.cpp turns neighbours together, the hub's form halves: the rows of each head change places."""
    if "q_proj" not in name and "k_proj" not in name:
        return weight
    half = weight.shape[0] // heads // 2
    return weight.view(heads, 2, half, -1).transpose(1, 2).reshape(weight.shape)


writer = gguf.GGUFWriter(output, "llama")
writer.add_context_length(config["max_position_embeddings"])
writer.add_embedding_length(config["hidden_size"])
writer.add_block_count(config["num_hidden_layers"])
writer.add_feed_forward_length(config["intermediate_size"])
writer.add_head_count(heads)
writer.add_head_count_kv(config["num_key_value_heads"])
writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
writer.add_rope_dimension_count(config["head_dim"])
writer.add_vocab_size(config["vocab_size"])
writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
vocab = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
pieces = sorted(vocab, key=vocab.__getitem__)
kinds = [
    gguf.TokenType.BYTE
    if piece.startswith("<0x")
    else gguf.TokenType.CONTROL
    if number < 3
    else gguf.TokenType.NORMAL
    for number, piece in enumerate(pieces)
]
writer.add_tokenizer_model("llama")
writer.add_token_list(pieces)
writer.add_token_scores([-float(number) for number in range(len(pieces))])
writer.add_token_types(kinds)
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)
tensors = (pair for file in sorted(checkpoint.glob("*.safetensors")) for pair in load_file(file).items())
for name, weight in tensors:
    if weight.dim() == 1:
        writer.add_tensor(name_of(name), weight.float().numpy())
    else:
        raw = arranged(name, weight).contiguous().view(torch.uint8).numpy().astype(np.uint8, copy=False)
        writer.add_tensor(name_of(name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
