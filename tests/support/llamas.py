"""Small random Llamas of the family's many shapes, and what transformers generates with them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers


@dataclass(frozen=True)
class Llama:
    """The sizes of a random model."""

    layers: int = 2
    hidden: int = 64
    ffn: int = 176
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    vocab: int = 300
    positions: int = 2048
    theta: float = 1e6
    tied: bool = False


SHAPES = {
    "grouped heads": Llama(),
    "each head its own": Llama(kv_heads=4),
    "one for all, tied": Llama(kv_heads=1, tied=True, layers=3),
    "heads of 64": Llama(hidden=128, heads=2, kv_heads=1, head_dim=64, ffn=344),
    "heads of 128": Llama(hidden=256, heads=2, kv_heads=2, head_dim=128, ffn=200, layers=1),
    "heads wider than hidden": Llama(hidden=48, heads=2, head_dim=64, ffn=130),
    # Where oneDNN has another product for one row than for several, in float32.
    "sums of more than 1,024": Llama(hidden=64, ffn=1100, layers=1),
}


def random_model(llama: Llama, *, seed: int = 0) -> Any:
    """A model in float32 whose greedy text neither stands still nor has near-ties everywhere."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=llama.vocab,
        hidden_size=llama.hidden,
        intermediate_size=llama.ffn,
        num_hidden_layers=llama.layers,
        num_attention_heads=llama.heads,
        num_key_value_heads=llama.kv_heads,
        head_dim=llama.head_dim,
        max_position_embeddings=llama.positions,
        rope_parameters={"rope_type": "default", "rope_theta": llama.theta},
        rms_norm_eps=0.01,  # (so much that it is seen)
        tie_word_embeddings=llama.tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    model: Any = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(std=(0.4 if "embed" in name else 1.6 / weight.shape[1] ** 0.5))
            else:
                weight.uniform_(0.5, 1.5)
    return model.eval()


def write(llama: Llama, folder: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Writes the checkpoint of a random model."""
    random_model(llama, seed=seed).to(dtype).save_pretrained(folder)
    return folder


def reference(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' own model of a checkpoint."""
    model: Any = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    model.generation_config = transformers.GenerationConfig()
    return model.eval()


def generate(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """Greedy ids after a prompt, without an end."""
    ids = torch.tensor([list(prompt)])
    config = transformers.GenerationConfig(max_new_tokens=count, do_sample=False, pad_token_id=0)
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return [int(i) for i in out[0, ids.shape[1] :]]
