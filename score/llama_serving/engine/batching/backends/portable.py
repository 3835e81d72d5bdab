"""The portable backend: Llama in plain torch, for any CPU.

Flat rows go through the layers together: first those that generate, then the prompts'. Linear layers are reordered once for
oneDNN, and fused with SiLU, its product and the residual sums.

In float32 results are batch-invariant. oneDNN and MKL promise the same bits only for the same call, so a product's shape,
threads, operand alignment and a row's place in it must not depend on the other rows
(docs/architecture/batch-invariance.md). Linear layers see the rows in blocks of one fixed size. Attention sees each
generating row alone and prompts in tiles of fixed positions, one product a tile, each on one thread.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the field's own name)

from llama_serving.engine.batching.backends.base import Rows
from llama_serving.engine.batching.backends.blocks import Blocks
from llama_serving.engine.batching.backends.linear import PackedLinear
from llama_serving.engine.batching.backends.rotary import RotaryTable
from llama_serving.engine.batching.checkpoint import CheckpointWeights, Tensors, read_config
from llama_serving.llama_config import LlamaConfig

BLOCK_TOKENS: Final = 16
EXACT: Final = 512
"""Float32 attention reads keys in multiples of this many tokens: torch's kernel splits keys into parts of so many (kvSplitSize in
aten/src/ATen/native/cpu/FlashAttentionKernel.cpp), so that each product has the same shape."""
ALIKE: Final = 64
"""Sequences shorter than this count as equally long."""
TILE: Final = 32
"""Prompt rows in one tile of float32 attention: positions 0 to 31, 32 to 63 and so on, so that a position has the same
place in its tile however the prompt is divided."""
QUERIES: Final = 8
"""Query rows of a float32 attention product, in multiples. Each of torch's threads has a part of one buffer for its scores
(`size_per_thread`, same file); with so many rows all parts are aligned to 64 bytes. With one row they are not, and on AMD's
CPUs the results of MKL's one-row products depend on that."""


class Portable:
    """See `Backend`.

    Args:
        config: the model's.
        weights: its tensors.
        dtype: `float32` or `bfloat16`, of weights, keys and values.
        num_blocks: returns the size of the cache.
        fallback_reason: see `Backend`.

    Raises:
        SetupError: the checkpoint cannot be used.
    """

    name = "portable"
    instructions = ""
    block_tokens = BLOCK_TOKENS
    chunk_rows = TILE
    num_layers = 1

    def __init__(
        self,
        config: LlamaConfig,
        weights: Tensors,
        *,
        dtype: str,
        num_blocks: Callable[[LlamaConfig], int],
        fallback_reason: str = "",
    ) -> None:
        self.config = config
        self.fallback_reason = fallback_reason
        self.vocab = self.config.vocab
        self._dtype: torch.dtype = getattr(torch, dtype)
        self.batch_invariant = self._dtype == torch.float32
        self._load(weights)
        self._rotary = RotaryTable(config.head_dim, config.rope_theta)
        self._form = _Form(self._dtype, self.config.heads // self.config.kv_heads)
        self._use_blocks(num_blocks(self.config))

    @classmethod
    def of(cls, folder: Path, *, dtype: str, num_blocks: Callable[[LlamaConfig], int]) -> "Portable":
        """Load the model of a checkpoint.

        Raises:
            SetupError: the checkpoint cannot be used.
        """
        return cls(read_config(folder), CheckpointWeights(folder), dtype=dtype, num_blocks=num_blocks)

    @torch.inference_mode()
    def forward(self, batch: Sequence[Rows]) -> Tensor:
        """See `Backend.forward`."""
        plan = _Plan.of(batch, self._rotary, self._form)
        x = F.embedding(plan.ids, self._embedding)
        for layer, keys, values in zip(self._layers, self._blocks.keys, self._blocks.values, strict=True):
            x = layer.forward(x, plan, keys, values, self._room)
        if not len(plan.logit_rows):
            return torch.empty(0, self.vocab)
        x = F.rms_norm(x[plan.logit_rows], (self.config.hidden,), self._norm, self.config.epsilon)
        logits = self._head(x).float()
        return logits if plan.order is None else logits[plan.order]

    def save(self, blocks: Sequence[int]) -> list[Tensor]:
        """See `Backend.save`."""
        return self._blocks.save(blocks)

    def restore(self, blocks: Sequence[int], saved: list[Tensor]) -> None:
        """See `Backend.restore`."""
        self._blocks.restore(blocks, saved)

    def clear(self, blocks: Sequence[int]) -> None:
        """See `Backend.clear`."""
        self._blocks.clear(blocks)

    def trial(self, num_blocks: int) -> "Portable":
        """See `Backend.trial`."""
        trial = copy.copy(self)
        trial.config = replace(self.config, layers=1)
        trial._layers = self._layers[:1]  # noqa: SLF001  (its own)
        trial._use_blocks(num_blocks)  # noqa: SLF001
        return trial

    def stricter(self) -> str:
        """See `Backend.stricter`."""
        linears = [self._head, *(linear for layer in self._layers for linear in layer.linears)]
        if any(linear.block_rows > 1 for linear in linears):
            for linear in linears:
                linear.block_rows = 1
            return "products with weights take one row at a time"
        if torch.get_num_threads() > 1:
            torch.set_num_threads(1)
            return "one thread computes"
        return ""

    def _use_blocks(self, number: int) -> None:
        self.num_blocks = number
        shape = (number, BLOCK_TOKENS, self.config.kv_heads, self.config.head_dim)
        self._room = _Room(self._dtype)
        self._blocks = Blocks(shape, self._dtype, self.config.layers)

    def _load(self, weights: Tensors) -> None:
        config, dtype = self.config, self._dtype
        table = (config.vocab, config.hidden)
        embedding = weights.tensor("model.embed_tokens.weight", table)
        self._embedding = embedding.to(dtype, copy=True)
        self._layers = [_Layer(config, weights, f"model.layers.{n}", dtype) for n in range(config.layers)]
        norm = weights.tensor("model.norm.weight", (config.hidden,))
        self._norm = norm.to(dtype, copy=True)
        head = self._embedding if config.tied else weights.tensor("lm_head.weight", table).to(dtype)
        self._head = PackedLinear(head)


@dataclass(frozen=True, slots=True)
class _Form:
    """The model's part of a plan: dtype, and the number of query heads that share a key head."""

    dtype: torch.dtype
    group: int

    @property
    def exact(self) -> bool:
        """Whether results are batch-invariant."""
        return self.dtype == torch.float32


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows that attention computes together: generating ones of similar length, or those of one prompt.

    Attributes:
        first: index of the first one among the step's rows; there are `count`.
        tile: rows of a tile; a generating row is a tile of its own.
        offset: rows of the first tile before them.
        blocks: (sequences · blocks of the longest,) of the cache; a slice if they are contiguous, which avoids a copy.
        sequences: number of sequences.
        mask: (tiles, 1, group · rows of a tile, tokens): 0 where a row attends, -inf elsewhere. In float32 the rows are
            padded to a multiple of `QUERIES`.
    """

    first: int
    count: int
    tile: int
    offset: int
    blocks: Tensor | slice
    sequences: int
    mask: Tensor


@dataclass(frozen=True, slots=True)
class _Plan:
    """Values that all layers of a step share, computed once.

    Attributes:
        ids: (rows,)
        cos, sin: (rows, 1, head_dim), of the rows' positions.
        slots: (rows,) index of each row's key and value in the cache.
        logit_rows: the rows whose logits are requested.
        order: permutes these into the order of the batch; None if they are in it.
    """

    ids: Tensor
    cos: Tensor
    sin: Tensor
    slots: Tensor
    parts: tuple[_Part, ...]
    logit_rows: Tensor
    order: Tensor | None

    @classmethod
    def of(cls, batch: Sequence[Rows], rotary: RotaryTable, form: _Form) -> "_Plan":
        """Sort the rows: generating ones first, by length."""
        order = sorted(range(len(batch)), key=lambda i: (batch[i].prefill, batch[i].start))
        ordered = [batch[i] for i in order]
        positions = [p for rows in ordered for p in range(rows.start, rows.start + len(rows.ids))]
        slots = [
            rows.blocks[p // BLOCK_TOKENS] * BLOCK_TOKENS + p % BLOCK_TOKENS
            for rows in ordered
            for p in range(rows.start, rows.start + len(rows.ids))
        ]
        cosines, sines = (
            torch.cat([half, half], dim=-1)[:, None].to(form.dtype)
            for half in rotary.at(torch.tensor(positions))
        )
        ends, end = [], 0
        for rows in ordered:
            end += len(rows.ids)
            ends.append(end)
        sources = [i for i, rows in zip(order, ordered, strict=True) for _ in range(rows.num_logits)]
        return cls(
            ids=torch.tensor([i for rows in ordered for i in rows.ids]),
            cos=cosines,
            sin=sines,
            slots=torch.tensor(slots),
            parts=tuple(_parts(ordered, form)),
            logit_rows=torch.tensor(
                [row for e, rows in zip(ends, ordered, strict=True) for row in range(e - rows.num_logits, e)],
                dtype=torch.int64,
            ),
            order=None
            if sources == sorted(sources)
            else torch.tensor(sorted(range(len(sources)), key=sources.__getitem__)),
        )


def _parts(ordered: Sequence[Rows], form: _Form) -> Iterator[_Part]:
    first = 0
    for group in _alike([rows for rows in ordered if not rows.prefill]):
        yield _generating(group, first, form)
        first += len(group)
    for rows in ordered[first:]:
        yield _prompt(rows, first, form)
        first += len(rows.ids)


def _alike(generating: Sequence[Rows]) -> Iterator[list[Rows]]:
    """Divide sorted rows into groups in which the longest is at most twice the shortest."""
    group: list[Rows] = []
    for rows in generating:
        if group and rows.start > 2 * max(group[0].start, ALIKE):
            yield group
            group = []
        group.append(rows)
    if group:
        yield group


def _generating(group: Sequence[Rows], first: int, form: _Form) -> _Part:
    """Make a part in which each sequence reads as many blocks as the longest has, with a mask for those not its own."""
    most = _blocks_seen(group[-1].start + 1, form)
    blocks = _seen([(rows.blocks, rows.start + 1) for rows in group], most)
    at = torch.arange(most * BLOCK_TOKENS)
    last = torch.tensor([rows.start for rows in group])[:, None, None, None]
    queries = -(-form.group // QUERIES) * QUERIES if form.exact else form.group
    return _Part(first, len(group), 1, 0, blocks, len(group), _mask(at, last, queries, form))


def _prompt(rows: Rows, first: int, form: _Form) -> _Part:
    count, end = len(rows.ids), rows.start + len(rows.ids)
    tile, offset = (TILE, rows.start % TILE) if form.exact else (count, 0)
    tiles = -(-(offset + count) // tile)
    most = _blocks_seen(end, form)
    at = torch.arange(most * BLOCK_TOKENS)
    last = rows.start - offset + torch.arange(tiles * tile).view(tiles, 1, tile, 1)
    mask = _mask(at, last, form.group, form)
    return _Part(first, count, tile, offset, _seen([(rows.blocks, end)], most), 1, mask)


def _blocks_seen(tokens: int, form: _Form) -> int:
    multiple = EXACT if form.exact else BLOCK_TOKENS
    return -(-tokens // multiple) * multiple // BLOCK_TOKENS


def _seen(sequences: Sequence[tuple[Sequence[int], int]], most: int) -> Tensor | slice:
    """Return the blocks of each sequence, padded to `most` with its own first block.

    Padding is masked, but must be the sequence's own: another sequence's NaN would spoil the sum even if masked.
    """
    own = [list(blocks[: -(-tokens // BLOCK_TOKENS)]) for blocks, tokens in sequences]
    first = own[0][0]
    if len(own) == 1 and own[0] == list(range(first, first + most)):
        return slice(first, first + most)
    return torch.tensor([blocks + blocks[:1] * (most - len(blocks)) for blocks in own]).flatten()


def _mask(at: Tensor, last: Tensor, times: int, form: _Form) -> Tensor:
    """Repeat the mask for each query head of a group, which are rows of one product, and for the padding."""
    return torch.zeros((), dtype=form.dtype).masked_fill(at > last, -math.inf).repeat(1, 1, times, 1)


class _Layer:
    """One decoder layer."""

    def __init__(self, config: LlamaConfig, weights: Tensors, name: str, dtype: torch.dtype) -> None:
        self._config = config
        names = ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                 "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
        width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        hidden, ffn = config.hidden, config.ffn
        shapes = ((hidden,), (width, hidden), (kv_width, hidden), (kv_width, hidden), (hidden, width),
                  (hidden,), (ffn, hidden), (ffn, hidden), (hidden, ffn))  # fmt: skip
        before, q, k, v, o, between, gate, up, down = (
            weights.tensor(f"{name}.{part}.weight", shape).to(dtype)
            for part, shape in zip(names, shapes, strict=True)
        )
        self._before, self._between = before.clone(), between.clone()
        self._qkv, self._o = PackedLinear(torch.cat([q, k, v])), PackedLinear(o)
        self._gate, self._up, self._down = PackedLinear(gate), PackedLinear(up), PackedLinear(down)

    @property
    def linears(self) -> tuple[PackedLinear, ...]:
        """All of its linear layers."""
        return self._qkv, self._o, self._gate, self._up, self._down

    def forward(self, x: Tensor, plan: _Plan, keys: Tensor, values: Tensor, room: "_Room") -> Tensor:
        """Compute (rows, hidden) -> (rows, hidden), and write keys and values of the rows to the cache."""
        config = self._config
        heads, kv_heads, size = config.heads, config.kv_heads, config.head_dim
        h = F.rms_norm(x, (config.hidden,), self._before, config.epsilon)
        qkv = self._qkv(h).view(-1, heads + 2 * kv_heads, size)
        turned = _rotate(qkv[:, : heads + kv_heads], plan)
        _write(keys, plan.slots, turned[:, heads:])
        _write(values, plan.slots, qkv[:, heads + kv_heads :])
        mixed = [
            _attend(
                turned[part.first : part.first + part.count, :heads],
                part,
                room.gathered(0, keys, part),
                room.gathered(1, values, part),
            )
            for part in plan.parts
        ]
        x = self._o(mixed[0] if len(mixed) == 1 else torch.cat(mixed), plus=x)
        h = F.rms_norm(x, (config.hidden,), self._between, config.epsilon)
        return self._down(self._up(h, times=self._gate(h, silu=True)), plus=x)


def _rotate(x: Tensor, plan: _Plan) -> Tensor:
    """Rotate (rows, heads, head_dim) by position."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * plan.cos, torch.cat([-second, first], dim=-1), plan.sin)


def _write(cache: Tensor, slots: Tensor, rows: Tensor) -> None:
    """Write (rows, kv_heads, head_dim) into (blocks, tokens, kv_heads, head_dim)."""
    cache.flatten(0, 1).index_copy_(0, slots, rows)


class _Room:
    """Memory for the keys and values that are gathered for attention.

    It is kept between steps: new memory causes page faults, which took as long as the rest of a step with 64 sequences.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._buffers = [torch.empty(0, dtype=dtype) for _ in range(2)]

    def gathered(self, which: int, cache: Tensor, part: _Part) -> Tensor:
        """Return the keys or values of a part: (tiles, kv_heads, tokens, head_dim); valid until the next call.

        Args:
            which: 0 for keys and 1 for values.
            cache: (blocks, tokens, kv_heads, head_dim).
            part: of the step.
        """
        _, _, kv_heads, size = cache.shape
        tiles = part.mask.shape[0]
        blocks = (
            cache[part.blocks] if isinstance(part.blocks, slice) else self._copied(which, cache, part.blocks)
        )
        found = blocks.view(part.sequences, -1, kv_heads, size).transpose(1, 2)
        return found if part.sequences == tiles else found.expand(tiles, -1, -1, -1)

    def _copied(self, which: int, cache: Tensor, blocks: Tensor) -> Tensor:
        count = len(blocks) * cache[0].numel()
        if len(self._buffers[which]) < count:
            self._buffers[which] = torch.empty(count + count // 4, dtype=self._dtype)
        into = self._buffers[which][:count].view(len(blocks), *cache.shape[1:])
        return torch.index_select(cache, 0, blocks, out=into)


def _attend(q: Tensor, part: _Part, k: Tensor, v: Tensor) -> Tensor:
    """Attend: (rows, heads, head_dim) over (tiles, kv_heads, tokens, head_dim) -> (rows, heads · head_dim)."""
    kv_heads = k.shape[1]
    rows, heads, size = q.shape
    group = heads // kv_heads
    tiles = part.mask.shape[0]
    if tiles * part.tile > rows:
        q = F.pad(q, (0, 0, 0, 0, part.offset, tiles * part.tile - rows - part.offset))
    # The query heads of a group are rows of the same product: (tiles, kv_heads, group · rows, head_dim).
    q = (
        q.view(tiles, part.tile, kv_heads, group, size)
        .permute(0, 2, 3, 1, 4)
        .reshape(tiles, kv_heads, -1, size)
    )
    mixed = _mixed_exactly(q, k, v, part.mask) if q.dtype == torch.float32 else _mixed(q, k, v, part.mask)
    mixed = mixed.view(tiles, kv_heads, group, part.tile, size).permute(0, 3, 1, 2, 4)
    return mixed.reshape(tiles * part.tile, heads * size)[part.offset : part.offset + rows]


def _mixed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _mixed_exactly(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Do the same with products of one shape, alignment and thread, whatever the other rows are."""
    queries = q.shape[2]
    missing = mask.shape[2] - queries
    q = F.pad(q, (0, 0, 0, missing)) if missing else q.contiguous()
    if q.shape[0] * q.shape[1] == 1:
        # A single task runs outside of torch's threads, and MKL would use threads of its own there.
        q, k, v, mask = (tensor.expand(2, -1, -1, -1) for tensor in (q, k, v, mask))
        return _mixed(q, k, v, mask)[:1, :, :queries].contiguous()
    mixed = _mixed(q, k, v, mask)
    return mixed[:, :, :queries].contiguous() if missing else mixed
