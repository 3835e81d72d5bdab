"""Which model a checkpoint is: found in the catalog, or outside of it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llama_endpoints.checkpoints.inspection import Checkpoint, inspect
from llama_serving.catalog import NANO
from llama_serving.contract import azure
from llama_serving.errors import BadRequest, SetupError
from llama_serving.model_files import ModelFiles
from llama_serving.service.service import Service
from llama_serving.settings import Settings
from tests.support.packages import WEIGHTS, inside, run, told


@pytest.fixture(scope="module")
def own_model(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("models") / "mine"
    options = ["--dialog", "none", "--infill", "none", "--temperature", "0.7", "--dtype", "float32"]
    result = run("package", "--checkpoint", sharded, *options, "--output", output)
    assert result.exit_code == 0, result.stderr
    assert told(result) == []
    return output


class TestOutsideTheCatalog:
    def test_explicit_options_are_recorded(self, own_model: Path) -> None:
        row = ModelFiles.find(own_model).variant
        assert (row.name, row.dialog, row.infill.value) == ("mine", None, None)
        assert (row.temperature, row.top_p, row.dtype) == (0.7, 0.9, "float32")
        assert (row.trained_positions.value, row.max_context.value, row.rope_theta) == (256, 256, 1e4)

    def test_all_shards_and_their_index_are_linked(self, sharded: Path, own_model: Path) -> None:
        found: Checkpoint = inspect(inside(own_model), ModelFiles.find(own_model).variant)
        assert [path.name for path in found.weights] == [
            path.name for path in inspect(sharded, found.variant).weights
        ]
        assert all(path.samefile(sharded / path.name) for path in found.weights)

    def test_it_is_served(self, sharded: Path, own_model: Path) -> None:
        library: Any = transformers
        reference = library.LlamaForCausalLM.from_pretrained(sharded, dtype=torch.float32).eval()
        service = Service.start(ModelFiles.find(own_model), Settings())
        try:
            asked = azure.parse(
                {
                    "input_data": ["def f(x):"],
                    "params": {"do_sample": False, "max_new_tokens": 24, "ignore_eos": True},
                }
            )
            (work,) = service.prepare(asked)
            ((generation,),) = service.generate(asked)
            ids = torch.tensor([work.prompt.token_ids])
            expected = reference.generate(
                ids, do_sample=False, max_new_tokens=24, min_new_tokens=24, pad_token_id=0
            )
            told_ids = expected[0, ids.shape[1] :].tolist()
            assert generation.text.encode() == b"".join(map(service.tokenizer.piece, told_ids))
            dialog = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                      {"role": "user", "content": "c"}]  # fmt: skip
            with pytest.raises(BadRequest, match="mine has no dialog format"):
                service.generate(azure.parse({"input_data": {"input_string": dialog}}))
            with pytest.raises(BadRequest, match="infill"):
                service.generate(azure.parse({"input_data": ["a<FILL_ME>b"]}))
        finally:
            service.close()


class TestFind:
    """`ModelFiles.find`: Azure names the parent of the model's folder, people the folder itself."""

    @pytest.mark.parametrize("root", [".", "model", "..", "model/."])
    def test_the_one_model_at_or_below(self, nano_model: Path, tmp_path: Path, root: str) -> None:
        shutil.copytree(nano_model, tmp_path / "INPUT" / "model", copy_function=os.link)
        (tmp_path / "INPUT" / "notes.txt").touch()
        found = ModelFiles.find(tmp_path / "INPUT" / root)
        assert found.variant == NANO
        assert found.checkpoint.samefile(inside(tmp_path / "INPUT" / "model"))

    def test_none_several_and_no_folder_say_what_is_there(self, nano_model: Path, tmp_path: Path) -> None:
        with pytest.raises(SetupError, match=r"There is no MLmodel file at or below .*, which holds nothing"):
            ModelFiles.find(tmp_path)
        (tmp_path / "notes.txt").touch()
        with pytest.raises(SetupError, match=r"notes.txt is not a folder"):
            ModelFiles.find(tmp_path / "notes.txt")
        for name in ("one", "two"):
            shutil.copytree(nano_model, tmp_path / name, copy_function=os.link)
        with pytest.raises(SetupError, match=r"There are 2 MLmodel files .* which holds notes.txt, one, two\."):
            ModelFiles.find(tmp_path)

    @pytest.mark.parametrize(
        ("damage", "sentence"),
        [
            (lambda text: None, "was not written by `llama-endpoints package`: no llama_model.json"),
            (lambda text: text[:20], "can't be read: JSONDecodeError"),
            (lambda text: "[]", "can't be read: TypeError"),
            (lambda text: "{}", "can't be read: KeyError"),
            (lambda text: text.replace('"format": 1', '"format": 2'), "has format 2; this version reads 1"),
            (lambda text: text.replace('"inst"', '"other"'), "can't be read: ValueError"),
            (lambda text: text.replace('"top_p"', '"top_q"'), "can't be read: TypeError"),
            (
                lambda text: text.replace('"checkpoint"', '"checkpoint": "gone", "_"', 1),
                "gone that .* is not there",
            ),
        ],
    )
    def test_a_record_that_cannot_be_used_is_named(
        self, nano_model: Path, tmp_path: Path, damage: Callable[[str], str | None], sentence: str
    ) -> None:
        without_weights = shutil.ignore_patterns(WEIGHTS)
        shutil.copytree(nano_model, tmp_path / "model", ignore=without_weights)
        path = tmp_path / "model" / "artifacts" / "llama" / "llama_model.json"
        text = damage(path.read_text(encoding="utf-8"))
        if text is None:
            path.unlink()
        else:
            path.write_text(text, encoding="utf-8")
        with pytest.raises(SetupError, match=sentence):
            ModelFiles.find(tmp_path)
