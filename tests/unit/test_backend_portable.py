"""The portable backend: transformers' logits, and bitwise the same row in any company, chunk and block."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llama_serving.engine.batching.backends.base import Rows
from llama_serving.engine.batching.backends.portable import BLOCK_TOKENS, Portable
from llama_serving.engine.batching.checkpoint import LlamaConfig, Weights
from llama_serving.errors import SetupError
from tests import llamas
from tests.llamas import SHAPES, Llama

BLOCKS = 1400


@pytest.fixture(scope="module", params=SHAPES, ids=lambda name: name.replace(" ", "-"))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llamas.write(SHAPES[request.param], tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def backend(folder: Path) -> Portable:
    return Portable.of(folder, dtype="float32", num_blocks=lambda _: BLOCKS)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return llamas.reference(folder)


class Cache:
    """Blocks in random order, none used twice."""

    def __init__(self, rng: random.Random) -> None:
        self._free = list(range(BLOCKS))
        rng.shuffle(self._free)

    def blocks(self, tokens: int) -> list[int]:
        return [self._free.pop() for _ in range(-(-tokens // BLOCK_TOKENS))]


def ids(rng: random.Random, count: int, vocab: int = 300) -> list[int]:
    return [rng.randrange(vocab) for _ in range(count)]


def prompt_in_chunks(
    backend: Portable, prompt: Sequence[int], blocks: list[int], rng: random.Random, company: Sequence[Rows]
) -> torch.Tensor:
    """The last row's logits of a prompt that goes through in random chunks, in random places of the batch."""
    start = 0
    while start < len(prompt):
        end = min(len(prompt), start + rng.randint(1, 80))
        others = rng.sample(company, rng.randint(0, len(company)))
        at = rng.randint(0, len(others))
        mine = Rows(prompt[start:end], start, blocks, prefill=True, wanted=True)
        logits = backend.forward([*others[:at], mine, *others[at:]])
        result = logits[sum(rows.wanted for rows in others[:at])]
        start = end
    return result


def company(cache: Cache, rng: random.Random) -> list[Rows]:
    """Other rows: generating ones of every length, and parts of prompts."""
    rows = []
    for _ in range(rng.randint(1, 9)):
        start = rng.choice((0, 1, 15, 16, 40, 90, 250, 511, 512, 600))
        rows.append(Rows(ids(rng, 1), start, cache.blocks(start + 1), prefill=False, wanted=rng.random() < 0.8))
    for _ in range(rng.randint(0, 2)):
        count, start = rng.randint(1, 70), rng.choice((0, 16, 33))
        rows.append(
            Rows(ids(rng, count), start, cache.blocks(start + count), prefill=True, wanted=rng.random() < 0.5)
        )
    return rows


def test_every_token_of_a_prompt_has_transformers_logits(backend: Portable, model: Any) -> None:
    rng = random.Random(1)
    prompt, blocks = ids(rng, 90), Cache(rng).blocks(90)
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0]
    for end in (1, 2, 16, 17, 31, 32, 33, 64, 90):
        found = backend.forward([Rows(prompt[:end], 0, blocks, prefill=True, wanted=True)])
        torch.testing.assert_close(found[0], expected[end - 1], atol=2e-4, rtol=2e-4)


def test_every_generated_token_has_transformers_logits(backend: Portable, model: Any) -> None:
    rng = random.Random(2)
    text, blocks = ids(rng, 80), Cache(rng).blocks(80)
    with torch.inference_mode():
        expected = model(torch.tensor([text])).logits[0]
    backend.forward([Rows(text[:40], 0, blocks, prefill=True, wanted=False)])
    for at in range(40, 80):
        found = backend.forward([Rows(text[at : at + 1], at, blocks, prefill=False, wanted=True)])
        torch.testing.assert_close(found[0], expected[at], atol=2e-4, rtol=2e-4)


@settings(max_examples=12)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 150))
def test_a_prompts_result_does_not_depend_on_company_chunks_or_blocks(
    backend: Portable, seed: int, count: int
) -> None:
    rng = random.Random(seed)
    cache, prompt = Cache(rng), ids(rng, count)
    alone = backend.forward([Rows(prompt, 0, cache.blocks(count), prefill=True, wanted=True)])[0]
    others = company(cache, rng)
    assert torch.equal(prompt_in_chunks(backend, prompt, cache.blocks(count), rng, others), alone)


@settings(max_examples=12)
@given(seed=st.integers(0, 10_000), start=st.integers(1, 700))
@example(seed=1, start=1023)
@example(seed=2, start=2000)
def test_a_generated_tokens_result_does_not_depend_on_company(backend: Portable, seed: int, start: int) -> None:
    rng = random.Random(seed)
    cache, prompt, token = Cache(rng), ids(rng, start), ids(rng, 1)
    blocks = cache.blocks(start + 1)
    backend.forward([Rows(prompt, 0, blocks, prefill=True, wanted=False)])
    mine = Rows(token, start, blocks, prefill=False, wanted=True)
    alone = backend.forward([mine])[0]
    for _ in range(3):
        others = company(cache, rng)[:9]
        at = rng.randint(0, len(others))
        together = backend.forward([*others[:at], mine, *others[at:]])
        assert torch.equal(together[sum(rows.wanted for rows in others[:at])], alone)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("count", [40, 512])
def test_blocks_that_lie_side_by_side_give_the_same_without_a_copy(
    folder: Path, dtype: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Portable.of(folder, dtype=dtype, num_blocks=lambda _: 100)
    prompt, next_ = ids(random.Random(5), count), [7]
    copied: list[int] = []
    select = torch.Tensor.index_select

    def counted(tensor: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
        copied.append(len(index))
        return select(tensor, dim, index)

    monkeypatch.setattr(torch.Tensor, "index_select", counted)
    results, copies = [], []
    for blocks in (list(range(3, 37)), [*range(99, 66, -1), 0]):
        copied.clear()
        first = backend.forward([Rows(prompt, 0, blocks, prefill=True, wanted=True)])
        second = backend.forward([Rows(next_, count, blocks, prefill=False, wanted=True)])
        results.append(torch.cat([first, second]))
        copies.append(len(copied))
    assert torch.equal(*results)
    layers, exact = backend.config.layers, dtype == "float32"
    # In float32 what is looked at is filled up to 512 tokens, and only copies fill up.
    assert copies[0] == (2 * layers * (1 if count == 512 else 2) if exact else 0)
    assert copies[1] == 4 * layers


def test_what_was_saved_comes_back_to_other_blocks(backend: Portable) -> None:
    rng = random.Random(4)
    cache, prompt = Cache(rng), ids(rng, 50)
    blocks, others = cache.blocks(51), cache.blocks(51)
    backend.forward([Rows(prompt, 0, blocks, prefill=True, wanted=False)])
    expected = backend.forward([Rows([7], 50, blocks, prefill=False, wanted=True)])
    saved = backend.save(blocks)
    backend.forward([Rows(ids(rng, 50), 0, blocks, prefill=True, wanted=False)])
    backend.restore(others, saved)
    assert torch.equal(backend.forward([Rows([7], 50, others, prefill=False, wanted=True)]), expected)


def test_doing_a_pass_again_changes_nothing(backend: Portable) -> None:
    rng = random.Random(5)
    cache = Cache(rng)
    batch = company(cache, rng)
    assert torch.equal(backend.forward(batch), backend.forward(batch))


def test_rows_that_nobody_wants_logits_of_give_none(backend: Portable) -> None:
    assert backend.forward([Rows([5, 6], 0, [0], prefill=True, wanted=False)]).shape == (0, 300)


def test_in_bf16_the_logits_are_near_those_of_transformers(tmp_path: Path) -> None:
    llamas.write(SHAPES["heads of 64"], tmp_path, dtype=torch.bfloat16)
    backend = Portable.of(tmp_path, dtype="bfloat16", num_blocks=lambda _: BLOCKS)
    exact = llamas.reference(tmp_path, torch.float32)
    rounded = llamas.reference(tmp_path, torch.bfloat16)
    rng = random.Random(6)
    prompt = ids(rng, 70)
    with torch.inference_mode():
        expected, theirs = (m(torch.tensor([prompt])).logits[0, -1].float() for m in (exact, rounded))
    ours = backend.forward([Rows(prompt, 0, Cache(rng).blocks(70), prefill=True, wanted=True)])[0]
    assert (ours - expected).abs().max() < 2 * (theirs - expected).abs().max()


@pytest.mark.parametrize(
    ("theta", "length"), [(1e6, 16_500), (1e4, 4_200)], ids=["theta 1e6 above 16,384", "theta 1e4 above 4,096"]
)
def test_far_positions(theta: float, length: int, tmp_path: Path) -> None:
    """Frequencies in less than float32 would go wrong far out."""
    shape = Llama(layers=1, theta=theta, positions=length + 10)
    llamas.write(shape, tmp_path)
    backend = Portable.of(tmp_path, dtype="float32", num_blocks=lambda _: length // BLOCK_TOKENS + 2)
    model = llamas.reference(tmp_path)
    rng = random.Random(7)
    prompt, blocks = ids(rng, length), list(range(length // BLOCK_TOKENS + 2))
    for start in range(0, length, 2048):
        part = prompt[start : start + 2048]
        found = backend.forward([Rows(part, start, blocks, prefill=True, wanted=True)])
    with torch.inference_mode():
        expected = model(torch.tensor([prompt]), logits_to_keep=1).logits[0]
    torch.testing.assert_close(found, expected, atol=5e-4, rtol=5e-4)


class TestTheCheckpoint:
    def test_shards_are_found_by_the_index(self, tmp_path: Path) -> None:
        llamas.write(Llama(), tmp_path)
        llamas.reference(tmp_path).save_pretrained(tmp_path / "shards", max_shard_size="50KB")
        assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
        one, many = (
            Portable.of(f, dtype="float32", num_blocks=lambda _: 4) for f in (tmp_path, tmp_path / "shards")
        )
        rows = [Rows([5, 6, 7], 0, [1], prefill=True, wanted=True)]
        assert torch.equal(one.forward(rows), many.forward(rows))

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"model_type": "mistral"}, "model_type llama, not mistral. Set LLAMA_ENGINE=pipeline"),
            ({"hidden_act": "gelu"}, "hidden_act silu, not gelu"),
            ({"attention_bias": True}, "attention_bias False, not True"),
            ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_type default, not linear"),
            ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config None, not"),
            ({"hidden_size": None}, "can't be used"),
        ],
    )
    def test_what_is_not_computed_is_refused(self, change: dict[str, Any], says: str, tmp_path: Path) -> None:
        llamas.write(Llama(), tmp_path)
        config = transformers_config(tmp_path) | change
        write_config(tmp_path, {k: v for k, v in config.items() if v is not None})
        with pytest.raises(SetupError, match=says.replace(".", r"\.")):
            LlamaConfig.read(tmp_path)

    def test_both_places_of_rope_theta_are_read(self, tmp_path: Path) -> None:
        llamas.write(Llama(theta=5e5), tmp_path)
        assert LlamaConfig.read(tmp_path).rope_theta == 5e5
        config = transformers_config(tmp_path)
        del config["rope_parameters"]
        write_config(tmp_path, config | {"rope_theta": 7e5})
        assert LlamaConfig.read(tmp_path).rope_theta == 7e5

    def test_a_missing_tensor_and_missing_weights_are_named(self, tmp_path: Path) -> None:
        llamas.write(Llama(), tmp_path)
        with pytest.raises(SetupError, match=r"have no model\.nothing"):
            Weights(tmp_path).tensor("model.nothing", (1,))
        (tmp_path / "model.safetensors").write_bytes(b"no safetensors")
        with pytest.raises(SetupError, match="can't be read"):
            Weights(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(SetupError, match="no weights as safetensors"):
            Weights(tmp_path)

    def test_a_tensor_of_another_shape_than_the_config_says_stops_the_start(self, tmp_path: Path) -> None:
        llamas.write(Llama(), tmp_path)
        write_config(tmp_path, transformers_config(tmp_path) | {"num_key_value_heads": 4})
        with pytest.raises(SetupError, match=r"k_proj.weight .* is \[32, 64\] .* config.json says \[64, 64\]"):
            Portable.of(tmp_path, dtype="float32", num_blocks=lambda _: 4)


def transformers_config(folder: Path) -> dict[str, Any]:
    import json

    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def write_config(folder: Path, config: dict[str, Any]) -> None:
    import json

    (folder / "config.json").write_text(json.dumps(config))
