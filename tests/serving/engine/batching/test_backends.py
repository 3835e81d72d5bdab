"""What holds for every backend: a row's result has the same bits in any batch, chunk and block."""

import random
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llama_serving.engine.batching.backends.base import Backend, Rows
from tests.support import backends, llamas
from tests.support.llamas import SHAPES, Llama
from tests.support.rows import Cache, among, ids, in_chunks, other_rows, spoil

TOKENS = 16 * 1400
NATIVE_SHAPES = ("heads of 64", "heads of 128", "heads wider than hidden")
"""What the kernels know."""
CASES = (
    *(("portable", shape) for shape in SHAPES),
    *((f"native {name}", shape) for name in backends.SETS for shape in NATIVE_SHAPES),
    *((f"native int8 {name}", "heads wider than hidden") for name in backends.SETS),
    *((f"native int4 {name}", "heads of 128") for name in backends.SETS),
)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: ", ".join(case).replace(" ", "-"))
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    kind, shape = request.param
    folder = llamas.write(SHAPES[shape], tmp_path_factory.mktemp("llama"))
    return backends.make(kind, folder, TOKENS // (16 if kind == "portable" else 32))


@settings(max_examples=12)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 150))
@example(seed=1, count=300)
def test_a_prompts_result_does_not_depend_on_other_rows_chunks_or_blocks(
    backend: Backend, seed: int, count: int
) -> None:
    rng = random.Random(seed)
    cache, prompt = Cache(backend, rng), ids(rng, count)
    alone = backend.forward([Rows(prompt, 0, cache.blocks(count), prefill=True, num_logits=1)])[0]
    others = other_rows(cache, rng)
    assert torch.equal(in_chunks(backend, prompt, cache.blocks(count), rng, others), alone)


@settings(max_examples=12)
@given(seed=st.integers(0, 10_000), start=st.integers(1, 700))
@example(seed=1, start=1023)
@example(seed=2, start=2000)
def test_a_generated_tokens_result_does_not_depend_on_other_rows(
    backend: Backend, seed: int, start: int
) -> None:
    rng = random.Random(seed)
    cache, prompt, token = Cache(backend, rng), ids(rng, start), ids(rng, 1)
    blocks = cache.blocks(start + 1)
    backend.forward([Rows(prompt, 0, blocks, prefill=True, num_logits=0)])
    mine = Rows(token, start, blocks, prefill=False, num_logits=1)
    alone = backend.forward([mine])[0]
    for most in (3, 9, 40):
        assert torch.equal(among(backend, mine, other_rows(cache, rng, most=most), rng), alone)


def test_what_was_saved_comes_back_to_other_blocks(backend: Backend) -> None:
    rng = random.Random(4)
    cache, prompt = Cache(backend, rng), ids(rng, 50)
    blocks, others = cache.blocks(51), cache.blocks(51)
    backend.forward([Rows(prompt, 0, blocks, prefill=True, num_logits=0)])
    expected = backend.forward([Rows([7], 50, blocks, prefill=False, num_logits=1)])
    saved = backend.save(blocks)
    backend.forward([Rows(ids(rng, 50), 0, blocks, prefill=True, num_logits=0)])
    backend.restore(others, saved)
    assert torch.equal(backend.forward([Rows([7], 50, others, prefill=False, num_logits=1)]), expected)


def test_cleared_blocks_are_as_new(backend: Backend) -> None:
    """NaN left by a failed sequence would spoil the blocks' next user: 0 times NaN is NaN."""
    rng = random.Random(8)
    cache = Cache(backend, rng)
    blocks, prompt = cache.blocks(40), ids(rng, 3)
    rows = [Rows(prompt, 0, blocks, prefill=True, num_logits=1)]
    expected = backend.forward(rows)
    spoil(backend, blocks)
    backend.clear(blocks)
    assert torch.equal(backend.forward(rows), expected)
    assert backend.forward([Rows([7], 3, blocks, prefill=False, num_logits=1)]).isfinite().all()


def test_what_is_no_number_stays_with_its_sequence(backend: Backend) -> None:
    rng = random.Random(9)
    cache = Cache(backend, rng)
    poisoned, others = cache.blocks(90), other_rows(cache, rng)
    expected = backend.forward(others)
    spoil(backend, poisoned)
    for bad in (
        Rows([7], 50, poisoned, prefill=False, num_logits=1),
        Rows(ids(rng, 40), 33, poisoned, prefill=True, num_logits=1),
    ):
        found = backend.forward([others[0], bad, *others[1:]])
        own = others[0].num_logits
        assert found[own].isnan().all()
        assert torch.equal(torch.cat([found[:own], found[own + 1 :]]), expected)


def test_doing_a_pass_again_changes_nothing(backend: Backend) -> None:
    rng = random.Random(5)
    batch = other_rows(Cache(backend, rng), rng)
    assert torch.equal(backend.forward(batch), backend.forward(batch))


def test_rows_without_num_logits_return_none(backend: Backend) -> None:
    assert backend.forward([Rows([5, 6], 0, [0], prefill=True, num_logits=0)]).shape == (0, 300)


@pytest.mark.parametrize(
    ("theta", "length"), [(1e6, 16_500), (1e4, 4_200)], ids=["theta 1e6 above 16,384", "theta 1e4 above 4,096"]
)
@pytest.mark.parametrize(
    ("kind", "bound"), [("portable", 5e-4), *((f"native {name}", 0.05) for name in backends.SETS)]
)
def test_far_positions(kind: str, bound: float, theta: float, length: int, tmp_path: Path) -> None:
    """Frequencies in less than float32 would go wrong far out."""
    shape = Llama(layers=1, theta=theta, positions=length + 10, hidden=64, heads=1, kv_heads=1, head_dim=64)
    llamas.write(shape, tmp_path, dtype=torch.bfloat16)
    tokens = length + 100
    backend = backends.make(kind, tmp_path, tokens // 16)
    model = llamas.reference(tmp_path)
    rng = random.Random(7)
    prompt, blocks = ids(rng, length), list(range(tokens // 16))
    for start in range(0, length, 2048):
        part = prompt[start : start + 2048]
        found = backend.forward([Rows(part, start, blocks, prefill=True, num_logits=1)])
    with torch.inference_mode():
        expected = model(torch.tensor([prompt]), logits_to_keep=1).logits[0]
    torch.testing.assert_close(found, expected, atol=bound, rtol=bound)
