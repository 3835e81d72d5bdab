"""The native backend: Llama in C++; the kernels are in `batching/native/`.

Weights are bf16; or int8 with one scale for each output; or int4 with one scale for each output and group of 32 inputs, and
the head in int8. Sums and activations between layers are float32; what is multiplied
with weights is bf16 where the CPU multiplies bf16, else float32. A row's result has the same bits in any batch and chunk.
"""

import copy
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the field's own name)

from llama_serving.engine.batching.backends.base import Rows
from llama_serving.engine.batching.backends.blocks import zeros
from llama_serving.engine.batching.backends.rotary import RotaryTable
from llama_serving.engine.batching.checkpoint import Tensors
from llama_serving.engine.batching.native import bindings as c
from llama_serving.engine.batching.native.bindings import Kernels
from llama_serving.llama_config import LlamaConfig

BLOCK_TOKENS: Final = 32
HEAD_SIZES: Final = (64, 128)
TILE: Final = 16
DEPTH: Final = 32
PANEL: Final = 64
"""The same as in `native/model.h`."""
CHUNK_ROWS: Final = 32
GROUP: Final = DEPTH
"""Inputs that share a scale in int4."""
INT8_MOST: Final = 127


def refusal(config: LlamaConfig) -> str | None:
    """Return why the kernels do not support this model; None if they do."""
    if config.head_dim not in HEAD_SIZES:
        return f"they support heads of size {' and '.join(map(str, HEAD_SIZES))}, and this model's have {config.head_dim}"
    if config.hidden % TILE:
        return f"they support hidden sizes that are multiples of {TILE}, and this model's is {config.hidden}"
    return None


class Native:
    """See `Backend`.

    Args:
        config: the model's, accepted by `refusal`.
        weights: its tensors.
        kernels: the loaded library.
        quantization: `none`, `int8` or `int4`, of the weights.
        num_blocks: returns the size of the cache.

    Raises:
        SetupError: the checkpoint cannot be used.
    """

    fallback_reason = ""
    batch_invariant = True
    block_tokens = BLOCK_TOKENS
    chunk_rows = CHUNK_ROWS

    def __init__(
        self,
        config: LlamaConfig,
        weights: Tensors,
        kernels: Kernels,
        *,
        quantization: str = "none",
        num_blocks: Callable[[LlamaConfig], int],
    ) -> None:
        self.name = "native" if quantization == "none" else f"native {quantization}"
        self.instructions = kernels.instructions
        self.config = config
        self.vocab = config.vocab
        self._kernels = kernels
        self._quantization = quantization
        self._kept: list[Tensor] = []  # (the kernels hold their addresses)
        self._rotary = RotaryTable(config.head_dim, config.rope_theta)
        self._model = self._loaded(weights)
        self._room = torch.empty(0, dtype=torch.uint8)
        self._use_blocks(num_blocks(config))

    @torch.inference_mode()
    def forward(self, batch: Sequence[Rows]) -> Tensor:
        """See `Backend.forward`."""
        ids, spans, tables, logit_rows = array("i"), [], array("i"), array("i")
        positions: list[int] = []
        for rows in batch:
            spans.append(c.Span(len(ids), len(rows.ids), rows.start, len(tables), rows.prefill))
            end = rows.start + len(rows.ids)
            ids.extend(rows.ids)
            positions.extend(range(rows.start, end))
            tables.extend(rows.blocks[: -(-end // BLOCK_TOKENS)])
            if rows.needs_logits:
                logit_rows.append(len(ids) - 1)
        cosines, sines = self._rotary.at(torch.tensor(positions))
        logits = torch.empty(len(logit_rows), self.vocab)
        step = c.Step(
            len(ids), len(spans), len(logit_rows), _address(ids), cosines.data_ptr(), sines.data_ptr(),
            (c.Span * len(spans))(*spans), _address(tables), _address(logit_rows), logits.data_ptr(),
        )  # fmt: skip
        self._kernels.step(self._model, step, self._room_for(step))
        return logits

    def save(self, blocks: Sequence[int]) -> Tensor:
        """See `Backend.save`."""
        return self._cache[list(blocks)]

    def restore(self, blocks: Sequence[int], saved: Tensor) -> None:
        """See `Backend.restore`."""
        self._cache[list(blocks)] = saved

    def clear(self, blocks: Sequence[int]) -> None:
        """See `Backend.clear`."""
        self._cache[list(blocks)] = 0

    def trial(self, num_blocks: int) -> "Native":
        """See `Backend.trial`."""
        trial = copy.copy(self)
        trial.config = replace(self.config, layers=1)
        trial._model = c.Model.from_buffer_copy(self._model)  # noqa: SLF001  (its own)
        trial._model.layers = 1  # noqa: SLF001
        trial._use_blocks(num_blocks)  # noqa: SLF001
        return trial

    def stricter(self) -> str:
        """See `Backend.stricter`."""
        return ""

    def _use_blocks(self, number: int) -> None:
        self.num_blocks = number
        config = self.config
        self._cache = zeros(
            (number, config.layers, 2, config.kv_heads, BLOCK_TOKENS * config.head_dim), torch.bfloat16
        )
        self._model.cache = self._cache.data_ptr()

    def _room_for(self, step: c.Step) -> int:
        """Return the scratch memory's address. It is kept between steps, since new memory causes page faults."""
        needed = self._kernels.room(self._model, step)
        if len(self._room) < needed:
            self._room = zeros((needed + needed // 4,), torch.uint8)
        return self._room.data_ptr()

    def _loaded(self, weights: Tensors) -> c.Model:
        config = self.config
        table = (config.vocab, config.hidden)
        embedding = weights.tensor("model.embed_tokens.weight", table).to(torch.bfloat16)
        head = embedding if config.tied else weights.tensor("lm_head.weight", table)
        self._layers = (c.Layer * config.layers)(*(self._layer(weights, n) for n in range(config.layers)))
        return c.Model(
            layers=config.layers, hidden=config.hidden, ffn=config.ffn, heads=config.heads,
            kv_heads=config.kv_heads, head_dim=config.head_dim, vocab=config.vocab,
            epsilon=config.epsilon, layer=self._layers,
            embedding=self._kept_at(F.pad(embedding, (0, -config.hidden % DEPTH))),
            norm=self._kept_at(weights.tensor("model.norm.weight", (config.hidden,)).to(torch.bfloat16)),
            head=self._matrix(head, self._quantization.replace("int4", "int8")),
        )  # fmt: skip

    def _layer(self, weights: Tensors, number: int) -> c.Layer:
        config = self.config
        hidden, ffn, width = config.hidden, config.ffn, config.heads * config.head_dim
        kv_width = config.kv_heads * config.head_dim

        def tensor(name: str, *shape: int) -> Tensor:
            found: Tensor = weights.tensor(f"model.layers.{number}.{name}.weight", shape)
            return found.to(torch.bfloat16)

        q, k, v = (
            tensor(f"self_attn.{name}_proj", size, hidden)
            for name, size in (("q", width), ("k", kv_width), ("v", kv_width))
        )
        gate, up = tensor("mlp.gate_proj", ffn, hidden), tensor("mlp.up_proj", ffn, hidden)
        return c.Layer(
            before=self._kept_at(tensor("input_layernorm", hidden)),
            qkv=self._matrix(torch.cat([q, k, v])),
            o=self._matrix(tensor("self_attn.o_proj", hidden, width)),
            between=self._kept_at(tensor("post_attention_layernorm", hidden)),
            gate_up=self._matrix(_in_turn(gate, up)),
            down=self._matrix(tensor("mlp.down_proj", hidden, ffn)),
        )

    def _matrix(self, weight: Tensor, quantization: str | None = None) -> c.Matrix:
        """Return (outputs, inputs) in the kernels' order, quantized as the model's layers unless said otherwise."""
        shape = outputs, inputs = weight.shape
        filled = (outputs + -outputs % PANEL, inputs + -inputs % DEPTH)
        quantization = quantization or self._quantization
        if quantization == "int4":
            weight = weight.to(torch.bfloat16).contiguous()
            packed = self._kept_zeros((filled[0], filled[1] // 2), torch.uint8)
            groups = self._kept_zeros((filled[0], filled[1] // GROUP), torch.bfloat16)
            self._kernels.pack_int4(weight.data_ptr(), shape, packed.data_ptr(), groups.data_ptr())
            return c.Matrix(packed.data_ptr(), groups.data_ptr(), *shape, 4)
        scales = None
        if quantization == "int8":
            weight, by_output = quantized(weight.float())
            scales = self._kept_at(F.pad(by_output, (0, filled[0] - outputs)))
        weight = weight.to(torch.int8 if quantization == "int8" else torch.bfloat16).contiguous()
        packed = self._kept_zeros(filled, weight.dtype)
        bits = 8 * weight.itemsize
        self._kernels.pack(weight.data_ptr(), shape, bits, packed.data_ptr())
        return c.Matrix(packed.data_ptr(), scales, *shape, bits)

    def _kept_zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        made = zeros(shape, dtype)
        self._kept.append(made)
        return made

    def _kept_at(self, tensor: Tensor) -> int:
        """Return the address of a copy that is kept."""
        own = tensor.clone(memory_format=torch.contiguous_format)
        self._kept.append(own)
        return own.data_ptr()


def _in_turn(gate: Tensor, up: Tensor) -> Tensor:
    """Interleave 16 outputs of the gate with 16 of up, padded to whole pairs of tiles."""
    missing = -len(gate) % (2 * TILE)
    pairs = [F.pad(half, (0, 0, 0, missing)).view(-1, TILE, half.shape[1]) for half in (gate, up)]
    return torch.stack(pairs, dim=1).flatten(0, 2)


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize (outputs, inputs) float32 to integers from -127 to 127 and a scale for each output."""
    scales = weight.abs().amax(dim=1) / INT8_MOST
    scales = torch.where(scales > 0, scales, 1.0)
    return (weight / scales[:, None]).round(), scales


def _address(numbers: Any) -> int:
    return int(numbers.buffer_info()[0])
