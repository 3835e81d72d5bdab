"""The native backend: Llama in C++; the kernels are in `batching/native/`.

Weights are bf16; or int8 with one scale for each output; or int4 with one scale for each output and group of 32 inputs, and
the head in int8. A checkpoint's own integers of 4 bits stay what they are, and so does its head. Sums and activations between layers are float32; what is multiplied
with weights is bf16 where the CPU multiplies bf16, else float32. A row's result has the same bits in any batch and chunk.
"""

import copy
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the field's own name)

from llama_serving.engine.batching.backends.base import Rows
from llama_serving.engine.batching.backends.blocks import zeros
from llama_serving.engine.batching.backends.packed_weights import DEPTH, TILE, PackedWeights
from llama_serving.engine.batching.backends.rotary import RotaryTable
from llama_serving.engine.batching.checkpoint import Tensors
from llama_serving.engine.batching.native import bindings as c
from llama_serving.engine.batching.native.bindings import Kernels
from llama_serving.engine.batching.quantized_checkpoint import Int4
from llama_serving.llama_config import LlamaConfig

BLOCK_TOKENS: Final = 32
HEAD_SIZES: Final = (64, 128)
CHUNK_ROWS: Final = 32


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
        saved: see `PackedWeights`.
        num_blocks: returns the size of the cache.

    Raises:
        SetupError: the checkpoint cannot be used.
    """

    fallback_reason = ""
    batch_invariant = True
    block_tokens = BLOCK_TOKENS
    chunk_rows = CHUNK_ROWS

    def __init__(  # noqa: PLR0913  (one call site, all named)
        self,
        config: LlamaConfig,
        weights: Tensors,
        kernels: Kernels,
        *,
        quantization: str = "none",
        saved: Mapping[str, Tensor] = MappingProxyType({}),
        num_blocks: Callable[[LlamaConfig], int],
    ) -> None:
        self.instructions = kernels.instructions
        self.config = config
        self.vocab, self.num_layers = config.vocab, config.layers
        self._kernels = kernels
        self._quantization = quantization
        self._rotary = RotaryTable(config.head_dim, config.rope_theta)
        self._packed = PackedWeights(kernels, quantization, saved)
        self._model = self._loaded(weights, self._packed)
        self.name = {16: "native", 8: "native int8", 4: "native int4"}[self._packed.bits]
        self._room = torch.empty(0, dtype=torch.uint8)
        self._between = torch.empty(0, config.hidden)
        self._use_blocks(num_blocks(config))

    @property
    def packed(self) -> Mapping[str, Tensor]:
        """The weights in the kernels' order, by name."""
        return self._packed.tensors

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
            logit_rows.extend(range(len(ids) - rows.num_logits, len(ids)))
        whole = sum(rows.layers is None for rows in batch)
        layers = batch[-1].layers or (0, self.config.layers)
        cosines, sines = self._rotary.at(torch.tensor(positions))
        logits = torch.empty(len(logit_rows), self.vocab)
        step = c.Step(
            len(ids), len(spans), len(logit_rows), _address(ids), cosines.data_ptr(), sines.data_ptr(),
            (c.Span * len(spans))(*spans), _address(tables), _address(logit_rows), logits.data_ptr(),
            whole, *layers, self._between_for(len(ids) if whole < len(spans) else 0),
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

    def _between_for(self, rows: int) -> int:
        """Return the address of the activations of rows that are computed a few layers at a time."""
        if len(self._between) < rows:
            self._between = torch.empty(rows, self.config.hidden)
        return self._between.data_ptr()

    def _loaded(self, weights: Tensors, packed: PackedWeights) -> c.Model:
        config = self.config
        table = (config.vocab, config.hidden)

        def embedding() -> Tensor:
            found: Tensor = weights.tensor("model.embed_tokens.weight", table)
            return found.to(torch.bfloat16)

        def head() -> Tensor:
            found: Tensor = embedding() if config.tied else weights.tensor("lm_head.weight", table)
            return found

        self._layers = (c.Layer * config.layers)(
            *(self._layer(weights, packed, number) for number in range(config.layers))
        )
        hidden = (config.hidden,)
        wide = (config.vocab, config.hidden + -config.hidden % DEPTH)
        return c.Model(
            layers=config.layers, hidden=config.hidden, ffn=config.ffn, heads=config.heads,
            kv_heads=config.kv_heads, head_dim=config.head_dim, vocab=config.vocab,
            epsilon=config.epsilon, layer=self._layers,
            embedding=packed.vector("embedding", wide, lambda: F.pad(embedding(), (0, wide[1] - config.hidden))),
            norm=packed.vector("norm", hidden, lambda: weights.tensor("model.norm.weight", hidden).to(torch.bfloat16)),
            head=packed.matrix("head", table, head, self._quantization.replace("int4", "int8")),
        )  # fmt: skip

    def _layer(self, weights: Tensors, packed: PackedWeights, number: int) -> c.Layer:
        config = self.config
        hidden, ffn, width = config.hidden, config.ffn, config.heads * config.head_dim
        kv_width = config.kv_heads * config.head_dim

        def tensor(name: str, *shape: int) -> Tensor:
            found: Tensor = weights.tensor(f"model.layers.{number}.{name}.weight", shape)
            return found.to(torch.bfloat16)

        def linear(name: str, outputs: int, inputs: int) -> Tensor | Int4:
            found: Tensor | Int4 = weights.linear(f"model.layers.{number}.{name}.weight", (outputs, inputs))
            return found if isinstance(found, Int4) else found.to(torch.bfloat16)

        def qkv() -> Tensor | Int4:
            sizes = (("q", width), ("k", kv_width), ("v", kv_width))
            return _merged(_stacked, [linear(f"self_attn.{name}_proj", size, hidden) for name, size in sizes])

        def gate_up() -> Tensor | Int4:
            return _merged(_in_turn, [linear(f"mlp.{name}_proj", ffn, hidden) for name in ("gate", "up")])

        def vector(name: str) -> int:
            return packed.vector(f"{number}.{name}", (hidden,), lambda: tensor(name, hidden))

        def matrix(name: str, outputs: int, inputs: int, make: Callable[[], Tensor | Int4]) -> c.Matrix:
            return packed.matrix(f"{number}.{name}", (outputs, inputs), make)

        pairs = ffn + -ffn % (2 * TILE)
        return c.Layer(
            before=vector("input_layernorm"),
            qkv=matrix("qkv", width + 2 * kv_width, hidden, qkv),
            o=matrix("o", hidden, width, lambda: linear("self_attn.o_proj", hidden, width)),
            between=vector("post_attention_layernorm"),
            gate_up=matrix("gate_up", 2 * pairs, hidden, gate_up),
            down=matrix("down", hidden, ffn, lambda: linear("mlp.down_proj", hidden, ffn)),
        )


def _merged(merge: Callable[..., Tensor], parts: Sequence[Tensor | Int4]) -> Tensor | Int4:
    """Merge the rows of matrices into one. It has integers of 4 bits if all of them have."""
    integers = [part for part in parts if isinstance(part, Int4)]
    if len(integers) == len(parts):
        return Int4(merge(*(each.integers for each in integers)), merge(*(each.scales for each in integers)))
    return merge(*(part.weight.to(torch.bfloat16) if isinstance(part, Int4) else part for part in parts))


def _stacked(*parts: Tensor) -> Tensor:
    return torch.cat(parts)


def _in_turn(gate: Tensor, up: Tensor) -> Tensor:
    """Interleave 16 outputs of the gate with 16 of up, padded to whole pairs of tiles."""
    missing = -len(gate) % (2 * TILE)
    pairs = [F.pad(half, (0, 0, 0, missing)).view(-1, TILE, half.shape[1]) for half in (gate, up)]
    return torch.stack(pairs, dim=1).flatten(0, 2)


def _address(numbers: Any) -> int:
    return int(numbers.buffer_info()[0])
