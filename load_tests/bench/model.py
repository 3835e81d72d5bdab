"""The models to measure: random weights of a shape between nano and 7B, or of a published one.

Speed does not depend on the values of the weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import save_file

from llama_serving.catalog import CATALOG, Shape

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NANO: Final = Path(__file__).resolve().parents[2] / "deployment/llama_endpoints/nano"
SEED: Final = 1
BENCH: Final = Shape(layers=12, hidden=768, ffn=2048, heads=12, kv_heads=12, vocab=32000)
"""134 million parameters, 268 MB in bf16."""
INDEX: Final = "model.safetensors.index.json"


def config(shape: Shape) -> dict[str, Any]:
    """Return the `config.json` of a Llama of this shape, with Code Llama's rotary base and context."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "dtype": "bfloat16",
        "eos_token_id": 2,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": 16384,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
        "tie_word_embeddings": False,
        "vocab_size": shape.vocab,
    }


def write(folder: Path, shape: Shape = BENCH) -> Path:
    """Write the checkpoint if it does not exist: config, a tokenizer of matching size, and weights, one file per layer.

    The index is written last, so that a checkpoint with an index is complete.
    """
    if (folder / INDEX).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _dump(folder / "config.json", config(shape))
    _dump(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    tokens = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    _dump(folder / "tokenizer_config.json", tokens)
    _dump(folder / "tokenizer.json", _tokenizer(shape.vocab))
    places: dict[str, str] = {}
    for number, tensors in enumerate(_files(shape)):
        name = f"model-{number:05}-of-{shape.layers + 1:05}.safetensors"
        save_file(dict(tensors), folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    _dump(folder / INDEX, {"metadata": {"total_size": shape.weight_bytes()}, "weight_map": places})
    return folder


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")


def _tokenizer(vocab_size: int) -> dict[str, Any]:
    """Return nano's tokenizer, padded with pieces that no text produces."""
    layout: dict[str, Any] = json.loads((NANO / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = layout["model"]["vocab"]
    for number in range(len(vocab), vocab_size):
        vocab[f"▁filler{number}"] = number
    return layout


def _files(shape: Shape) -> Iterator[Mapping[str, torch.Tensor]]:
    """Yield the tensors of each file: first those outside layers, then each layer's. They are drawn on a GPU if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(SEED)
    hidden, ffn, keys = shape.hidden, shape.ffn, shape.kv_heads * shape.head_dim

    def matrix(rows: int, columns: int) -> torch.Tensor:
        drawn: torch.Tensor = torch.randn(rows, columns, generator=generator, device=device) / columns**0.5
        return drawn.to(torch.bfloat16).cpu()

    norm = torch.ones(hidden, dtype=torch.bfloat16)
    yield {
        "model.embed_tokens.weight": matrix(shape.vocab, hidden),
        "model.norm.weight": norm,
        "lm_head.weight": matrix(shape.vocab, hidden),
    }
    for number in range(shape.layers):
        layer = f"model.layers.{number}"
        yield {
            f"{layer}.self_attn.q_proj.weight": matrix(hidden, hidden),
            f"{layer}.self_attn.k_proj.weight": matrix(keys, hidden),
            f"{layer}.self_attn.v_proj.weight": matrix(keys, hidden),
            f"{layer}.self_attn.o_proj.weight": matrix(hidden, hidden),
            f"{layer}.mlp.gate_proj.weight": matrix(ffn, hidden),
            f"{layer}.mlp.up_proj.weight": matrix(ffn, hidden),
            f"{layer}.mlp.down_proj.weight": matrix(hidden, ffn),
            f"{layer}.input_layernorm.weight": norm,
            f"{layer}.post_attention_layernorm.weight": norm.clone(),
        }


if __name__ == "__main__":
    write(Path(sys.argv[1]), CATALOG[sys.argv[2]].shape if len(sys.argv) > 2 else BENCH)
