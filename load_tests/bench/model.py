"""The model that is measured: random weights of a shape between nano and 7B, where products dominate a step.

It measures as a trained one would: speed does not depend on what the weights say.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Iterator

NANO: Final = Path(__file__).resolve().parents[2] / "deployment" / "nano"
SEED: Final = 1
CONFIG: Final[dict[str, Any]] = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "dtype": "bfloat16",
    "eos_token_id": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 768,
    "intermediate_size": 2048,
    "max_position_embeddings": 16384,
    "model_type": "llama",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "num_key_value_heads": 12,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
"""134 million parameters, 268 MB in bf16."""


def write(folder: Path) -> Path:
    """Write the checkpoint, if it is not there yet: config, weights, a tokenizer of as many pieces."""
    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2), encoding="utf-8")
    (folder / "generation_config.json").write_text('{"bos_token_id": 1, "eos_token_id": 2}', encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}),
        encoding="utf-8",
    )
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(), ensure_ascii=False), encoding="utf-8")
    save_file(dict(_weights()), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _tokenizer() -> dict[str, Any]:
    """nano's, filled up with pieces that no text becomes."""
    layout: dict[str, Any] = json.loads((NANO / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = layout["model"]["vocab"]
    for number in range(len(vocab), CONFIG["vocab_size"]):
        vocab[f"▁filler{number}"] = number
    return layout


def _weights() -> Iterator[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(SEED)
    hidden, ffn, vocab = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]

    def matrix(rows: int, columns: int) -> torch.Tensor:
        drawn: torch.Tensor = torch.randn(rows, columns, generator=generator) / columns**0.5
        return drawn.to(torch.bfloat16)

    yield "model.embed_tokens.weight", matrix(vocab, hidden)
    for number in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{layer}.self_attn.{name}.weight", matrix(hidden, hidden)
        yield f"{layer}.mlp.gate_proj.weight", matrix(ffn, hidden)
        yield f"{layer}.mlp.up_proj.weight", matrix(ffn, hidden)
        yield f"{layer}.mlp.down_proj.weight", matrix(hidden, ffn)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}.{name}.weight", torch.ones(hidden, dtype=torch.bfloat16)
    yield "model.norm.weight", torch.ones(hidden, dtype=torch.bfloat16)
    yield "lm_head.weight", matrix(vocab, hidden)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
