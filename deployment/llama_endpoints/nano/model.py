"""nano as a PyTorch module, for training only; serving reads the weights with its own code.

Llama's architecture (arXiv 2302.13971 section 2.2; grouped heads arXiv 2307.09288) with the tensor names of the
hub's checkpoints.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the conventional name)

from llama_serving.catalog import NANO

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG_FILE: Final = Path(__file__).resolve().parent / "config.json"
EPSILON: Final = 1e-5


@dataclass(frozen=True, slots=True)
class Angles:
    """Cosines and sines of the rotary embedding, each (positions, head_dim)."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, positions: int) -> Angles:
        """Return those of positions 0 to `positions` - 1."""
        width = NANO.shape.head_dim
        frequencies = NANO.rope_theta ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
        angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
        angles = torch.cat([angles, angles], dim=-1)
        return cls(angles.cos(), angles.sin())

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate (batch, heads, positions, head_dim) by position."""
        first, second = x.chunk(2, dim=-1)
        return x * self.cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * self.sin.to(x.dtype)


class CastLinear(nn.Linear):
    """A linear layer without bias; fp32 weights are cast to the input's dtype."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, inputs) to (…, outputs)."""
        return F.linear(x, self.weight.to(x.dtype))


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(NANO.shape.hidden))

    def forward(self, x: Tensor) -> Tensor:
        """Scale (…, hidden) to a root mean square of 1, times the weight."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), EPSILON)


class Attention(nn.Module):
    """Causal self-attention with grouped key and value heads."""

    def __init__(self) -> None:
        super().__init__()
        shape = NANO.shape
        self.q_proj = CastLinear(shape.hidden, shape.heads * shape.head_dim)
        self.k_proj = CastLinear(shape.hidden, shape.kv_heads * shape.head_dim)
        self.v_proj = CastLinear(shape.hidden, shape.kv_heads * shape.head_dim)
        self.o_proj = CastLinear(shape.heads * shape.head_dim, shape.hidden)

    def forward(self, x: Tensor, angles: Angles) -> Tensor:
        """Map (batch, positions, hidden) to the same shape."""
        batch, positions, _ = x.shape

        def heads(projected: Tensor) -> Tensor:
            return projected.view(batch, positions, -1, NANO.shape.head_dim).transpose(1, 2)

        query, key = angles.rotate(heads(self.q_proj(x))), angles.rotate(heads(self.k_proj(x)))
        mixed = F.scaled_dot_product_attention(
            query, key, heads(self.v_proj(x)), is_causal=True, enable_gqa=True
        )
        result: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, positions, -1))
        return result


class FeedForward(nn.Module):
    """The SwiGLU feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = CastLinear(NANO.shape.hidden, NANO.shape.ffn)
        self.up_proj = CastLinear(NANO.shape.hidden, NANO.shape.ffn)
        self.down_proj = CastLinear(NANO.shape.ffn, NANO.shape.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, hidden) to the same shape."""
        result: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each on a normalized copy of the residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = Norm(), Attention()
        self.post_attention_layernorm, self.mlp = Norm(), FeedForward()

    def forward(self, x: Tensor, angles: Angles) -> Tensor:
        """Map (batch, positions, hidden) to the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), angles)
        result: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return result


class Nano(nn.Module):
    """The whole model. It computes in `compute` and keeps its weights in fp32."""

    def __init__(self, compute: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self._compute = compute
        self.embed_tokens = nn.Embedding(NANO.shape.vocab, NANO.shape.hidden)
        self.layers = nn.ModuleList(DecoderLayer() for _ in range(NANO.shape.layers))
        self.norm = Norm()

    def start(self, seed: int) -> None:
        """Initialize the weights: small, and smaller where a layer writes into the residual stream (GPT-2 section 2.3)."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                outwards = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.02 / (2 * NANO.shape.layers) ** 0.5 if outwards else 0.02
                nn.init.normal_(weight, std=std, generator=generator)

    def forward(self, ids: Tensor, targets: Tensor, angles: Angles) -> Tensor:
        """Return the mean loss in nats per token."""
        return F.cross_entropy(self.logits(ids, angles).flatten(0, 1).float(), targets.flatten())

    def logits(self, ids: Tensor, angles: Angles) -> Tensor:
        """Return logits (batch, positions, vocabulary) of ids (batch, positions)."""
        x = self.embed_tokens(ids).to(self._compute)
        for layer in self.layers:
            x = layer(x, angles)
        return F.linear(self.norm(x), self.embed_tokens.weight.to(x.dtype))


def checkpoint(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under the hub's names, in bf16; the output is tied to the embedding."""
    return {f"model.{name}": weight.to(torch.bfloat16).contiguous() for name, weight in weights.items()}


def config() -> dict[str, Any]:
    """Return the hub's `config.json` of this shape."""
    shape = NANO.shape
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": NANO.bos_id,
        "dtype": "bfloat16",
        "eos_token_id": NANO.eos_id,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": NANO.max_context.value,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": EPSILON,
        "rope_parameters": {"rope_theta": NANO.rope_theta, "rope_type": "default"},
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": shape.vocab,
    }


def write_config(path: Path = CONFIG_FILE) -> None:
    """Write `config.json`."""
    path.write_text(json.dumps(config(), indent=2) + "\n", encoding="utf-8")
