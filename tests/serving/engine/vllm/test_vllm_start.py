"""The vllm engine's start, and that its process ends on request even if others hold copies of its pipe."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from llama_serving.catalog import NANO
from llama_serving.engine.vllm import engine, start
from llama_serving.engine.vllm.process import VllmProcess
from llama_serving.errors import SetupError
from llama_serving.settings import Settings
from tests.support.draws import PATIENCE_S


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    for name, size in (("a", 30), ("b", 12)):
        (tmp_path / f"{name}.safetensors").write_bytes(bytes(size))
    return tmp_path


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"quantization_config": {"bits": 4}}, 42),  # as they lie there
        ({}, NANO.shape.weight_bytes(4)),  # as they are widened
    ],
)
def test_weights_take_what_they_are_held_in(checkpoint: Path, config: dict[str, object], expected: int) -> None:
    (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert start._weight_bytes(checkpoint, NANO, 4) == expected


def test_a_budget_below_the_sequences_is_refused_before_anything_is_started(checkpoint: Path) -> None:
    settings = Settings(vllm="/nowhere", max_num_seqs=128, vllm_prefill_tokens=64)
    with pytest.raises(SetupError, match="LLAMA_VLLM_PREFILL_TOKENS=64 is below LLAMA_MAX_NUM_SEQS=128"):
        start.start(checkpoint, NANO, dtype="float32", context=64, settings=settings)


def test_sockets_have_room_in_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    for folder, expected in ((long, Path("/tmp")), (Path("/tmp"), Path("/tmp"))):
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        made = engine._folder()
        try:
            assert made.parent == expected
            assert made.stat().st_mode & 0o777 == 0o700
        finally:
            made.rmdir()


def test_a_copy_of_the_pipe_keeps_nothing_alive(tmp_path: Path) -> None:
    process = VllmProcess(("sleep", "600"), os.environ, folder=tmp_path)
    with subprocess.Popen(["sleep", "600"], pass_fds=[process._stdin.fileno()]) as copy:
        try:
            assert not process.wait(0.1)
            process.kill()
            assert process.wait(PATIENCE_S)
            assert process.code == 128 + 9
            process.kill()
            process.end()
        finally:
            copy.kill()
