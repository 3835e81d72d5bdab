"""Adapters merged into a checkpoint: the very sums of `peft`, and nothing else than LoRA."""

import hashlib
import json
import math
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from llama_endpoints.checkpoints import logit_shift
from llama_endpoints.checkpoints import merge as merging
from llama_endpoints.checkpoints.adapter import read_adapter
from llama_endpoints.checkpoints.inspection import Checkpoint, inspect
from llama_endpoints.checkpoints.merge import merge
from llama_endpoints.checkpoints.merge_package import base_differs, open_adapter
from llama_endpoints.checkpoints.tensor_file import as_float32, from_float32
from llama_endpoints.checkpoints.variants import custom_variant
from llama_endpoints.cli.main import main
from llama_endpoints.nano import FOLDER
from llama_serving.engine.batching import logits
from llama_serving.errors import SetupError
from llama_serving.model_files import ModelFiles
from tests.support import llamas, quantized

LLAMA = replace(llamas.Llama(), vocab=4096)
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Options = Mapping[str, Any]

CASES: dict[str, Options] = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "all linear": {"target_modules": "all-linear"},
    "rslora": {"target_modules": ["o_proj"], "use_rslora": True, "lora_alpha": 3},
    "patterns": {
        "target_modules": ["q_proj", "down_proj"],
        "rank_pattern": {"down_proj": 2, "^model.layers.1.self_attn.q_proj": 6},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 1.5},
    },
    "patterns and rslora": {"target_modules": ["q_proj"], "use_rslora": True, "rank_pattern": {"q_proj": 9}},
    "one layer": {"target_modules": ["q_proj", "k_proj"], "layers_to_transform": [1]},
    "some left out": {"target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*layers\.0.*"},
    "a regular expression": {"target_modules": r".*mlp\.(up|gate)_proj"},
    "the embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "the head": {"target_modules": ["lm_head", "q_proj"]},
    "whole modules": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
    "whole embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
}


def base(folder: Path, dtype: str = "float32", llama: llamas.Llama = LLAMA) -> Checkpoint:
    """A random checkpoint."""
    llamas.write(llama, folder, dtype=DTYPES[dtype])
    shutil.copyfile(FOLDER / "tokenizer.json", folder / "tokenizer.json")
    return looked_at(folder)


def looked_at(folder: Path) -> Checkpoint:
    return inspect(folder, custom_variant(folder, dialog="none", infill="none"))


def train(checkpoint: Checkpoint, folder: Path, options: Options, seed: int = 7) -> Any:
    """An adapter with random factors, saved by peft itself; returns peft's model."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(llamas.reference(checkpoint.folder, checkpoint_dtype(checkpoint)), config)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    value.copy_(torch.randn_like(value) * 0.1)
        model.save_pretrained(folder)
    return model


def checkpoint_dtype(checkpoint: Checkpoint) -> torch.dtype:
    return DTYPES[checkpoint.variant.dtype]


def peft_merged(model: Any) -> dict[str, torch.Tensor]:
    """What peft's own `merge_and_unload` makes of it."""
    weights: dict[str, torch.Tensor] = model.merge_and_unload().state_dict()
    return weights


@pytest.mark.parametrize("name", CASES)
def test_the_sums_are_those_of_peft(tmp_path: Path, name: str) -> None:
    checkpoint = base(tmp_path / "base")
    model = train(checkpoint, tmp_path / "adapter", CASES[name])
    adapter = read_adapter(tmp_path / "adapter", checkpoint.variant.shape)
    merged = merge(checkpoint, adapter, tmp_path / "merged")
    before, after = load_file(tmp_path / "base" / WEIGHTS), load_file(tmp_path / "merged" / WEIGHTS)
    expected = peft_merged(model)
    assert after.keys() == before.keys()
    for key, value in after.items():
        assert value.dtype == before[key].dtype
        torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-6)
        assert torch.equal(value, before[key]) == (key not in merged.changes), key
    assert merged.changes
    key, change = next(iter(merged.changes.items()))
    moved, norm = (after[key] - before[key]).norm().item(), before[key].norm().item()
    assert math.isclose(change.relative, moved / norm, rel_tol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_sum_is_rounded_once_to_the_type_of_the_base(tmp_path: Path, dtype: str) -> None:
    checkpoint = base(tmp_path / "base", dtype)
    train(checkpoint, tmp_path / "adapter", {"target_modules": ["q_proj"]})
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    merge(checkpoint, read_adapter(tmp_path / "adapter", checkpoint.variant.shape), tmp_path / "merged")
    after = load_file(tmp_path / "merged" / WEIGHTS)
    for layer in (0, 1):
        module = f"model.layers.{layer}.self_attn.q_proj"
        a, b = (factors[f"base_model.model.{module}.lora_{one}.weight"].float() for one in "AB")
        whole = load_file(tmp_path / "base" / WEIGHTS)[f"{module}.weight"].float() + 2.0 * (b @ a)
        assert after[f"{module}.weight"].dtype == DTYPES[dtype]
        assert (after[f"{module}.weight"] == whole.to(DTYPES[dtype])).float().mean() > 0.999


def test_a_tensor_is_the_same_in_any_number_of_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = base(tmp_path / "base")
    train(checkpoint, tmp_path / "adapter", CASES["the embedding"])
    adapter = read_adapter(tmp_path / "adapter", checkpoint.variant.shape)
    merge(checkpoint, adapter, tmp_path / "one")
    monkeypatch.setattr(merging, "_BLOCK_VALUES", 700)
    monkeypatch.setattr(merging, "_CHUNK", 1000)
    merge(checkpoint, adapter, tmp_path / "many")
    one, many = load_file(tmp_path / "one" / WEIGHTS), load_file(tmp_path / "many" / WEIGHTS)
    for key, value in one.items():
        torch.testing.assert_close(value, many[key], rtol=1e-6, atol=1e-7)


def sharded(folder: Path) -> list[str]:
    """Splits the weights: the attention in one file, all else in another."""
    loaded = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    home = {key: names["self_attn" not in key] for key in loaded}
    for name in names:
        save_file({key: loaded[key] for key in loaded if home[key] == name}, folder / name, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": home}), encoding="utf-8")
    return names


def test_files_that_the_adapter_leaves_alone_are_linked(tmp_path: Path) -> None:
    base(tmp_path / "base")
    changed, kept = sharded(tmp_path / "base")
    checkpoint = looked_at(tmp_path / "base")
    train(checkpoint, tmp_path / "adapter", {"target_modules": ["q_proj"]})
    adapter = read_adapter(tmp_path / "adapter", checkpoint.variant.shape)
    told: list[int] = []
    for link in (True, False):
        folder = tmp_path / str(link)
        merge(checkpoint, adapter, folder, link=link, progress=told.append)
        assert (folder / kept).samefile(checkpoint.folder / kept) is link
        assert (folder / kept).read_bytes() == (checkpoint.folder / kept).read_bytes()
        assert not (folder / changed).samefile(checkpoint.folder / changed)
        header = (folder / changed).read_bytes()[:500]
        assert header == (checkpoint.folder / changed).read_bytes()[:500]
    assert sum(told) == 2 * checkpoint.weight_bytes


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def packaged(checkpoint: Checkpoint, adapter: Path, output: Path, *more: str) -> Result:
    described = ("--dialog", "none", "--infill", "none", *more)
    return run(
        "package", "--checkpoint", checkpoint.folder, "--adapter", adapter, "--output", output, *described
    )


def test_the_command_merges_packages_and_says_how_far_it_moved(tmp_path: Path) -> None:
    checkpoint = base(tmp_path / "base", "bfloat16")
    train(checkpoint, tmp_path / "adapter", {"target_modules": ["q_proj"]})
    (tmp_path / "desk").mkdir()
    done = packaged(checkpoint, tmp_path / "adapter", tmp_path / "desk" / "model")
    assert done.exit_code == 0, done.stderr
    files = ModelFiles.find(tmp_path / "desk" / "model")
    changes, moved, last = done.stdout.splitlines()
    assert re.fullmatch(
        r"The adapter changes 2 tensors, by \d+\.\d{3}% of their norm in the median and .*", changes
    )
    assert re.match(
        r"Logits after 8 fixed prompts moved by [\d.]+ on average and [\d.]+ at most \(KL .*float32\)", moved
    )
    assert last.endswith(f"{checkpoint.weight_bytes:,} bytes of weights merged and written.")
    record = json.loads((files.checkpoint.parent / "llama_model.json").read_text(encoding="utf-8"))["merged"]
    assert record["base"] == {WEIGHTS: digest(checkpoint.folder / WEIGHTS)}
    names = ("adapter_config.json", "adapter_model.safetensors")
    assert record["adapter"] == {name: digest(tmp_path / "adapter" / name) for name in names}
    assert set(record["relative_change"]) == {f"model.layers.{n}.self_attn.q_proj.weight" for n in (0, 1)}
    assert [path.name for path in (tmp_path / "desk").iterdir()] == ["model"]
    adapter = read_adapter(tmp_path / "adapter", checkpoint.variant.shape)
    merge(checkpoint, adapter, tmp_path / "again")
    assert (files.checkpoint / WEIGHTS).read_bytes() == (tmp_path / "again" / WEIGHTS).read_bytes()


def test_logits_are_those_of_transformers(tmp_path: Path) -> None:
    checkpoint = base(tmp_path / "base")
    prompts = [[1, 5, 9, 77], list(range(1, 60)), [1]]
    found = logits.next_token_logits(checkpoint.folder, prompts, "float32")
    model = llamas.reference(checkpoint.folder)
    with torch.inference_mode():
        expected = torch.stack([model(torch.tensor([ids])).logits[0, -1] for ids in prompts])
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)


def test_a_shift_is_what_it_is_defined_as() -> None:
    before = np.log(np.array([[0.5, 0.25, 0.25], [0.6, 0.3, 0.1]], np.float32))
    after = np.log(np.array([[0.25, 0.5, 0.25], [0.6, 0.3, 0.1]], np.float32))
    shift = logit_shift.compare(before, after, "float32")
    assert (shift.prompts, shift.changed) == (2, 1)
    assert math.isclose(shift.largest, math.log(2), rel_tol=1e-6)
    assert math.isclose(shift.mean, 2 * math.log(2) / 6, rel_tol=1e-6)
    assert math.isclose(shift.divergence, (0.5 * math.log(2) - 0.25 * math.log(2)) / 2, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("share", "dtype"), [(2.0, "float32"), (1.2, "bfloat16"), (0.5, None)], ids=["float32", "bfloat16", "none"]
)
def test_logits_are_compared_in_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, dtype: str | None
) -> None:
    checkpoint = base(tmp_path / "base")
    parameters = checkpoint.variant.shape.parameters
    monkeypatch.setattr(logits, "free_bytes", lambda: int(parameters * 2 * logits.SPARE * share * 1.1))
    found = logit_shift.measure(checkpoint.folder, checkpoint.folder, checkpoint.variant)
    if dtype is None:
        assert isinstance(found, str)
        assert found.startswith("Logits were not compared: that takes about ")
    else:
        assert isinstance(found, logit_shift.LogitShift)
        assert (found.dtype, found.largest, found.changed) == (dtype, 0.0, 0)


CONFIG_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"peft_type": "IA3"}, "has peft_type 'IA3'; only LORA adapters are merged"),
    "DoRA": ({"use_dora": True}, "has use_dora True: DoRA rescales each row"),
    "biases": ({"bias": "all"}, "has bias 'all'; it must be none"),
    "LoRA's biases": ({"lora_bias": True}, "has lora_bias True: no Llama has biases"),
    "turned weights": ({"fan_in_fan_out": True}, "has fan_in_fan_out True"),
    "more layers": ({"layer_replication": [[0, 1], [0, 2]]}, "has layer_replication"),
    "rows of the embedding": ({"trainable_token_indices": [1]}, "has trainable_token_indices [1]"),
    "aLoRA": ({"alora_invocation_tokens": [5]}, "has alora_invocation_tokens [5]"),
    "QALoRA": ({"use_qalora": True}, "has use_qalora True: what it does can't be merged, or is not known"),
    "a key of tomorrow": ({"use_zlora": 0.5}, "has use_zlora 0.5: what it does can't be merged, or is not known"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "has init_lora_weights 'pissa', which may have changed the base's"),
    "OLoRA": ({"init_lora_weights": "olora"}, "has init_lora_weights 'olora'"),
    "a pattern that is code": ({"rank_pattern": {"(a+)+b": 3}}, "rank_pattern with more than names"),
    "another rank": ({"r": 5}, "lora_A.weight of the shape (4, 64); with this base and adapter_config.json it must be (5"),
    "no rank": ({"r": 0}, "r 0; a positive integer is needed"),
    "a rank in words": ({"r": "4"}, "r '4'; a positive integer is needed"),
    "no alpha": ({"lora_alpha": None}, "lora_alpha None; a number is needed"),
    "alpha without end": ({"lora_alpha": float("inf")}, "lora_alpha inf; a number is needed"),
    "alpha beyond every float": ({"lora_alpha": 10**400}, "a number is needed"),
    "modules that aren't there": ({"target_modules": ["q_proj", "v_proj"]},
                                  "names model.layers.0.self_attn.v_proj among target_modules"),
    "modules_to_save is text": ({"modules_to_save": "lm_head"}, "modules_to_save that is no list of names"),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    """A base and an adapter."""
    root = tmp_path_factory.mktemp("trained")
    checkpoint = base(root / "base")
    train(checkpoint, root / "adapter", {"target_modules": ["q_proj"]})
    return checkpoint, root / "adapter"


@pytest.fixture
def adapter(trained: tuple[Checkpoint, Path], tmp_path: Path) -> Path:
    """A copy of the adapter, to be damaged."""
    return Path(shutil.copytree(trained[1], tmp_path / "copy"))


@pytest.mark.parametrize(("changes", "told"), CONFIG_FAULTS.values(), ids=CONFIG_FAULTS)
def test_what_cannot_be_merged_exactly_is_refused(
    trained: tuple[Checkpoint, Path], adapter: Path, changes: dict[str, Any], told: str
) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    with pytest.raises(SetupError, match=re.escape(told)):
        read_adapter(adapter, trained[0].variant.shape)


Q = "base_model.model.model.layers.0.self_attn.q_proj"


def rewritten(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        loaded = load_file(folder / "adapter_model.safetensors")
        change(loaded)
        save_file(loaded, folder / "adapter_model.safetensors")

    return damage


def truncated(folder: Path) -> None:
    raw = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(raw[:-1])


FILE_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "has no adapter_config.json, so it is no PEFT"),
    "half a config": (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json can't be read"),
    "a list": (lambda f: (f / "adapter_config.json").write_text("[]"), "is not a JSON object"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
    "a pickle": (lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
                 "only as a pickle (adapter_model.bin), and loading one runs whatever code is in it"),
    "cut short": (truncated, "is damaged or cut short"),
    "half a pair": (rewritten(lambda t: t.pop(f"{Q}.lora_B.weight")), "not just the two LoRA factors"),
    "DoRA's magnitudes": (rewritten(lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(64)})),
                          "which is no LoRA factor of a linear layer"),
    "a bias": (rewritten(lambda t: t.update({f"{Q}.bias": torch.ones(64)})), "which is no LoRA factor"),
    "another model's layer": (rewritten(lambda t: [t.update({k.replace("layers.0", "layers.9"): t.pop(k)})
                                                   for k in list(t) if "layers.0" in k]),
                              "changes model.layers.9.self_attn.q_proj, which this base doesn't have"),
    "a whole weight nobody named": (rewritten(lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(4096, 64)})),
                                    "no whole weight of it named in modules_to_save"),
    "another base": (rewritten(lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 96)})),
                     "of the shape (4, 96); with this base and adapter_config.json it must be (4, 64)"),
    "integers": (rewritten(lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 64).int()})), "of I32; it must"),
    "nothing": (rewritten(lambda t: t.clear()), "changes nothing"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "told"), FILE_FAULTS.values(), ids=FILE_FAULTS)
def test_an_adapter_that_is_damaged_or_anothers_is_refused(
    trained: tuple[Checkpoint, Path], adapter: Path, damage: Callable[[Path], object], told: str
) -> None:
    damage(adapter)
    with pytest.raises(SetupError, match=re.escape(told)):
        read_adapter(adapter, trained[0].variant.shape)


def test_a_shared_embedding_is_left_alone(tmp_path: Path) -> None:
    checkpoint = base(tmp_path / "base", llama=replace(LLAMA, tied=True))
    train(checkpoint, tmp_path / "adapter", CASES["the embedding"])
    with pytest.raises(SetupError, match="changes the embedding, which this base shares with its head"):
        read_adapter(tmp_path / "adapter", checkpoint.variant.shape)


def test_a_quantized_base_is_refused_and_nothing_is_left(tmp_path: Path, adapter: Path) -> None:
    folder = quantized.write(quantized.gptq(), tmp_path / "base")
    (tmp_path / "desk").mkdir()
    done = packaged(looked_at(folder), adapter, tmp_path / "desk" / "made" / "model")
    assert done.exit_code == 2
    assert "is quantized (gptq int4 in groups of 32), and an adapter cannot be added" in done.stderr
    assert list((tmp_path / "desk").iterdir()) == []


def test_a_sum_that_its_type_cannot_hold_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    checkpoint = base(tmp_path / "base", "float16")
    train(checkpoint, tmp_path / "adapter", {"target_modules": ["q_proj"], "lora_alpha": 10_000_000})
    (tmp_path / "desk").mkdir()
    done = packaged(checkpoint, tmp_path / "adapter", tmp_path / "desk" / "model")
    assert done.exit_code == 2
    assert "with the adapter added exceeds the range of F16" in done.stderr
    assert list((tmp_path / "desk").iterdir()) == []


def test_references_and_outputs_that_exist_are_refused_before_anything_is_merged(
    tmp_path: Path, trained: tuple[Checkpoint, Path]
) -> None:
    checkpoint, folder = trained
    done = packaged(checkpoint, folder, tmp_path / "model", "--weights", "reference")
    assert (done.exit_code, "Merged weights cannot be referenced" in done.stderr) == (2, True)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").touch()
    done = packaged(checkpoint, folder, tmp_path / "model")
    assert (done.exit_code, "already exists. Use another --output" in done.stderr) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_adapter_of_another_model_is_warned_of(trained: tuple[Checkpoint, Path], adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    named = {**config, "base_model_name_or_path": "codellama/CodeLlama-7b-hf"}
    path.write_text(json.dumps(named), encoding="utf-8")
    told = base_differs(trained[0], open_adapter(trained[0], adapter))
    assert told is not None
    assert told.startswith("the adapter was trained on codellama/CodeLlama-7b-hf, but the checkpoint is base")
    path.write_text(json.dumps({**config, "base_model_name_or_path": "/home/me/base"}), encoding="utf-8")
    assert base_differs(trained[0], open_adapter(trained[0], adapter)) is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_numbers_are_torchs(dtype: str) -> None:
    bits = torch.arange(0, 1 << 32, 65_521, dtype=torch.int64).to(torch.int32)
    values = torch.cat([bits.view(torch.float32), torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 65520.0, -0.0])])
    name = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}[dtype]
    expected = values.to(DTYPES[dtype])
    raw = from_float32(values.numpy(), name)
    found = torch.frombuffer(bytearray(raw), dtype=DTYPES[dtype])
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[~found.isnan()], expected[~expected.isnan()])
    back = as_float32(raw, name)
    assert np.array_equal(back[~np.isnan(back)], expected.float()[~expected.isnan()].numpy())
