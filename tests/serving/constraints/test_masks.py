"""Which tokens a mask allows, by all of llguidance's ways to compute one."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from llama_endpoints.nano import FOLDER
from llama_serving.constraints import compiler, constraint
from llama_serving.constraints.compiler import Compiler
from llama_serving.constraints.constraint import Constraint
from llama_serving.constraints.matcher import Mask
from llama_serving.prompts.tokenizer import Tokenizer

STEPS = 40
WALKS = 4
PATTERNS = (
    r"[a-zA-Z0-9 _.,()\n]{300,}", r"[a-z_][a-z0-9_]{0,60}", r"([^\n]{0,20}\n){3,9}", r"[a-z ]{25,33}x[A-Z]{1,4}|[a-z ]{0,29}!",
    r"SELECT [a-z_, ]{1,300} FROM [a-z_]+;",
)  # fmt: skip


@pytest.fixture(scope="module")
def pieces() -> Sequence[bytes]:
    tokenizer = Tokenizer.from_folder(FOLDER)
    return tokenizer.pieces(tokenizer.size)


def masks(pieces: Sequence[bytes], held: Constraint) -> list[tuple[Mask, bool]]:
    """The masks of some random walks, which the masks decide."""
    compiled, found, rng = Compiler(pieces).compile(held, "it"), [], random.Random(0)
    for _ in range(WALKS):
        matcher, over = compiled.matcher(frozenset({2})), False
        for _ in range(STEPS):
            if not over:
                mask, over = matcher.allowed(len(pieces))
                found.append((mask, over))
                matcher.advance(int(rng.choice(np.flatnonzero(mask))))
    return found


@pytest.mark.parametrize(
    "held",
    [
        *(Constraint("regex", pattern) for pattern in PATTERNS),
        constraint.of_schema({"type": "array", "items": {"type": "string", "maxLength": 12}}, "schema"),
    ],
    ids=lambda one: one.text[:20],
)
def test_sets_of_tokens_change_no_mask(
    pieces: Sequence[bytes], held: Constraint, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_sets = masks(pieces, held)
    monkeypatch.setattr(compiler, "WORDS", ())
    one_by_one = masks(pieces, held)
    assert len(by_sets) > STEPS
    for (mask, over), (other, other_over) in zip(by_sets, one_by_one, strict=True):
        assert np.array_equal(mask, other)
        assert over == other_over
