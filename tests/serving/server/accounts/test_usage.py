"""Usage: sums by key, bounded however many keys there are."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llama_serving.server.accounts.usage import MOST_NAMES, OTHER, Usage

RECORD: dict[str, Any] = {"prompt_tokens": 3, "completion_tokens": 2, "error": None, "block": None}


@given(st.lists(st.integers(0, 3 * MOST_NAMES), max_size=400))
def test_names_are_bounded_and_nothing_is_lost(names: list[int]) -> None:
    usage = Usage()
    for name in names:
        usage.add(f"n{name}", RECORD)
    counts = usage.by_key()
    assert len(counts) <= MOST_NAMES + 1
    assert sum(one.requests for one in counts.values()) == len(names)
    assert sum(one.prompt_tokens for one in counts.values()) == 3 * len(names)
    first = list(dict.fromkeys(f"n{name}" for name in names))[:MOST_NAMES]
    assert set(counts) - {OTHER} == set(first)
    for name in first:
        assert counts[name].requests == names.count(int(name[1:]))


def test_errors_and_blocks_are_counted() -> None:
    usage = Usage()
    usage.add("a", {**RECORD, "error": "content_filter", "block": "prompt"})
    usage.add("a", {**RECORD, "error": "queue_full"})
    usage.add("a", {**RECORD, "block": "text"})
    one = usage.by_key()["a"]
    assert (one.requests, one.errors, one.blocks, one.completion_tokens) == (3, 2, 2, 6)
