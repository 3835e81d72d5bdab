"""A checkpoint that can't be served is refused with one sentence; one that says other things is believed."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llama_endpoints.checkpoints.inspection import inspect, read_config
from llama_endpoints.checkpoints.variants import custom_variant, variant_of
from llama_endpoints.download.resolve import folder_of
from llama_endpoints.nano import FOLDER
from llama_serving.catalog import CATALOG, DialogFormat, InfillTokens
from llama_serving.errors import SetupError
from tests.support.tiny import TINY, write_tiny

GONE = object()
"""In place of a value: the key is taken out."""

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
LAST = "model.layers.1.mlp.down_proj.weight"
SHAPE = TINY.shape
VOCAB = TINY.shape.vocab
INFILL = TINY.infill.value
assert INFILL is not None

Damage = Callable[[Path], object]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small checkpoint, to be damaged."""
    folder = tmp_path / "checkpoint"
    write_tiny(folder)
    return folder


def edit(folder: Path, name: str, **changes: object) -> None:
    path = folder / name
    value = json.loads(path.read_text(encoding="utf-8"))
    value.update(changes)
    kept = {key: item for key, item in value.items() if item is not GONE}
    path.write_text(json.dumps(kept), encoding="utf-8")


def config(**changes: object) -> Damage:
    return lambda folder: edit(folder, "config.json", **changes)


def written(name: str, content: str | bytes) -> Damage:
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(raw)


def removed(*names: str) -> Damage:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def cut(keep: Callable[[int], int]) -> Damage:
    """The weights, ending early."""

    def damage(folder: Path) -> None:
        raw = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(raw[: keep(len(raw))])

    return damage


def tensors(change: Callable[[dict[str, np.ndarray[Any, Any]]], object]) -> Damage:
    def damage(folder: Path) -> None:
        loaded = load_file(folder / WEIGHTS)
        change(loaded)
        save_file(loaded, folder / WEIGHTS)

    return damage


def header(shape: str, place: str) -> Damage:
    """Weights of one tensor, and a header that says this of it."""

    def damage(folder: Path) -> None:
        said = f'{{"{LAST}": {{"dtype": "F32", "shape": {shape}, "data_offsets": {place}}}}}'.encode()
        (folder / WEIGHTS).write_bytes(len(said).to_bytes(8, "little") + said + bytes(4))

    return damage


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def shards(folder: Path) -> list[str]:
    """Splits the weights in two, with an index, as the hub has large models."""
    loaded = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weight_map = {tensor: names[number % 2] for number, tensor in enumerate(sorted(loaded))}
    for name in names:
        save_file({tensor: loaded[tensor] for tensor in loaded if weight_map[tensor] == name}, folder / name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    return names


def index(change: Callable[[Path, list[str]], object]) -> Damage:
    return lambda folder: change(folder, shards(folder))


def renamed_shard(name: str) -> Damage:
    """One shard goes by another name, in the index too."""

    def damage(folder: Path, names: list[str]) -> None:
        (folder / names[0]).rename(folder / name)
        text = (folder / INDEX).read_text(encoding="utf-8")
        (folder / INDEX).write_text(text.replace(names[0], name), encoding="utf-8")

    return index(damage)


def special_tokens(change: Callable[[list[dict[str, Any]]], object]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "tokenizer.json"
        layout = json.loads(path.read_text(encoding="utf-8"))
        change(layout["added_tokens"])
        path.write_text(json.dumps(layout), encoding="utf-8")

    return damage


def renumber(content: str, number: int) -> Damage:
    def change(added: list[dict[str, Any]]) -> None:
        (token,) = (token for token in added if token["content"] == content)
        token["id"] = number

    return special_tokens(change)


def more_pieces(folder: Path) -> None:
    path = folder / "tokenizer.json"
    layout = json.loads(path.read_text(encoding="utf-8"))
    layout["model"]["vocab"]["llama"] = len(layout["model"]["vocab"])
    path.write_text(json.dumps(layout), encoding="utf-8")


FAULTS: dict[str, tuple[Damage, str]] = {
    "no config": (removed("config.json"), "has no config.json, so it is no checkpoint"),
    "config is a list": (written("config.json", "[1]"), "config.json is not a JSON object"),
    "config is half": (
        written("config.json", '{"model_type": "lla'),
        "config.json can't be read: Unterminated",
    ),
    "config is binary": (written("config.json", b"\xff\xfe{}"), "config.json can't be read: 'utf-8' codec"),
    "config is deep": (written("config.json", "[" * 100_000), "config.json can't be read: maximum recursion"),
    "another architecture": (config(model_type="mistral"), "says model_type mistral; only llama"),
    "no architecture": (config(model_type=GONE), "says model_type None; only llama"),
    "remote code": (config(auto_map={"AutoModel": "evil.Model"}), "auto_map, which names code to run"),
    "a size is missing": (config(hidden_size=GONE), "lacks hidden_size"),
    "a size is a string": (config(vocab_size="4096"), "has vocab_size '4096'; a positive integer"),
    "a size is true": (config(num_hidden_layers=True), "has num_hidden_layers True; a positive integer"),
    "a size is zero": (config(num_attention_heads=0), "has num_attention_heads 0; a positive integer"),
    "heads that don't divide": (
        config(num_attention_heads=3),
        "num_attention_heads 3 and num_key_value_heads 2",
    ),
    "another shape": (
        config(intermediate_size=180),
        f"is not nano: its config has ffn 180 instead of {SHAPE.ffn}",
    ),
    "two other sizes": (
        config(num_hidden_layers=3, vocab_size=1000),
        f"layers 3 instead of {SHAPE.layers}, vocab 1000",
    ),
    "untied": (config(tie_word_embeddings=False), "tied_embeddings False instead of True"),
    "theta is a string": (config(rope_theta="1e6", rope_parameters=GONE), "has rope_theta '1e6'; a positive"),
    "theta is negative": (config(rope_theta=-1), "has rope_theta -1; a positive number"),
    "positions are a string": (config(max_position_embeddings="2048"), "has max_position_embeddings '2048'"),
    "no tokenizer": (removed("tokenizer.json"), "has no tokenizer.json. tokenizer.model alone gives other"),
    "tokenizer is a list": (written("tokenizer.json", "[]"), "tokenizer.json can't be read as a tokenizer"),
    "tokenizer is half": (
        written("tokenizer.json", '{"version"'),
        "tokenizer.json can't be read as a tokenizer",
    ),
    "tokenizer too big": (more_pieces, f"tokenizer.json has {VOCAB + 1} pieces, the model {VOCAB}"),
    "other infilling id": (
        renumber("▁<MID>", INFILL.prefix - 1),
        f"infills with ▁<MID> as {INFILL.middle}; tokenizer.json has it as {INFILL.prefix - 1}",
    ),
    "no infilling token": (
        special_tokens(
            lambda added: added.pop(next(i for i, t in enumerate(added) if t["content"] == "▁<EOT>"))
        ),
        f"infills with ▁<EOT> as {INFILL.eot}; tokenizer.json has no such token",
    ),
    "no weights": (removed(WEIGHTS), "has no weights: model.safetensors is missing"),
    "only pickles": (pickled, r"only as pickles (pytorch_model.bin), and loading a pickle runs whatever code"),
    "weights are empty": (cut(lambda size: 0), "model.safetensors is damaged or cut short"),
    "weights end in the header": (cut(lambda size: 200), "model.safetensors is damaged or cut short"),
    "weights end in a tensor": (cut(lambda size: size // 2), "model.safetensors is damaged or cut short"),
    "weights lack a byte": (cut(lambda size: size - 1), "model.safetensors is damaged or cut short"),
    "a size beyond every number": (header("[1e999]", "[0, 4]"), "model.safetensors is damaged or cut short"),
    "a size that is no integer": (header("[1.0]", "[0, 4]"), "model.safetensors is damaged or cut short"),
    "a place that is no integer": (header("[1]", "[0.0, 4.0]"), "model.safetensors is damaged or cut short"),
    "a size below nothing": (header("[-1, -1]", "[0, 4]"), "model.safetensors is damaged or cut short"),
    "weights are a pickle": (written(WEIGHTS, b"\x80\x04N." * 99), "model.safetensors is damaged or cut short"),
    "a tensor is missing": (
        tensors(lambda t: t.pop(LAST)),
        f"{LAST} is missing; it should be ({SHAPE.hidden}, {SHAPE.ffn})",
    ),
    "a tensor is turned": (
        tensors(lambda t: t.update({LAST: np.ascontiguousarray(t[LAST].T)})),
        f"{LAST} has the shape ({SHAPE.ffn}, {SHAPE.hidden}); it should be ({SHAPE.hidden}, {SHAPE.ffn})",
    ),
    "a shard is missing": (
        index(lambda folder, names: (folder / names[1]).unlink()),
        "lacks model-00002-of-00002.safetensors, which the index names",
    ),
    "a shard is cut": (
        index(lambda folder, names: (folder / names[0]).write_bytes(b"")),
        "model-00001-of-00002.safetensors is damaged or cut short",
    ),
    "the index is half": (
        index(lambda folder, _: (folder / INDEX).write_text('{"weight_map": {')),
        "model.safetensors.index.json can't be read",
    ),
    "the index has no map": (
        index(lambda folder, _: edit(folder, INDEX, weight_map=GONE)),
        "must map tensors to safetensors files beside it",
    ),
    "the index has numbers": (
        index(lambda folder, _: edit(folder, INDEX, weight_map={"a": 1})),
        "must map tensors to safetensors files beside it",
    ),
    "the index leads elsewhere": (renamed_shard("../elsewhere.safetensors"), "safetensors files beside it"),
    "the index names a pickle": (renamed_shard("model.bin"), "must map tensors to safetensors files beside it"),
}


@pytest.mark.parametrize(("damage", "told"), FAULTS.values(), ids=FAULTS)
def test_what_cannot_be_served_is_refused_with_its_reason(checkpoint: Path, damage: Damage, told: str) -> None:
    inspect(checkpoint, TINY)
    damage(checkpoint)
    with pytest.raises(SetupError, match=re.escape(told)) as refusal:
        inspect(checkpoint, TINY)
    assert "\n" not in str(refusal.value)


def test_a_whole_checkpoint_is_taken_as_it_is(checkpoint: Path) -> None:
    found = inspect(checkpoint, TINY)
    assert found.variant == TINY
    assert found.warnings == ()
    assert found.weights == (checkpoint / WEIGHTS,)
    assert found.weight_bytes == (checkpoint / WEIGHTS).stat().st_size
    assert [path.name for path in found.small] == ["config.json", "tokenizer.json"]


def test_licences_and_generation_defaults_come_along(checkpoint: Path) -> None:
    for name in ("LICENSE", "USE_POLICY.md", "generation_config.json", "README.md", "consolidated.00.pth"):
        (checkpoint / name).write_text("{}")
    names = [path.name for path in inspect(checkpoint, TINY).small]
    assert names[2:] == ["LICENSE", "USE_POLICY.md", "generation_config.json"]


def test_shards_are_found_through_their_index(checkpoint: Path) -> None:
    names = shards(checkpoint)
    found = inspect(checkpoint, TINY)
    assert [path.name for path in found.weights] == [INDEX, *names]
    assert found.weight_bytes == sum((checkpoint / name).stat().st_size for name in [INDEX, *names])


def test_a_single_file_comes_before_an_index_as_in_transformers(checkpoint: Path) -> None:
    shutil.copyfile(checkpoint / WEIGHTS, checkpoint / "whole")
    shards(checkpoint)
    (checkpoint / "whole").rename(checkpoint / WEIGHTS)
    assert inspect(checkpoint, TINY).weights == (checkpoint / WEIGHTS,)


@pytest.mark.parametrize(
    ("changes", "warnings", "expected"),
    [
        pytest.param(
            {"rope_theta": 1e4, "rope_parameters": GONE},
            ["rope_theta is 10000 in config.json, 1e+06 in the catalog"],
            {"rope_theta": 1e4},
            id="rope_theta",
        ),
        pytest.param(
            {"rope_theta": GONE, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            ["rope_theta is 500000 in config.json, 1e+06 in the catalog"],
            {"rope_theta": 5e5},
            id="rope_parameters",
        ),
        pytest.param(
            {"rope_theta": GONE, "rope_parameters": GONE},
            ["rope_theta is 10000 in config.json, 1e+06 in the catalog"],
            {"rope_theta": 1e4},
            id="a config without theta means 1e4",
        ),
        pytest.param(
            {"max_position_embeddings": 1024},
            ["max_position_embeddings is 1024 in config.json, 2048 in the catalog"],
            {"trained_positions": 1024, "max_context": 2048},
            id="fewer positions",
        ),
        pytest.param(
            {"max_position_embeddings": 4096},
            ["max_position_embeddings is 4096 in config.json, 2048 in the catalog"],
            {"trained_positions": 4096, "max_context": 4096},
            id="more positions",
        ),
        pytest.param({"max_position_embeddings": GONE}, [], {}, id="no positions"),
    ],
)
def test_the_checkpoints_own_values_win_with_a_warning(
    checkpoint: Path, changes: dict[str, object], warnings: list[str], expected: dict[str, object]
) -> None:
    edit(checkpoint, "config.json", **changes)
    found = inspect(checkpoint, TINY)
    assert list(found.warnings) == [f"{text}: the checkpoint's own value is used" for text in warnings]
    row, nano = asdict(found.variant), asdict(TINY)
    for name, value in expected.items():
        fact = row.pop(name)
        nano.pop(name)
        assert (fact if isinstance(fact, float) else fact["value"]) == value
        assert isinstance(fact, float) or fact["source"] in (
            "config.json",
            "deployment/llama_endpoints/nano/config.json",
        )
    assert row == nano


def test_names_are_looked_up_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert folder_of("nano") == FOLDER
    assert all(variant_of(name) is row for name, row in CATALOG.items())
    with pytest.raises(SetupError, match="CodeLlama-7b is not in the catalog: `llama-endpoints models`"):
        variant_of("CodeLlama-7b")
    with pytest.raises(SetupError, match=r"absent is not a folder\. Pass the folder of a checkpoint, or nano"):
        folder_of("absent")
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="file is not a folder"):
        folder_of("file")
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano" / "MLmodel").touch()
    assert folder_of("nano") == FOLDER
    (tmp_path / "nano" / "tokenizer.json").touch()
    assert folder_of("nano") == Path("nano")
    with pytest.raises(SetupError, match=r"nano has no config\.json, so it is no checkpoint"):
        read_config(folder_of("nano"))


def described(folder: Path, **options: Any) -> Any:
    return custom_variant(folder, **{"dialog": "none", "infill": "none", **options})


def test_outside_the_catalog_the_options_say_what_the_config_does_not(checkpoint: Path) -> None:
    edit(checkpoint, "config.json", dtype="float16", rope_theta=2e5, rope_parameters=GONE)
    row = described(checkpoint, dialog="inst", infill="1,2,3,4", temperature=0.5, top_p=0.5, max_context=4096)
    assert row.shape == TINY.shape
    assert (row.name, row.dialog, row.dtype) == ("checkpoint", DialogFormat.INST, "float16")
    assert row.infill.value == InfillTokens(1, 2, 3, 4)
    assert (row.temperature, row.top_p, row.rope_theta) == (0.5, 0.5, 2e5)
    assert (row.trained_positions.value, row.max_context.value) == (2048, 4096)
    assert row.stop_ids == {2}


def test_outside_the_catalog_nothing_is_on_that_was_not_asked_for(checkpoint: Path) -> None:
    row = described(checkpoint)
    assert (row.dialog, row.infill.value, row.step_id) == (None, None, None)
    assert (row.temperature, row.top_p, row.max_context.value) == (0.2, 0.9, 2048)
    assert described(checkpoint, dialog="source", step_id=5).stop_ids == {2, 5}


@pytest.mark.parametrize(
    ("changes", "options", "told"),
    [
        ({}, {"dialog": "source"}, "--dialog source requires --step-id"),
        ({}, {"step_id": 5}, "--dialog source requires --step-id, and no other dialog takes it"),
        ({}, {"dialog": "source", "step_id": VOCAB}, f"--step-id must be an id below {VOCAB}, not {VOCAB}"),
        ({}, {"dialog": "source", "step_id": -1}, f"--step-id must be an id below {VOCAB}, not -1"),
        (
            {},
            {"infill": "1,2,3"},
            f"--infill must be none or four ids PRE,SUF,MID,EOT below {VOCAB}, not 1,2,3",
        ),
        ({}, {"infill": f"1,2,3,{VOCAB}"}, f"below {VOCAB}, not 1,2,3,{VOCAB}"),
        ({}, {"infill": "1,2,3,-4"}, f"below {VOCAB}, not 1,2,3,-4"),
        ({}, {"infill": "1,2,3,²"}, f"below {VOCAB}, not 1,2,3,²"),
        ({}, {"max_context": 100}, "--max-context 100 is below the 2048 positions of config.json"),
        ({"max_position_embeddings": GONE}, {}, "has no max_position_embeddings"),
        ({"max_position_embeddings": 0}, {}, "has max_position_embeddings 0; a positive integer"),
        ({"bos_token_id": None}, {}, f"has bos_token_id None; one id below {VOCAB}"),
        ({"eos_token_id": [2, 3]}, {}, f"has eos_token_id [2, 3]; one id below {VOCAB}"),
        ({"eos_token_id": 32000}, {}, f"has eos_token_id 32000; one id below {VOCAB}"),
        ({"bos_token_id": True}, {}, f"has bos_token_id True; one id below {VOCAB}"),
    ],
)
def test_options_that_cannot_be_true_are_refused(
    checkpoint: Path, changes: dict[str, object], options: dict[str, object], told: str
) -> None:
    edit(checkpoint, "config.json", **changes)
    with pytest.raises(SetupError, match=re.escape(told)):
        described(checkpoint, **options)
