"""Quantized checkpoints on the CPU: each layout decodes to the weights it stands for, and both backends compute with them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama_serving.engine.batching.backends.base import Rows
from llama_serving.engine.batching.backends.native import Native
from llama_serving.engine.batching.checkpoint import CheckpointWeights, read_config
from llama_serving.engine.batching.factory import start
from llama_serving.engine.batching.quantized_checkpoint import Int4
from llama_serving.errors import SetupError
from llama_serving.sampling_params import SamplingParams
from llama_serving.settings import Settings
from tests.support import backends, llamas, quantized

LLAMA: Final = llamas.Llama(
    layers=2, hidden=128, ffn=256, heads=2, kv_heads=2, head_dim=64, vocab=512, positions=512
)
EXACT: Final = ("gptq int4", "gptq int4, a group a row", "packed int4", "packed int4, a group a row")
"""The kinds whose integers are the kernels' own."""
MODULE: Final = "model.layers.1.mlp.down_proj"
SHAPE: Final = (LLAMA.hidden, LLAMA.ffn)
Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Returns a kind's folder, and that of the weights that it decodes to."""
    root = tmp_path_factory.mktemp("quantized")

    def folders(kind: str) -> tuple[Path, Path]:
        folder, plain = root / kind, root / f"{kind} plain"
        if not folder.exists():
            quantized.write(quantized.KINDS[kind], folder, llama=LLAMA, plain=plain)
        return folder, plain

    return folders


def logits(kind: str, folder: Path) -> torch.Tensor:
    backend = backends.make(kind, folder, 8)
    return backend.forward([Rows(list(range(3, 40)), 0, [1, 2, 3], prefill=True, num_logits=1)])[0].float()


@pytest.mark.parametrize("kind", quantized.KINDS)
def test_each_linear_layer_decodes_to_the_weights_that_it_stands_for(kind: str, made: Any) -> None:
    folder, plain = made(kind)
    expected = load_file(plain / "model.safetensors")
    weights = CheckpointWeights(folder)
    for name, each in expected.items():
        assert torch.equal(weights.tensor(name, tuple(each.shape)).float(), each), name


@pytest.mark.parametrize("kind", quantized.KINDS)
def test_integers_of_4_bits_without_zero_points_stay_what_they_are(kind: str, made: Any) -> None:
    folder, plain = made(kind)
    found = CheckpointWeights(folder).linear(f"{MODULE}.weight", SHAPE)
    assert isinstance(found, Int4) == (kind in EXACT)
    if isinstance(found, Int4):
        expected = load_file(plain / "model.safetensors")[f"{MODULE}.weight"]
        # The scales are rounded from float16's 11 bits to bfloat16's 8.
        torch.testing.assert_close(found.weight, expected, rtol=2**-8, atol=0)


@pytest.mark.parametrize("backend", ["portable", "native", "native int8", "native int4"])
@pytest.mark.parametrize("kind", quantized.KINDS)
def test_the_backends_compute_what_they_compute_with_the_decoded_weights(
    kind: str, backend: str, made: Any
) -> None:
    folder, plain = made(kind)
    if backend != "portable":
        backends.needs(backends.instruction_set())
    if backend == "portable" or kind not in EXACT:
        assert torch.equal(logits(backend, folder), logits(backend, plain))
    else:
        ours, expected = logits(backend, folder), logits("portable", plain)
        off = (ours - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        assert off < 0.1  # bfloat16's and int8's; a layer that is decoded wrongly makes it about 1


@pytest.mark.parametrize("kind", EXACT)
def test_the_kernels_get_the_checkpoints_own_integers(kind: str, made: Any) -> None:
    backends.needs(backends.instruction_set())
    folder, _ = made(kind)
    kept, asked = (backends.make(each, folder, 4) for each in ("native", "native int4"))
    assert isinstance(kept, Native)
    assert isinstance(asked, Native)
    assert kept.name == "native int4"
    assert {name: each.dtype for name, each in kept.packed.items() if "head" in name} == {
        "head": torch.bfloat16
    }
    for name in ("0.qkv", "0.o", "1.gate_up", "1.down"):
        assert kept.packed[name].dtype == torch.uint8
        for each in (name, f"{name}.scales"):
            assert torch.equal(kept.packed[each], asked.packed[each])


def test_an_engine_serves_such_a_checkpoint(made: Any) -> None:
    folder, plain = made("awq")
    texts = []
    for each in (folder, plain):
        engine = start(each, dtype="float32", context=64, settings=Settings(max_num_seqs=1))
        texts.append([token.id for token in engine.submit([5, 6, 7], SamplingParams(max_new_tokens=12))])
        engine.close()
    assert texts[0] == texts[1]


def config(**values: Any) -> Change:
    def change(of: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
        of["quantization_config"] = {**of["quantization_config"], **values}

    return change


def without(part: str) -> Change:
    def change(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{MODULE}.{part}"]

    return change


def instead(part: str, make: Callable[[Mapping[str, torch.Tensor]], torch.Tensor]) -> Change:
    def change(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{MODULE}.{part}"] = make(tensors)

    return change


def changed(folder: Path, to: Path, change: Change) -> Path:
    to.mkdir()
    of, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    change(of, tensors)
    (to / "config.json").write_text(json.dumps(of))
    save_file(
        {name: each.contiguous() for name, each in tensors.items()}, to / "model.safetensors", {"format": "pt"}
    )
    return to


REFUSED: Final[Mapping[str, tuple[str, Change, str]]] = {
    "another method": (
        "awq",
        config(quant_method="bitsandbytes"),
        "'bitsandbytes'; the batching engine decodes awq, ",
    ),
    "3 bits": (
        "gptq int4",
        config(bits=3),
        "weights of 3 bits in groups of 32; the batching engine decodes 4 and 8",
    ),
    "no object": ("awq", lambda of, _: of.update(quantization_config=4), "that is no object"),
    "no zero points": ("awq", without("qzeros"), "can't be decoded as awq: 'qzeros'. Download it again"),
    "half of the scales": (
        "awq",
        instead("scales", lambda t: t[f"{MODULE}.scales"][:1]),
        "can't be decoded as awq",
    ),
    "another shape": (
        "awq",
        instead("qweight", lambda t: t[f"{MODULE}.qweight"][:, :8]),
        "can't be decoded as awq",
    ),
    "a bias": ("gptq int4", instead("bias", lambda _: torch.ones(LLAMA.hidden)), "has a bias"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_decoded_is_refused_with_what_to_do(case: str, made: Any, tmp_path: Path) -> None:
    kind, change, says = REFUSED[case]
    folder = changed(made(kind)[0], tmp_path / "changed", change)
    with pytest.raises(SetupError, match=says):
        backends.make("portable", folder, 4)


def test_activation_order_is_decoded_by_its_index(made: Any, tmp_path: Path) -> None:
    folder, _ = made("gptq int4")
    order = torch.randperm(LLAMA.ffn, generator=torch.Generator().manual_seed(0))
    shuffled = changed(folder, tmp_path / "changed", instead("g_idx", lambda t: t[f"{MODULE}.g_idx"][order]))
    found = CheckpointWeights(shuffled).linear(f"{MODULE}.weight", SHAPE)
    integers = CheckpointWeights(folder).linear(f"{MODULE}.weight", SHAPE).integers
    scales = load_file(folder / "model.safetensors")[f"{MODULE}.scales"].float().T
    assert torch.equal(found, integers.float() * scales[:, order // 32])


def test_a_zero_bias_and_the_second_format_of_gptq_are_read(made: Any, tmp_path: Path) -> None:
    folder, plain = made("gptq int4")

    def change(of: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        of["quantization_config"]["checkpoint_format"] = "gptq_v2"
        for name in [name for name in tensors if name.endswith("qzeros")]:
            tensors[name] = tensors[name] + 0x11111111
        tensors[f"{MODULE}.bias"] = torch.zeros(LLAMA.hidden)

    found = CheckpointWeights(changed(folder, tmp_path / "changed", change)).tensor(f"{MODULE}.weight", SHAPE)
    assert torch.equal(found, load_file(plain / "model.safetensors")[f"{MODULE}.weight"])
    assert read_config(tmp_path / "changed").hidden == LLAMA.hidden
