"""Packed weights that an earlier start kept: the same logits, nothing quantized again, and nothing stale or damaged used."""

import json
import logging
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama_serving.engine.batching import packed_copy
from llama_serving.engine.batching.backends import packed_weights
from llama_serving.engine.batching.backends.base import Rows
from llama_serving.engine.batching.backends.native import Native
from llama_serving.engine.batching.backends.selection import BackendRequest, BackendSelection
from llama_serving.engine.batching.checkpoint import CheckpointWeights, read_config
from llama_serving.engine.batching.factory import start
from llama_serving.engine.batching.packed_copy import PackedCopy
from llama_serving.settings import Settings
from tests.support import backends, llamas
from tests.support.llamas import SHAPES
from tests.support.rows import ids


@pytest.fixture(autouse=True)
def everything_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_copy, "LEAST", 0)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return llamas.write(SHAPES["heads of 64"], tmp_path / "model")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "packed"


def started(checkpoint: Path, folder: Path, quantization: str = "int4") -> Native:
    backends.needs(backends.instruction_set())
    config = read_config(checkpoint)
    selection = BackendSelection(BackendRequest("bfloat16", quantization=quantization), backends.kernels(""))
    copy = PackedCopy.of(checkpoint, quantization, folder)
    backend = selection.load(config, CheckpointWeights(checkpoint), lambda _: 4, copy)
    assert isinstance(backend, Native)
    return backend


def logits(backend: Native) -> Any:
    prompt = ids(random.Random(1), 20)
    return backend.forward([Rows(prompt, 0, [0], prefill=True, num_logits=1)])


def never(*_: Any) -> Any:
    raise AssertionError("it is packed again")


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_second_start_packs_nothing_and_computes_the_same(
    checkpoint: Path, folder: Path, quantization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = logits(started(checkpoint, folder, quantization))
    monkeypatch.setattr(packed_weights.PackedWeights, "_pack", never)
    assert torch.equal(logits(started(checkpoint, folder, quantization)), first)
    assert len(list(folder.iterdir())) == 1


def test_another_quantization_has_a_copy_of_its_own(checkpoint: Path, folder: Path) -> None:
    started(checkpoint, folder, "int8")
    started(checkpoint, folder, "int4")
    assert len(list(folder.iterdir())) == 2


def test_a_checkpoint_that_changed_is_packed_again(checkpoint: Path, folder: Path) -> None:
    """Its files have the same sizes and times; one tensor differs."""
    before = logits(started(checkpoint, folder))
    (weights,) = checkpoint.glob("*.safetensors")
    status = weights.stat()
    tensors = load_file(weights)
    tensors["model.layers.0.mlp.down_proj.weight"] *= 2
    save_file(tensors, weights, metadata={"format": "pt"})
    assert weights.stat().st_size == status.st_size
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not torch.equal(logits(started(checkpoint, folder)), before)
    assert len(list(folder.iterdir())) == 1, "the older copy is gone"


def test_a_copy_is_found_again_by_content_and_place(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    started(checkpoint, folder)
    elsewhere = shutil.copytree(checkpoint, tmp_path / "elsewhere" / "model")
    assert PackedCopy.of(checkpoint, "int4", folder).path.exists()
    assert not PackedCopy.of(elsewhere, "int4", folder).path.exists()


@pytest.mark.parametrize("damage", ["torn", "another file", "other shapes"])
def test_a_damaged_copy_is_packed_again(
    checkpoint: Path, folder: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = logits(started(checkpoint, folder))
    (path,) = folder.iterdir()
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "another file":
        path.write_bytes(b"no safetensors")
    else:
        save_file(
            {name: tensor[:1].clone() for name, tensor in load_file(path).items() if tensor.dim() > 1}, path
        )
    assert torch.equal(logits(started(checkpoint, folder)), first)
    assert ("can't be read and are packed again" in caplog.text) == (damage != "other shapes")


@pytest.mark.parametrize("fault", ["no room", "no folder"])
def test_where_nothing_can_be_kept_the_model_serves(
    checkpoint: Path,
    folder: Path,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if fault == "no room":
        monkeypatch.setattr(packed_copy, "SPARE", 1 << 60)
    else:
        folder.parent.parent.mkdir(exist_ok=True)
        folder.parent.write_text("a file")
    with caplog.at_level(logging.WARNING):
        assert len(logits(started(checkpoint, folder)))
    assert "packed weights are not kept for the next start: " in caplog.text
    assert not folder.exists() or not list(folder.iterdir())


def test_small_weights_are_not_kept(checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_copy, "LEAST", 1 << 40)
    started(checkpoint, folder)
    assert not folder.exists()


def test_a_stray_file_beside_the_weights_keeps_nobody_from_serving(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backends.needs(backends.instruction_set())
    (checkpoint / "notes.safetensors").write_text("no tensors")
    (weights,) = checkpoint.glob("model*.safetensors")
    places = dict.fromkeys(load_file(weights), weights.name)
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    engine = start(
        checkpoint, dtype="bfloat16", context=64, settings=Settings(quantization="int4", kv_memory=1 << 24)
    )
    engine.close()
    assert "packed weights are neither read nor kept: " in caplog.text
