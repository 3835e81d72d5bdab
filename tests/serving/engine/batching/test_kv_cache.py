"""Blocks of keys and values: allocation, reuse of prefixes, and that none is lost or allocated twice."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_serving.engine.batching.kv_cache import BlockPool, Match

PROMPT = tuple(range(10, 22))  # three blocks of four


def pool(blocks: int = 8, *, share: bool = True) -> BlockPool:
    return BlockPool(blocks, 4, share=share)


def computed(pool: BlockPool, prompt: tuple[int, ...]) -> list[int]:
    """Blocks of a sequence that shares what it can and has computed its whole prompt."""
    match = pool.match(prompt)
    blocks = pool.allocate(pool.blocks_for(len(prompt)) - len(match.blocks), match.blocks)
    assert blocks is not None
    pool.register_prefix(prompt, blocks)
    pool.mark_computed(blocks, 0, len(prompt))
    return blocks


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_the_blocks_that_tokens_need(tokens: int, blocks: int) -> None:
    assert pool().blocks_for(tokens) == blocks


def test_blocks_are_given_once_and_come_back() -> None:
    blocks = pool(3)
    first, second = blocks.allocate(2), blocks.allocate(1)
    assert first is not None
    assert second is not None
    assert sorted(first + second) == [0, 1, 2]
    assert blocks.num_free_blocks == 0
    assert blocks.allocate(1) is None
    blocks.free(first)
    assert blocks.num_free_blocks == 2
    assert blocks.allocate(3) is None
    assert blocks.num_free_blocks == 2, "a refusal takes nothing"


def test_a_prompt_that_begins_alike_finds_whole_blocks_but_never_its_own_last_token() -> None:
    blocks = pool()
    first = computed(blocks, PROMPT)
    assert blocks.match(PROMPT).blocks == tuple(first[:2]), "the last token has to be computed for its logits"
    assert blocks.match((*PROMPT, 1)).blocks == tuple(first)
    assert blocks.match(PROMPT[:7]).blocks == tuple(first[:1])
    assert blocks.match((*PROMPT[:5], 99, *PROMPT[6:])).blocks == tuple(first[:1])
    assert blocks.match((99, *PROMPT[1:])) == Match((), coming=False)


def test_the_same_tokens_after_another_beginning_are_another_block() -> None:
    blocks = pool()
    computed(blocks, PROMPT)
    assert blocks.match((1, 2, 3, 4, *PROMPT[4:], 5)).blocks == ()


def test_a_beginning_that_is_being_computed_is_coming() -> None:
    blocks = pool()
    held = blocks.allocate(3)
    assert held is not None
    blocks.register_prefix(PROMPT, held)
    assert blocks.match((*PROMPT, 1)) == Match((), coming=True)
    blocks.mark_computed(held, 0, 7)
    assert blocks.match((*PROMPT, 1)) == Match((held[0],), coming=True)
    blocks.mark_computed(held, 7, 12)
    assert blocks.match((*PROMPT, 1)) == Match(tuple(held), coming=False)


def test_what_its_owner_gave_up_before_it_was_computed_is_not_coming_any_more() -> None:
    blocks = pool()
    held = blocks.allocate(3)
    assert held is not None
    blocks.register_prefix(PROMPT, held)
    blocks.mark_computed(held, 0, 4)
    blocks.free(held)
    assert blocks.match((*PROMPT, 1)) == Match((held[0],), coming=False)
    assert blocks.num_free_blocks == 8


def test_a_shared_block_is_free_only_when_its_last_user_has_gone() -> None:
    blocks = pool(4)
    first = computed(blocks, PROMPT)
    second = computed(blocks, (*PROMPT, 1))
    assert second[:3] == first
    assert blocks.num_free_blocks == 0
    blocks.free(first)
    assert blocks.num_free_blocks == 0
    blocks.free(second)
    assert blocks.num_free_blocks == 4


def test_unused_beginnings_are_kept_until_the_room_is_needed_and_go_from_their_end() -> None:
    blocks = pool(4)
    first = computed(blocks, PROMPT)
    blocks.free(first)
    assert blocks.allocate(2) is not None, "one empty block, and the end of the prompt"
    assert blocks.match((*PROMPT, 1)).blocks == tuple(first[:2])
    assert blocks.allocate(2) is not None
    assert blocks.match((*PROMPT, 1)).blocks == ()


def test_taking_shared_blocks_that_nobody_uses_counts_them() -> None:
    blocks = pool(4)
    first = computed(blocks, PROMPT)
    blocks.free(first)
    assert blocks.allocate(2, first) is None, "three of the four free blocks are those that it wants to share"
    taken = blocks.allocate(1, first)
    assert taken is not None
    assert taken[:3] == first
    assert blocks.num_free_blocks == 0


def test_generated_tokens_are_never_shared() -> None:
    blocks = pool()
    held = blocks.allocate(3)
    assert held is not None
    blocks.register_prefix(PROMPT[:5], held)
    blocks.mark_computed(held, 0, 12)
    assert blocks.match((*PROMPT, 1)).blocks == tuple(held[:1])


def test_without_sharing_nothing_is_found() -> None:
    blocks = pool(share=False)
    computed(blocks, PROMPT)
    assert blocks.match((*PROMPT, 1)) == Match((), coming=False)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.lists(st.integers(0, 1), min_size=1, max_size=14)), max_size=60)
)
def test_no_block_is_lost_or_had_by_two_that_did_not_agree(moves: list[tuple[int, list[int]]]) -> None:
    """Random allocations and frees: used and free blocks are always all blocks, and shared prefixes agree."""
    blocks = BlockPool(10, 2)
    held: dict[int, tuple[list[int], list[int]]] = {}
    for name, prompt in moves:
        if name in held:
            blocks.free(held.pop(name)[1])
            continue
        match = blocks.match(prompt)
        if match.coming:
            continue
        taken = blocks.allocate(blocks.blocks_for(len(prompt)) - len(match.blocks), match.blocks)
        if taken is None:
            continue
        blocks.register_prefix(prompt, taken)
        blocks.mark_computed(taken, 0, len(prompt))
        held[name] = (prompt, taken)
        for at, block in enumerate(taken):
            for other, other_blocks in held.values():
                if block in other_blocks:
                    assert other_blocks.index(block) == at
                    assert other[: 2 * at + 2] == prompt[: 2 * at + 2]
        users = Counter(block for _, taken in held.values() for block in taken)
        assert blocks.num_free_blocks + len(users) == 10
    for _, taken in held.values():
        blocks.free(taken)
    assert blocks.num_free_blocks == 10
