"""Allocation of the key and value blocks: counts and ids, no tensors.

A block holds a fixed number of tokens. Full blocks of a prompt can be reused by later prompts with the same prefix: they
form a tree in which a child continues its parent. Generated tokens are not shared: they were computed one at a time, and
another shape of the same product may round differently.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

from llama_serving.engine.batching.free_extents import FreeExtents


@dataclass(slots=True)
class _Node:
    """A full block of a prompt.

    Attributes:
        key: the parent's number, and the block's tokens.
        ready: its keys and values are computed.
    """

    number: int
    key: tuple[int, tuple[int, ...]]
    block: int
    ready: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """The cached prefix of a prompt.

    Attributes:
        blocks: the blocks that hold it.
        coming: another sequence is computing the next block now.
    """

    blocks: tuple[int, ...]
    coming: bool


NO_MATCH: Final = Match((), coming=False)

_ROOT = 0


class BlockPool:
    """All blocks of one engine.

    Args:
        num_blocks: blocks in the pool.
        block_tokens: tokens in each block.
        share: whether prompts may reuse each other's blocks.
    """

    def __init__(self, num_blocks: int, block_tokens: int, *, share: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._share = share
        self._empty = FreeExtents(num_blocks)
        self._users = [0] * num_blocks
        self._tree: dict[tuple[int, tuple[int, ...]], _Node] = {}
        self._nodes: dict[int, _Node] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()
        self._numbers = count(_ROOT + 1)

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be allocated: empty ones, and cached ones without a user."""
        return len(self._empty) + len(self._unused)

    @property
    def capacity(self) -> int:
        """Tokens that one sequence alone can have."""
        return self.num_blocks * self.block_tokens

    def blocks_for(self, tokens: int) -> int:
        """Return the number of blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_tokens)

    def match(self, prompt: Sequence[int]) -> Match:
        """Return the longest cached prefix of a prompt, without its last token, which must be computed."""
        blocks: list[int] = []
        parent = _ROOT
        for key in self._keys(prompt, len(prompt) - 1):
            node = self._tree.get((parent, key)) if self._share else None
            if node is None or not node.ready:
                return Match(tuple(blocks), coming=node is not None)
            blocks.append(node.block)
            parent = node.number
        return Match(tuple(blocks), coming=False)

    def allocate(self, number: int, shared: Sequence[int] = ()) -> list[int] | None:
        """Return the shared blocks and `number` new ones, now used; None, and no change, if too few are free."""
        reclaimed = sum(block in self._unused for block in shared)
        if number > self.num_free_blocks - reclaimed:
            return None
        for block in shared:
            self._users[block] += 1
            self._unused.pop(block, None)
        return [*shared, *self._new(number)]

    def register_prefix(self, prompt: Sequence[int], blocks: Sequence[int]) -> None:
        """Register the full blocks of a prompt, which is about to be computed in these blocks."""
        if not self._share:
            return
        parent = _ROOT
        for key, block in zip(self._keys(prompt, len(prompt)), blocks, strict=False):
            node = self._tree.get((parent, key))
            if node is None:
                node = _Node(next(self._numbers), (parent, key), block)
                self._tree[node.key] = self._nodes[block] = node
            parent = node.number

    def mark_computed(self, blocks: Sequence[int], before: int, tokens: int) -> None:
        """Mark the tokens `before` to `tokens` of a sequence as computed; its full blocks can be shared now."""
        for block in blocks[before // self.block_tokens : tokens // self.block_tokens]:
            if block in self._nodes:
                self._nodes[block].ready = True

    def free(self, blocks: Sequence[int], *, invalid: bool = False) -> list[int]:
        """End one user's use of its blocks.

        The last blocks are evicted first, since the first are likelier to be reused. Invalid blocks are never reused as
        a prefix.

        Returns:
            The blocks that are now unused and not cached.
        """
        freed: list[int] = []
        for block in reversed(blocks):
            self._users[block] -= 1
            if invalid:
                self._forget(block)
            if self._users[block]:
                continue
            node = self._nodes.get(block)
            if node is not None and node.ready:
                self._unused[block] = None
            else:
                self._forget(block)
                self._empty.free(block)
                freed.append(block)
        return freed

    def _new(self, number: int) -> list[int]:
        """Return empty blocks, then the least recently used cached ones; sorted, since a backend reads contiguous
        blocks without a copy."""
        blocks = self._empty.allocate(min(number, len(self._empty)))
        for _ in range(number - len(blocks)):
            block, _ = self._unused.popitem(last=False)
            self._forget(block)
            blocks.append(block)
        for block in blocks:
            self._users[block] = 1
        return sorted(blocks)

    def _forget(self, block: int) -> None:
        node = self._nodes.pop(block, None)
        if node is not None:
            del self._tree[node.key]

    def _keys(self, prompt: Sequence[int], tokens: int) -> Iterator[tuple[int, ...]]:
        size = self.block_tokens
        return (tuple(prompt[at : at + size]) for at in range(0, tokens - size + 1, size))
