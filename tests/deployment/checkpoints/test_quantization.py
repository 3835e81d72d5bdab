"""Quantized checkpoints: each kind is taken, and what vLLM would not load is refused with one sentence."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from llama_endpoints.checkpoints.inspection import Checkpoint, inspect
from llama_endpoints.checkpoints.package import WeightsMode, package
from llama_endpoints.checkpoints.quantization import layout_of
from llama_endpoints.checkpoints.variants import custom_variant
from llama_endpoints.cli.main import main
from llama_serving.catalog import CATALOG, ModelVariant, Quantization
from llama_serving.engine.pipeline import PipelineEngine
from llama_serving.errors import SetupError
from llama_serving.model_files import ModelFiles
from llama_serving.service.service import Service
from llama_serving.settings import Settings
from tests.support import quantized

WEIGHTS = "model.safetensors"
MODULE = "model.layers.1.self_attn.k_proj"
GONE = object()

TensorChange = Callable[[Path], object]


def looked_at(folder: Path) -> Checkpoint:
    return inspect(folder, custom_variant(folder, dialog="none", infill="none"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each kind."""
    root = tmp_path_factory.mktemp("kinds")
    return {
        name: quantized.write(kind, root / str(number))
        for number, (name, kind) in enumerate(quantized.KINDS.items())
    }


@pytest.fixture
def copy(made: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one, to be changed."""

    def copied(name: str) -> Path:
        target = tmp_path / "checkpoint"
        target.mkdir()
        for path in made[name].iterdir():
            (target / path.name).write_bytes(path.read_bytes())
        return target

    return copied


def config_of(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return value


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The same with some keys replaced; `a.b` is a key in a key, and GONE takes it out."""
    for path, value in changes.items():
        *outer, last = path.split(".")
        inner = values
        for key in outer:
            inner = inner[key]
        inner[last] = value
        if value is GONE:
            del inner[last]
    return values


def said(**changes: Any) -> TensorChange:
    """Changes in quantization_config; `__` stands for a key in a key."""

    def change(folder: Path) -> None:
        config = config_of(folder)
        changed(config["quantization_config"], {key.replace("__", "."): each for key, each in changes.items()})
        quantized.write_config(folder, config)

    return change


def tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> TensorChange:
    def change(folder: Path) -> None:
        loaded = load_file(folder / WEIGHTS)
        edit(loaded)
        save_file(loaded, folder / WEIGHTS)

    return change


def without(part: str) -> TensorChange:
    return tensors(lambda all_: all_.pop(f"{MODULE}.{part}"))


def in_place_of(part: str, make: Callable[[torch.Tensor], torch.Tensor]) -> TensorChange:
    name = f"{MODULE}.{part}"
    return tensors(lambda all_: all_.update({name: make(all_[name]).contiguous()}))


@pytest.mark.parametrize(
    ("name", "expected", "text"),
    [
        ("awq", Quantization("awq", 4, group_size=32), "awq int4 in groups of 32"),
        ("awq, a group a row", Quantization("awq", 4), "awq int4"),
        ("gptq int4", Quantization("gptq", 4, group_size=32), "gptq int4 in groups of 32"),
        ("gptq int8", Quantization("gptq", 8, group_size=32), "gptq int8 in groups of 32"),
        ("packed int4 with zero points", Quantization("compressed-tensors", 4, group_size=32),
         "compressed-tensors int4 in groups of 32"),
        ("packed int8", Quantization("compressed-tensors", 8, group_size=32),
         "compressed-tensors int8 in groups of 32"),
        ("int8 by rows", Quantization("compressed-tensors", 8, activations="int8"),
         "compressed-tensors int8, activations int8"),
        ("fp8 by rows", Quantization("compressed-tensors", 8, "float", activations="fp8"),
         "compressed-tensors fp8, activations fp8"),
        ("fp8 weights alone", Quantization("compressed-tensors", 8, "float"), "compressed-tensors fp8"),
    ],
)  # fmt: skip
def test_what_a_checkpoint_is_told_by_its_config(
    made: dict[str, Path], name: str, expected: Quantization, text: str
) -> None:
    row = looked_at(made[name]).variant
    assert (row.quantization, str(row.quantization)) == (expected, text)
    assert ModelVariant.from_dict(json.loads(json.dumps(row.to_dict()))) == row


@pytest.mark.parametrize("name", quantized.KINDS)
def test_each_kind_is_taken_and_none_of_its_tensors_may_be_missing(
    made: dict[str, Path], copy: Callable[[str], Path], name: str
) -> None:
    assert looked_at(made[name]).variant.quantization is not None
    parts = {key.rpartition(".")[2] for key in load_file(made[name] / WEIGHTS) if key.startswith(MODULE)}
    folder = copy(name)
    for part in parts - {"g_idx"}:
        (folder / WEIGHTS).write_bytes((made[name] / WEIGHTS).read_bytes())
        without(part)(folder)
        with pytest.raises(SetupError, match=rf"{MODULE}\.{part} is missing; it should be"):
            looked_at(folder)


def test_rows_of_before_have_no_quantization() -> None:
    row = CATALOG["codellama/CodeLlama-7b-hf"]
    old = row.to_dict()
    assert old.pop("quantization") is None
    assert ModelVariant.from_dict(old) == row


FAULTS: dict[str, tuple[str, TensorChange, str]] = {
    "another method": ("awq", said(quant_method="bitsandbytes"),
                       "has quant_method 'bitsandbytes'; it must be one of awq, gptq, compressed-tensors. Use a"),
    "no method": ("gptq int4", said(quant_method=GONE), "has quant_method missing; it must be one of awq, gptq"),
    "AWQ in 8 bits": ("awq", said(bits=8), "has bits 8; it must be 4"),
    "AWQ in True bits": ("gptq int4", said(bits=True), "has bits True; it must be 4 or 8"),
    "AWQ as text": ("awq", said(bits="4"), "has bits '4'; it must be 4"),
    "AWQ without zero points": ("awq", said(zero_point=False), "has zero_point False; it must be true"),
    "AWQ for another kernel": ("awq", said(version="gemv"), "has version 'gemv'; it must be \"gemm\""),
    "AWQ with a quantized head": ("awq", said(lm_head=True), "has lm_head True; it must be absent"),
    "odd groups": ("awq", said(group_size=48), "has group_size 48; it must be 32 or 64 or 128 or -1"),
    "groups of another size": ("awq", said(group_size=64),
                               ".qzeros has the shape (4, 16); it should be (2, 16)"),
    "names that are none": ("awq", said(modules_to_not_convert=[3]), "must be a list of names"),
    "a part of a fused layer": ("awq", said(modules_to_not_convert=["k_proj"]),
                                "leaves k_proj of model.layers.0.self_attn unquantized, but not all of q_proj, k_proj"),
    "a layer left out that isn't": ("awq", said(modules_to_not_convert=["mlp"]),
                                    "mlp.gate_proj.weight is missing"),
    "GPTQ in 3 bits": ("gptq int4", said(bits=3), "has bits 3; it must be 4 or 8"),
    "GPTQ asymmetric": ("gptq int4", said(sym=False), "has sym False; it must be true"),
    "GPTQ in order": ("gptq int4", said(desc_act=True), "has desc_act True; it must be false (or group_size -1)"),
    "GPTQ as Marlin": ("gptq int4", said(is_marlin_format=True), "has is_marlin_format True; it must be absent"),
    "GPTQ of many kinds": ("gptq int4", said(dynamic={"+:mlp": {"bits": 8}}), "must be absent. Use a checkpoint that"),
    "GPTQ 8 said, 4 there": ("gptq int4", said(bits=8), ".qweight has the shape (16, 128); it should be (32, 128)"),
    "GPTQ in an order of its own": ("gptq int4", in_place_of("g_idx", lambda g: g.flip(0)),
                                    "k_proj.g_idx reorders the weights (desc_act)"),
    "GPTQ with biases": ("gptq int4", tensors(lambda all_: all_.update({f"{MODULE}.bias": torch.ones(128)})),
                         "k_proj.bias is not zero, but no Llama has biases"),
    "another format": ("packed int4", said(format="nvfp4-pack-quantized"),
                       "must be pack-quantized or int-quantized or float-quantized"),
    "two groups": ("packed int4", said(config_groups__group_1={}), "has 2 config_groups; it must be one"),
    "no groups": ("packed int4", said(config_groups=GONE), "has config_groups missing; it must be an object"),
    "other targets": ("packed int4", said(config_groups__group_0__targets=["re:.*q_proj"]), 'must be ["Linear"]'),
    "5 bits": ("packed int4", said(config_groups__group_0__weights__num_bits=5), "has num_bits 5; it must be 4 or 8"),
    "8 bits with zero points": ("packed int8", said(config_groups__group_0__weights__symmetric=False),
                                "has symmetric False; it must be true"),
    "order by groups": ("packed int4", said(config_groups__group_0__weights__actorder="group"),
                        "has actorder 'group'; it must be null, weight or static"),
    "packed with activations": (
        "packed int4",
        said(config_groups__group_0__input_activations={"num_bits": 8, "type": "int"}),
        "quantizes activations in addition to packed weights",
    ),
    "int8 without activations": ("int8 by rows", said(config_groups__group_0__input_activations=None),
                                 "int8 without input_activations, which vLLM accepts only as pack-quantized"),
    "rounded outputs": ("int8 by rows", said(config_groups__group_0__output_activations={"num_bits": 8}),
                        "output_activations"),
    "blocks of another size": ("fp8 by blocks", said(config_groups__group_0__weights__block_structure=[64, 64]),
                               "must be [128, 128]"),
    "keys and values": ("fp8 by rows", said(kv_cache_scheme={"num_bits": 8}), "LLAMA_VLLM_KV_DTYPE=fp8 for an"),
    "sparse": ("packed int4", said(sparsity_config={"format": "sparse-24"}), "vLLM no longer supports sparse weights"),
    "transformed": ("packed int4", said(transform_config={"config_groups": {}}), "has transform_config"),
    "a pattern without end": ("packed int4", said(ignore=["re:(a+)+$"]), "not a supported regular expression"),
    "a pattern that takes for ever": ("packed int4", said(ignore=["re:" + ".*" * 90 + "!"]), "not a supported regular expression"),
    "a broken pattern": ("packed int4", said(ignore=["re:[a"]), "not a supported regular expression"),
    "a head that is quantized": (
        "packed int4",
        tensors(lambda all_: all_.update({"lm_head.weight_packed": all_.pop("lm_head.weight")})),
        "lm_head.weight is missing",
    ),
    "weights of another type": ("int8 by rows", in_place_of("weight", lambda w: w.float()),
                                "k_proj.weight is of F32; it should be of I8"),
    "scales of another type": ("packed int4", in_place_of("weight_scale", lambda s: s.int()),
                               "k_proj.weight_scale is of I32; it should be of BF16 or F16 or F32"),
    "another original shape": ("packed int4", in_place_of("weight_shape", lambda s: s * 2),
                               "k_proj.weight_shape says 256 x 256, but weight_packed has another shape"),
    "numbers are words": ("awq", in_place_of("qweight", lambda q: q.short()), "is of I16; it should be of I32"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "change", "told"), FAULTS.values(), ids=FAULTS)
def test_what_vllm_would_not_load_is_refused(
    copy: Callable[[str], Path], name: str, change: TensorChange, told: str
) -> None:
    folder = copy(name)
    looked_at(folder)
    change(folder)
    with pytest.raises(SetupError, match=re.escape(told)) as refusal:
        looked_at(folder)
    assert "\n" not in str(refusal.value)


def test_a_config_that_is_no_object_is_refused() -> None:
    with pytest.raises(SetupError, match="the config is not an object"):
        layout_of([], "the config")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("awq", said(modules_to_not_convert=["self_attn"])),
        ("gptq int4", said(modules_in_block_to_quantize=[["mlp.gate_proj", "mlp.up_proj"], ["mlp.down_proj"]])),
        ("packed int4", said(ignore=["lm_head", "re:.*self_attn.*"])),
        ("int8 by rows", said(ignore=[f"model.layers.{n}.self_attn.{m}_proj" for n in (0, 1) for m in "qkvo"])),
    ],
)
def test_layers_may_be_left_out(copy: Callable[[str], Path], name: str, change: TensorChange) -> None:
    folder, plain = copy(name), torch.zeros(128, 128, dtype=torch.bfloat16)
    change(folder)
    with pytest.raises(SetupError, match=r"self_attn\.q_proj\.weight"):
        looked_at(folder)

    def unquantized(all_: dict[str, torch.Tensor]) -> None:
        for key in [key for key in all_ if ".self_attn." in key]:
            del all_[key]
        for layer in (0, 1):
            all_ |= {f"model.layers.{layer}.self_attn.{m}_proj.weight": plain.clone() for m in "qkvo"}

    tensors(unquantized)(folder)
    assert looked_at(folder).variant.quantization is not None


def test_plain_weights_must_be_floating_point(copy: Callable[[str], Path]) -> None:
    folder = copy("int8 by rows")
    config = config_of(folder)
    del config["quantization_config"]
    quantized.write_config(folder, config)
    with pytest.raises(SetupError, match=r"q_proj.weight is of I8; it should be of BF16 or F16 or F32"):
        looked_at(folder)


def test_float32_is_no_type_to_serve_them_in(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("awq")
    quantized.write_config(folder, config_of(folder) | {"dtype": "float32"})
    with pytest.raises(
        SetupError, match=r"quantized \(awq int4 in groups of 32\).* Pass one of these as --dtype"
    ):
        package(looked_at(folder), tmp_path / "model")


OLD = {
    "gptq int4": ("quantize_config.json", {"bits": 4, "group_size": 32, "desc_act": False, "sym": True}),
    "awq": ("quant_config.json", {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"}),
}


@pytest.mark.parametrize("name", OLD)
def test_what_an_older_file_says_goes_into_the_packaged_config(
    copy: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    folder, (file, content) = copy(name), OLD[name]
    config = config_of(folder)
    expected = config.pop("quantization_config")["quant_method"]
    quantized.write_config(folder, config)
    (folder / file).write_text(json.dumps(content), encoding="utf-8")
    found = looked_at(folder)
    package(found, tmp_path / "model")
    inside = ModelFiles.find(tmp_path / "model").checkpoint
    assert config_of(inside) == config | {"quantization_config": {"quant_method": expected, **content}}
    assert looked_at(inside).variant.quantization == found.variant.quantization
    with pytest.raises(SetupError, match="Use --weights link or copy"):
        package(found, tmp_path / "other", weights=WeightsMode.REFERENCE)
    assert not (tmp_path / "other").exists()


def test_older_compressed_tensors_say_it_under_another_key(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("packed int4")
    config = config_of(folder)
    config["compression_config"] = config.pop("quantization_config")
    quantized.write_config(folder, config)
    package(looked_at(folder), tmp_path / "model")
    inside = ModelFiles.find(tmp_path / "model").checkpoint
    assert config_of(inside)["quantization_config"] == config["compression_config"]


@pytest.fixture(scope="module")
def model(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("models") / "quantized"
    options = ("--dialog", "none", "--infill", "none", "--output", str(output))
    done = CliRunner().invoke(main, ["package", "--checkpoint", str(made["gptq int4"]), *options])
    assert done.exit_code == 0, done.stderr
    assert "(gptq int4 in groups of 32) as an MLflow model, " in done.stdout
    return output


class TestPackaged:
    def test_the_row_says_it(self, model: Path) -> None:
        assert ModelFiles.find(model).variant.quantization == Quantization("gptq", 4, group_size=32)
        assert "quantization: gptq int4 in groups of 32" in (model / "MLmodel").read_text(encoding="utf-8")

    def test_it_is_served_on_a_cpu(self, model: Path) -> None:
        if torch.cuda.is_available():
            pytest.skip("auto is another engine on a GPU")
        service = Service.start(ModelFiles.find(model), Settings())
        try:
            assert service.engine.stats().engine == "batching"
            assert service.engine.stats().alive
        finally:
            service.close()

    def test_the_engine_that_cannot_names_those_that_can(self, model: Path) -> None:
        with pytest.raises(
            SetupError, match=r"pipeline engine doesn't .* LLAMA_DTYPE=bfloat16.* LLAMA_ENGINE=vllm"
        ):
            Service.start(ModelFiles.find(model), Settings(engine="pipeline"))

    def test_the_pipeline_looks_before_it_loads(self, model: Path) -> None:
        with pytest.raises(SetupError, match="LLAMA_ENGINE=vllm"):
            PipelineEngine(ModelFiles.find(model).checkpoint, dtype="bfloat16")
