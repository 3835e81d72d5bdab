"""The portable backend: transformers' logits, and what it does not copy; test_backends.py has what holds for all."""

import random
import resource
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llama_endpoints.nano import FOLDER as NANO
from llama_serving.engine.batching.backends.base import Rows
from llama_serving.engine.batching.backends.portable import Portable
from llama_serving.engine.batching.checkpoint import CheckpointWeights, read_config
from llama_serving.errors import SetupError
from tests.support import llamas
from tests.support.llamas import SHAPES, Llama
from tests.support.rows import Cache, ids

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


def test_every_token_of_a_prompt_has_transformers_logits(backend: Portable, model: Any) -> None:
    rng = random.Random(1)
    prompt, blocks = ids(rng, 90), Cache(backend, rng).blocks(90)
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0]
    for end in (1, 2, 16, 17, 31, 32, 33, 64, 90):
        found = backend.forward([Rows(prompt[:end], 0, blocks, prefill=True, num_logits=1)])
        torch.testing.assert_close(found[0], expected[end - 1], atol=2e-4, rtol=2e-4)


def test_every_generated_token_has_transformers_logits(backend: Portable, model: Any) -> None:
    rng = random.Random(2)
    text, blocks = ids(rng, 80), Cache(backend, rng).blocks(80)
    with torch.inference_mode():
        expected = model(torch.tensor([text])).logits[0]
    backend.forward([Rows(text[:40], 0, blocks, prefill=True, num_logits=0)])
    for at in range(40, 80):
        found = backend.forward([Rows(text[at : at + 1], at, blocks, prefill=False, num_logits=1)])
        torch.testing.assert_close(found[0], expected[at], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("count", [40, 512])
def test_blocks_that_lie_side_by_side_give_the_same_without_a_copy(
    folder: Path, dtype: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Portable.of(folder, dtype=dtype, num_blocks=lambda _: 100)
    prompt, next_ = ids(random.Random(5), count), [7]
    copied: list[int] = []
    select = torch.index_select

    def counted(tensor: torch.Tensor, dim: int, index: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        copied.append(len(index))
        return select(tensor, dim, index, out=out)

    monkeypatch.setattr(torch, "index_select", counted)
    results, copies = [], []
    for blocks in (list(range(3, 37)), [*range(99, 66, -1), 0]):
        copied.clear()
        first = backend.forward([Rows(prompt, 0, blocks, prefill=True, num_logits=1)])
        second = backend.forward([Rows(next_, count, blocks, prefill=False, num_logits=1)])
        results.append(torch.cat([first, second]))
        copies.append(len(copied))
    assert torch.equal(*results)
    layers, exact = backend.config.layers, dtype == "float32"
    # In float32 what is looked at is filled up to 512 tokens, and only copies fill up.
    assert copies[0] == (2 * layers * (1 if count == 512 else 2) if exact else 0)
    assert copies[1] == 4 * layers


def test_in_bf16_the_logits_are_near_those_of_transformers(tmp_path: Path) -> None:
    llamas.write(SHAPES["heads of 64"], tmp_path, dtype=torch.bfloat16)
    backend = Portable.of(tmp_path, dtype="bfloat16", num_blocks=lambda _: BLOCKS)
    exact = llamas.reference(tmp_path, torch.float32)
    rounded = llamas.reference(tmp_path, torch.bfloat16)
    rng = random.Random(6)
    prompt = ids(rng, 70)
    with torch.inference_mode():
        expected, theirs = (m(torch.tensor([prompt])).logits[0, -1].float() for m in (exact, rounded))
    ours = backend.forward([Rows(prompt, 0, Cache(backend, rng).blocks(70), prefill=True, num_logits=1)])[0]
    assert (ours - expected).abs().max() < 2 * (theirs - expected).abs().max()


class TestTheCheckpoint:
    def test_shards_are_found_by_the_index(self, tmp_path: Path) -> None:
        llamas.write(Llama(), tmp_path)
        llamas.reference(tmp_path).save_pretrained(tmp_path / "shards", max_shard_size="50KB")
        assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
        one, many = (
            Portable.of(f, dtype="float32", num_blocks=lambda _: 4) for f in (tmp_path, tmp_path / "shards")
        )
        rows = [Rows([5, 6, 7], 0, [1], prefill=True, num_logits=1)]
        assert torch.equal(one.forward(rows), many.forward(rows))

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"model_type": "mistral"}, "model_type llama, not mistral. Set LLAMA_ENGINE=pipeline"),
            ({"hidden_act": "gelu"}, "hidden_act silu, not gelu"),
            ({"attention_bias": True}, "attention_bias False, not True"),
            ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_type default, not linear"),
            ({"hidden_size": None}, "lacks hidden_size"),
        ],
    )
    def test_what_is_not_computed_is_refused(self, change: dict[str, Any], says: str, tmp_path: Path) -> None:
        llamas.write(Llama(), tmp_path)
        config = transformers_config(tmp_path) | change
        write_config(tmp_path, {k: v for k, v in config.items() if v is not None})
        with pytest.raises(SetupError, match=says.replace(".", r"\.")):
            read_config(tmp_path)

    def test_both_places_of_rope_theta_are_read(self, tmp_path: Path) -> None:
        llamas.write(Llama(theta=5e5), tmp_path)
        assert read_config(tmp_path).rope_theta == 5e5
        config = transformers_config(tmp_path)
        del config["rope_parameters"]
        write_config(tmp_path, config | {"rope_theta": 7e5})
        assert read_config(tmp_path).rope_theta == 7e5

    def test_a_missing_tensor_and_missing_weights_are_named(self, tmp_path: Path) -> None:
        llamas.write(Llama(), tmp_path)
        with pytest.raises(SetupError, match=r"have no model\.nothing"):
            CheckpointWeights(tmp_path).tensor("model.nothing", (1,))
        (tmp_path / "model.safetensors").write_bytes(b"no safetensors")
        with pytest.raises(SetupError, match="can't be read"):
            CheckpointWeights(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(SetupError, match="no weights as safetensors"):
            CheckpointWeights(tmp_path)

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


def test_a_step_takes_no_new_memory_for_what_it_gathers() -> None:
    """64 sequences: 32 MiB of keys and as many of values in each layer, which would be 16,384 pages a layer and step."""
    config = replace(read_config(NANO), layers=2, heads=16, kv_heads=16, head_dim=64)
    weights = SimpleNamespace(tensor=lambda _, shape: torch.full(shape, 0.01))
    backend = Portable(config, weights, dtype="bfloat16", num_blocks=lambda _: 64 * 16 + 1)
    step = [
        Rows(ids=(1,), start=255, blocks=range(1 + n, 64 * 16 + 1, 64), prefill=False, num_logits=1)
        for n in range(64)
    ]
    for _ in range(2):
        backend.forward(step)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    backend.forward(step)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 4096
