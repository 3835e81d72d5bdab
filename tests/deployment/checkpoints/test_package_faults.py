"""Interruptions of `package`, full disks and checkpoints that cannot be packaged."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llama_endpoints.checkpoints.package as packaging
from llama_endpoints.checkpoints.inspection import inspect
from llama_endpoints.checkpoints.package import package
from llama_endpoints.nano import FOLDER
from llama_serving.catalog import NANO
from llama_serving.errors import SetupError
from tests.support.packages import SHAPE, WEIGHTS, copied, failing, linked, run, told, tree

CODE_LLAMA = "codellama/CodeLlama-7b-hf"


def record(model: Path) -> Any:
    return json.loads((model / "artifacts" / "llama" / "llama_model.json").read_text(encoding="utf-8"))


class TestFaults:
    """One sentence, exit code 2, nothing left: through the command."""

    @pytest.mark.parametrize("output", ["model", "made/for/it/model"])
    @pytest.mark.parametrize(
        ("arguments", "damage", "sentence"),
        [
            pytest.param(
                ["--variant", "nano"],
                shutil.rmtree,
                "{folder} is not a folder. Pass the folder of a checkpoint, or nano.",
                id="wrong folder",
            ),
            pytest.param(
                ["--variant", "nano"],
                lambda folder: (folder / "config.json").unlink(),
                "{folder} has no config.json, so it is no checkpoint. Name the folder that holds one.",
                id="no checkpoint",
            ),
            pytest.param(
                ["--variant", "nano"],
                lambda folder: (folder / "tokenizer.json").unlink(),
                "{folder} has no tokenizer.json. tokenizer.model alone gives other token ids; download "
                "tokenizer.json from the model's hub page.",
                id="no tokenizer",
            ),
            pytest.param(
                ["--variant", "nano"],
                lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"),
                "{folder} has its weights only as pickles (pytorch_model.bin), and loading a pickle runs "
                "whatever code is in it. Use the safetensors files of the same model.",
                id="only pickles",
            ),
            pytest.param(
                ["--variant", CODE_LLAMA],
                lambda _: None,
                f"{{folder}} is not {CODE_LLAMA}: its config has layers {SHAPE.layers} instead of 32, hidden "
                f"{SHAPE.hidden} instead of 4096, ffn {SHAPE.ffn} instead of 11008, heads {SHAPE.heads} instead "
                f"of 32, kv_heads {SHAPE.kv_heads} instead of 32, vocab {SHAPE.vocab} instead of 32016, "
                "tied_embeddings True instead of False. Name the right --variant.",
                id="another shape",
            ),
            pytest.param(
                ["--variant", "CodeLlama-7b-hf"],
                lambda _: None,
                "CodeLlama-7b-hf is not in the catalog: `llama-endpoints models` lists it. For a checkpoint "
                "outside it, use --dialog and --infill instead of --variant. Did you mean "
                "codellama/CodeLlama-7b-hf?",
                id="unknown variant",
            ),
            pytest.param(
                [],
                lambda _: None,
                "Unknown model {folder}. Pass --variant with a name from `llama-endpoints models`, or "
                "--dialog and --infill for a checkpoint outside the catalog.",
                id="no variant",
            ),
            pytest.param(
                ["--dialog", "none"],
                lambda _: None,
                "Unknown model {folder}. Pass --variant with a name from `llama-endpoints models`, or "
                "--dialog and --infill for a checkpoint outside the catalog.",
                id="half of what describes it",
            ),
            pytest.param(
                ["--variant", "nano", "--infill", "none", "--max-context", "4096"],
                lambda _: None,
                "--variant describes the model completely, but --infill, --max-context describes one outside the catalog. "
                "Use one or the other.",
                id="a variant and a description",
            ),
            pytest.param(
                ["--dialog", "none", "--infill", "none"],
                lambda folder: edit_config(folder, dtype="int8"),
                "checkpoint has weights in int8, which cannot be served. Choose a type with --dtype.",
                id="a dtype that is none",
            ),
            pytest.param(
                ["--dialog", "none", "--infill", "none"],
                lambda folder: edit_config(folder, dtype="auto"),
                "checkpoint has weights in auto, which cannot be served. Choose a type with --dtype.",
                id="a dtype that is any",
            ),
            pytest.param(
                ["--dialog", "none", "--infill", "none", "--infill-order", "spm"],
                lambda _: None,
                "checkpoint has no infilling. Remove --infill-order.",
                id="an order of nothing",
            ),
        ],
    )
    def test_the_command_refuses_in_one_sentence(
        self,
        tmp_path: Path,
        nano_model: Path,
        *,
        arguments: list[str],
        damage: Callable[[Path], object],
        sentence: str,
        output: str,
    ) -> None:
        folder = linked(tmp_path / "checkpoint", nano_model)
        desk = tmp_path / "desk"
        desk.mkdir()
        damage(folder)
        result = run("package", "--checkpoint", folder, *arguments, "--output", desk / output)
        assert result.exit_code == 2
        assert told(result) == ["Error: " + sentence.format(folder=folder)]
        assert result.stdout == ""
        assert tree(desk) == {}

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
    @pytest.mark.parametrize("step", ["_save", "_place_weights", "_put"])
    def test_no_step_leaves_anything_behind(
        self, desk: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
    ) -> None:
        monkeypatch.setattr(packaging, step, failing(number))
        result = run("package", "--checkpoint", "nano", "--output", desk / "made" / "model")
        assert result.exit_code == 2
        assert told(result) == [
            f"Error: Cannot write {desk / 'made' / 'model'}: {os.strerror(number)}. Nothing was left behind."
        ]
        assert tree(desk) == {}

    @pytest.mark.parametrize(
        ("cause", "sentence"),
        [
            (OSError(errno.ENOSPC, "disk full"), ": disk full. Nothing was left behind."),
            (ValueError("no such thing"), "MLflow could not write the model: wrapped"),
        ],
    )
    def test_what_mlflow_wraps_is_unwrapped(
        self, desk: Path, monkeypatch: pytest.MonkeyPatch, cause: Exception, sentence: str
    ) -> None:
        def save_model(path: Path, **_: object) -> None:
            path.mkdir()
            raise RuntimeError("wrapped") from cause

        monkeypatch.setattr("llama_serving.hosts.mlflow_pyfunc.save_model", save_model)
        with pytest.raises(SetupError, match=sentence):
            package(inspect(FOLDER, NANO), desk / "model")
        assert tree(desk) == {}

    def test_a_fault_that_is_ours_leaves_nothing_either(
        self, desk: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(packaging, "_put", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            package(inspect(FOLDER, NANO), desk / "made" / "model")
        assert tree(desk) == {}

    def test_warnings_are_told_and_recorded(self, tmp_path: Path, desk: Path) -> None:
        folder = copied(tmp_path / "checkpoint")
        edit_config(folder, rope_theta=1e4, rope_parameters=None, max_position_embeddings=512)
        result = run("package", "--checkpoint", folder, "--variant", "nano", "--output", desk / "model")
        assert result.exit_code == 0
        used = "the checkpoint's own value is used"
        assert told(result) == [
            f"Warning: rope_theta is 10000 in config.json, 1e+06 in the catalog: {used}.",
            f"Warning: max_position_embeddings is 512 in config.json, 2048 in the catalog: {used}.",
        ]
        row = record(desk / "model")["variant"]
        assert (row["rope_theta"], row["trained_positions"]["value"]) == (1e4, 512)


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
