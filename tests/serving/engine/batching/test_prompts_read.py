"""Log-probabilities of a prompt, and a bias on logits: the same in every engine, in any batch, and without a prompt's whole logits."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.engine.batching.backends.base import Backend, Rows
from llama_serving.engine.batching.engine import BatchingEngine
from llama_serving.engine.batching.scheduler import SCORED
from llama_serving.engine.handle import Token
from llama_serving.engine.pipeline import PipelineEngine
from llama_serving.errors import InternalError
from llama_serving.sampling_params import SamplingParams
from tests.support import backends, llamas
from tests.support.llamas import SHAPES

READ: Final = SamplingParams(max_new_tokens=0, prompt_logprobs=5)


@pytest.fixture(scope="module", params=["portable", "native"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A backend's name, and a model for it."""
    shape, dtype = "grouped heads", torch.float32
    if request.param == "native":
        backends.needs(backends.instruction_set())
        shape, dtype = "heads of 64", torch.bfloat16
    return request.param, llamas.write(SHAPES[shape], tmp_path_factory.mktemp("llama"), dtype=dtype)


def engine(made: tuple[str, Path], blocks: int = 80, **options: Any) -> BatchingEngine:
    kind, folder = made

    def load() -> Backend:
        return backends.make(kind, folder, blocks + 1)

    return BatchingEngine(load, **options)


def prompt_of(running: Any, ids: Sequence[int], params: SamplingParams) -> list[Token]:
    handle = running.submit(ids, params)
    handle.wait()
    assert list(handle) == [] or params.max_new_tokens
    return list(handle.prompt)


def expected(folder: Path, ids: Sequence[int]) -> torch.Tensor:
    """transformers' own: (tokens - 1, vocab)."""
    with torch.inference_mode():
        logits = llamas.reference(folder)(torch.tensor([ids])).logits[0, :-1]
    return torch.as_tensor(logits.double().log_softmax(-1))


IDS: Final = st.lists(st.integers(3, 299), min_size=1, max_size=90)


@settings(max_examples=10)
@given(
    asked=st.lists(st.tuples(IDS, st.integers(0, 3), st.sampled_from((None, 0, 2))), min_size=1, max_size=8),
    blocks=st.sampled_from((9, 12, 60)),
    chunk=st.sampled_from((32, 512)),
)
def test_they_are_the_same_in_any_batch(
    made: tuple[str, Path], asked: list[tuple[list[int], int, int | None]], blocks: int, chunk: int
) -> None:
    """Small caches preempt; prompts that begin alike would reuse what is computed."""
    blocks = blocks if made[0] == "portable" else blocks // 2
    asked += [(ids[: len(ids) // 2 + 1] * 2, new, number) for ids, new, number in asked]
    asked = [(ids[:90], new or int(number is None), number) for ids, new, number in asked]
    alone, together = engine(made), engine(made, blocks, largest_chunk=chunk, max_num_seqs=4)
    try:
        params = [SamplingParams(max_new_tokens=new, prompt_logprobs=number) for _, new, number in asked]
        handles = [together.submit(ids, one) for (ids, _, _), one in zip(asked, params, strict=True)]
        for (ids, new, number), one, handle in zip(asked, params, handles, strict=True):
            found = list(handle)
            by_itself = alone.submit(ids, one)
            assert (found, handle.prompt) == (list(by_itself), by_itself.prompt)
            assert len(found) == new
            assert [token.id for token in handle.prompt] == ([] if number is None else ids[1:])
            assert handle.finish_reason == "length"
        together.drain()
        stats = together.stats()
        assert stats.kv_blocks_free == stats.kv_blocks
    finally:
        alone.close()
        together.close()


def test_what_another_prompt_has_computed_is_computed_again(made: tuple[str, Path]) -> None:
    running, ids = engine(made), [7, 8, 9] * 40
    try:
        first = prompt_of(running, ids, READ)
        assert prompt_of(running, ids, READ) == first
        assert [token.id for token in first] == ids[1:]
        assert running.stats().reused_tokens == 0
        assert len(prompt_of(running, [*ids, 5], SamplingParams(max_new_tokens=1))) == 0
        assert running.stats().reused_tokens > 0, "others reuse it"
    finally:
        running.close()


def test_a_preempted_prompt_is_delivered_once(made: tuple[str, Path]) -> None:
    """An older sequence grows while the younger one's prompt is read, two rows at a time."""
    blocks = 10 if made[0] == "portable" else 6
    alone, together = engine(made), engine(made, blocks, largest_chunk=2)
    asked = [
        ([*range(5, 15)], SamplingParams(max_new_tokens=70)),
        ([*range(20, 140)], SamplingParams(max_new_tokens=2, prompt_logprobs=1)),
    ]
    try:
        handles = [together.submit(ids, params) for ids, params in asked]
        for (ids, params), handle in zip(asked, handles, strict=True):
            found, by_itself = list(handle), alone.submit(ids, params)
            assert (found, handle.prompt) == (list(by_itself), by_itself.prompt)
        assert together.stats().num_preemptions > 0
    finally:
        alone.close()
        together.close()


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 66, 200])
def test_they_are_transformers(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    folder = llamas.write(SHAPES["grouped heads"], tmp_path_factory.mktemp("llama"))
    ids = [3 + (7 * n * n) % 290 for n in range(length)]
    running = engine(("portable", folder))
    try:
        found = prompt_of(running, ids, READ)
    finally:
        running.close()
    reference = expected(folder, ids)
    assert [token.id for token in found] == ids[1:]
    for token, row in zip(found, reference, strict=True):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
        assert [i for i, _ in token.top] == row.topk(5).indices.tolist()
        assert token.rank == 1 + int((row > row[token.id]).sum())


@pytest.mark.parametrize("bias", [(), ((7, 100.0),), ((3000, 3.0), (1177, -100.0))])
def test_the_engines_agree(bias: tuple[tuple[int, float], ...]) -> None:
    ids = [1, 1177, 294, 4003, 1177, 294] * 13
    params = SamplingParams(
        max_new_tokens=9, prompt_logprobs=3, logprobs=3, logit_bias=bias, repetition_penalty=1.2
    )
    found = []
    for running in (PipelineEngine(NANO_FOLDER, dtype="float32"), engine(("portable", NANO_FOLDER))):
        try:
            handle = running.submit(ids, params)
            found.append(([token.id for token in handle], handle.prompt))
        finally:
            running.close()
    (reference, reference_prompt), (ours, our_prompt) = found
    assert ours == reference
    assert bias != ((7, 100.0),) or set(ours) == {7}
    for one, other in zip(our_prompt, reference_prompt, strict=True):
        assert (one.id, one.rank) == (other.id, other.rank)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [i for i, _ in one.top] == [i for i, _ in other.top]


class Counting:
    """A backend that records how many logits each pass returns, and whose logits of some tokens are NaN."""

    def __init__(self, backend: Backend, counts: list[int], spoilt: int | None = None) -> None:
        self._backend, self._counts, self._spoilt = backend, counts, spoilt

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def forward(self, batch: Sequence[Rows]) -> torch.Tensor:
        logits = self._backend.forward(batch)
        self._counts.append(len(logits))
        at = 0
        for rows in batch:
            if self._spoilt in rows.ids:
                logits[at : at + rows.num_logits] = torch.nan
            at += rows.num_logits
        return logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llamas.write(SHAPES["grouped heads"], tmp_path_factory.mktemp("llama"))


def counting(folder: Path, counts: list[int], spoilt: int | None = None) -> Iterator[Any]:
    yield Counting(backends.make("portable", folder, 81), counts, spoilt)


def test_the_logits_of_a_whole_prompt_are_never_there_together(folder: Path) -> None:
    counts: list[int] = []
    running = BatchingEngine(lambda: next(counting(folder, counts)))
    try:
        counts.clear()
        assert len(prompt_of(running, [5, 6, 7] * 300, READ)) == 899
    finally:
        running.close()
    assert sum(counts) == 900
    assert max(counts) <= SCORED


def test_a_prompt_whose_logits_are_no_numbers_fails_alone(folder: Path) -> None:
    running = BatchingEngine(lambda: next(counting(folder, [], spoilt=299)))
    try:
        good, bad = (running.submit(ids, READ) for ids in ([5] * 80, [5] * 70 + [299]))
        good.wait()
        bad.wait()
        assert len(good.prompt) == 79
        assert isinstance(bad.error, InternalError)
        assert running.stats().alive
    finally:
        running.close()
