"""GGUF files: each type that is read becomes the checkpoint that it was made from."""

import json
import os
import re
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from llama_endpoints.checkpoints import gguf_package
from llama_endpoints.checkpoints.gguf_file import GgufFile
from llama_endpoints.checkpoints.gguf_package import GgufModel
from llama_endpoints.cli.main import main
from llama_serving.contract import openai
from llama_serving.errors import SetupError
from llama_serving.model_files import ModelFiles
from llama_serving.service.service import Service
from llama_serving.settings import Settings
from tests.support import ggufs, llamas
from tests.support.ggufs import Kind

PROMPT = [1, 5, 9, 77, 300, 4000, 12, 12, 900]
OUTSIDE = ("--dialog", "none", "--infill", "none")
SAME = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LOSSY = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def package(path: Path, output: Path, *more: object) -> Result:
    return run("package", "--checkpoint", path, "--output", output, *OUTSIDE, *more)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def logits(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = llamas.reference(folder)(torch.tensor([PROMPT])).logits[0]
    return found


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    folder = tmp_path / "desk"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("tied", [False, True])
def test_plain_types_come_back_bit_by_bit(tmp_path: Path, desk: Path, kind: str, *, tied: bool) -> None:
    source = ggufs.checkpoint(tmp_path / "llama", SAME[kind], replace(ggufs.LLAMA, tied=tied))
    ggufs.write(source, source / "model.gguf", Kind[kind])
    expected = tensors(source)
    (source / "model.safetensors").unlink()
    assert package(source, desk / "model").exit_code == 0
    inside = ModelFiles.find(desk / "model").checkpoint
    found = tensors(inside)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert found[name].dtype == SAME[kind]
        assert torch.equal(found[name], weight), name
    ours, theirs = (
        json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (inside, source)
    )
    del theirs["transformers_version"]
    assert {name: theirs[name] for name in ours.keys() & theirs.keys()} == ours
    assert {*theirs} - {*ours} <= {
        "attention_dropout", "initializer_range", "pad_token_id", "pretraining_tp", "use_cache"
    }  # fmt: skip


@pytest.mark.parametrize("kind", [*SAME, *LOSSY])
def test_logits_and_text_are_the_originals(gguf_original: Path, tmp_path: Path, desk: Path, kind: str) -> None:
    path = ggufs.write(gguf_original, tmp_path / "llama.gguf", Kind[kind])
    done = package(path, desk / "model", "--tokenizer", gguf_original)
    assert done.exit_code == 0, done.stderr
    assert f"converted from llama.gguf ({kind})" in done.stdout
    files = ModelFiles.find(desk / "model")
    weights, before = tensors(files.checkpoint), tensors(gguf_original)
    worst = 0.0
    for name, weight in before.items():
        lost = weights[name].float() - weight
        worst = max(worst, float(lost.norm() / weight.norm()))
        if weight.dim() > 1:  # rows of q and k are encoded in another order, but row by row
            decoded = torch.from_numpy(ggufs.decoded(weight.numpy(), Kind[kind]))
            assert torch.equal(weights[name], decoded.to(weights[name].dtype)), name
    expected, found = logits(gguf_original), logits(files.checkpoint)
    assert float((found - expected).norm() / expected.norm()) <= 8 * worst  # 5 to 6 times, for every type
    service = Service.start(files, Settings(dtype="float32"))
    body = {"prompt": "def f(x):\n", "max_tokens": 8, "temperature": 0}
    ((one,),) = service.generate(openai.parse({"model": files.variant.name, **body}))
    ids = [1, *service.tokenizer.encode(body["prompt"])]
    assert list(one.token_ids) == llamas.generate(llamas.reference(files.checkpoint), ids, 8)


def test_without_the_permutation_the_logits_are_others(
    gguf_original: Path, gguf_model: Path, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check above finds a forgotten permutation: its error is not the format's."""
    monkeypatch.setattr(gguf_package, "_in_halves", lambda rows, _: rows)
    assert package(gguf_model, desk / "model").exit_code == 0
    expected, found = logits(gguf_original), logits(ModelFiles.find(desk / "model").checkpoint)
    assert float((found - expected).norm() / expected.norm()) > 0.5


def test_types_may_be_mixed_as_llama_cpp_mixes_them(gguf_original: Path, tmp_path: Path, desk: Path) -> None:
    def kind(name: str) -> Kind:
        if name == "lm_head.weight" or "v_proj" in name:
            return Kind.Q6_K
        return Kind.Q5_K if "layers.0.mlp.down" in name else Kind.Q4_K

    path = ggufs.write(gguf_original, tmp_path / "llama.Q4_K_M.gguf", kind)
    done = package(path, desk / "model", "--tokenizer", gguf_original)
    assert done.stdout.endswith("weights converted from llama.Q4_K_M.gguf (Q4_K, Q6_K, Q5_K).\n")
    files = ModelFiles.find(desk / "model")
    assert files.variant.name == "llama.Q4_K_M"
    assert {weight.dtype for weight in tensors(files.checkpoint).values()} == {torch.float16}
    record = json.loads((files.checkpoint.parent / "llama_model.json").read_text(encoding="utf-8"))
    assert record["gguf"] == {"file": "llama.Q4_K_M.gguf", "types": "Q4_K, Q6_K, Q5_K"}
    assert [path.name for path in desk.iterdir()] == ["model"]


def test_shards_and_blocks_change_nothing(
    gguf_model: Path, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert package(gguf_model, desk / "one").exit_code == 0
    monkeypatch.setattr(gguf_package, "SHARD_BYTES", 1_000_000)
    monkeypatch.setattr(gguf_package, "_BLOCK_VALUES", 20_000)
    done = package(gguf_model, desk / "many")
    assert done.exit_code == 0, done.stderr
    one, many = (ModelFiles.find(desk / name).checkpoint for name in ("one", "many"))
    assert len(list(many.glob("*.safetensors"))) > 3
    expected, found = tensors(one), tensors(many)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert torch.equal(logits(many), logits(one))


def test_transformers_own_reader_finds_the_same_weights(
    gguf_original: Path, gguf_model: Path, desk: Path
) -> None:
    """An independent oracle for names, decoding and the order of rows: it has a GGUF reader of its own."""
    import transformers

    assert package(gguf_model, desk / "model").exit_code == 0
    found = tensors(ModelFiles.find(desk / "model").checkpoint)
    theirs: Any = transformers.LlamaForCausalLM.from_pretrained(gguf_model.parent, gguf_file=gguf_model.name)
    for name, weight in theirs.state_dict().items():
        assert torch.equal(found[name], weight.to(torch.float16)), name


def test_an_adapter_is_merged_into_the_converted_weights(gguf_model: Path, desk: Path) -> None:
    adapter = desk.parent / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    at = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    factors = {
        at.format(layer, factor): torch.ones(shape)
        for layer in range(2)
        for factor, shape in (("A", (2, 256)), ("B", (256, 2)))
    }
    save_file(factors, adapter / "adapter_model.safetensors")
    done = package(gguf_model, desk / "model", "--adapter", adapter)
    assert done.exit_code == 0, done.stderr
    record = json.loads((desk / "model/artifacts/llama/llama_model.json").read_text(encoding="utf-8"))
    assert {"merged", "gguf"} <= record.keys()
    assert [path.name for path in desk.iterdir()] == ["model"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143), OSError(28, "No space left on device")])
def test_a_stop_leaves_nothing(
    gguf_model: Path, desk: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    def fail(*_: object) -> None:
        assert list(desk.rglob("*.safetensors"))
        raise stop

    monkeypatch.setattr(gguf_package, "from_float32", fail)
    done = package(gguf_model, desk / "deep" / "model")
    assert done.exit_code != 0
    if isinstance(stop, OSError):
        assert f"Cannot write {desk}/deep/model: No space left on device. Nothing was left" in done.stderr
    assert list(desk.iterdir()) == []


def test_a_full_disk_is_seen_before_anything_is_converted(
    gguf_model: Path, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9_000, 8_500, 500))
    done = package(gguf_model, desk / "model")
    assert re.search(r"the converted weights need [\d,]+ bytes where 500 are free", done.stderr)
    assert list(desk.iterdir()) == []


class TestCommand:
    def test_a_catalog_model_of_another_shape_is_refused(self, gguf_model: Path, desk: Path) -> None:
        name = "codellama/CodeLlama-7b-hf"
        done = run("package", "--checkpoint", gguf_model, "--output", desk / "model", "--variant", name)
        assert done.exit_code == 2
        assert f"{gguf_model} is not {name}: its config has layers 2 instead of 32, hidden 256" in done.stderr
        assert list(desk.iterdir()) == []

    def test_the_catalogs_ends_must_be_the_files(self, gguf_model: Path, tmp_path: Path) -> None:
        opened = GgufModel.open(gguf_model, gguf_model.parent)
        from llama_endpoints.checkpoints.variants import custom_variant

        with gguf_package.unpacked(opened, tmp_path / "model", overwrite=False) as folder:
            variant = custom_variant(folder, dialog="none", infill="none")
            opened.check_variant(variant)
            with pytest.raises(SetupError, match=r"with the ids 1 and 2, llama with 1 and 7. Name the right"):
                opened.check_variant(replace(variant, eos_id=7))

    def test_a_tokenizer_belongs_to_gguf_files(self, gguf_original: Path, desk: Path) -> None:
        done = package(gguf_original, desk / "model", "--tokenizer", gguf_original)
        assert "--tokenizer belongs to a GGUF file; other checkpoints bring theirs. Remove it." in done.stderr

    def test_references_are_refused(self, gguf_model: Path, desk: Path) -> None:
        done = package(gguf_model, desk / "model", "--weights", "reference")
        assert "are converted, so they cannot be referenced. Use --weights link or copy." in done.stderr

    def test_what_exists_is_not_replaced(self, gguf_model: Path, desk: Path) -> None:
        (desk / "model").mkdir()
        (desk / "model" / "MLmodel").write_text("mine")
        assert "already exists. Use another --output" in package(gguf_model, desk / "model").stderr
        shutil.copytree(gguf_model.parent, desk / "model", dirs_exist_ok=True)
        done = package(desk / "model" / gguf_model.name, desk / "model", "--overwrite")
        assert "holds the checkpoint itself, which --overwrite would delete" in done.stderr
        assert (desk / "model" / gguf_model.name).is_file()

    def test_one_of_several_files_must_be_named(self, gguf_model: Path, tmp_path: Path, desk: Path) -> None:
        for name in ("a.gguf", "b.GGUF"):
            (tmp_path / name).hardlink_to(gguf_model)
        done = package(tmp_path, desk / "model")
        assert f"{tmp_path} has 2 GGUF files (a.gguf, b.GGUF). Pass one of them as --checkpoint." in done.stderr
        assert "is not a file. Pass an existing GGUF" in package(tmp_path / "c.gguf", desk / "model").stderr

    def test_without_the_library_one_sentence_says_what_to_install(
        self, gguf_model: Path, desk: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "gguf", None)
        done = package(gguf_model, desk / "model")
        assert done.exit_code == 2
        assert "is not installed: pip install 'llama-endpoints[gguf]'." in done.stderr


class TestTokenizer:
    @pytest.fixture
    def folder(self, gguf_model: Path, tmp_path: Path) -> Path:
        target = tmp_path / "tokenizer"
        target.mkdir()
        shutil.copyfile(gguf_model.parent / "tokenizer.json", target / "tokenizer.json")
        return target

    @staticmethod
    def change(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
        path = folder / "tokenizer.json"
        layout = json.loads(path.read_text(encoding="utf-8"))
        change(layout)
        path.write_text(json.dumps(layout), encoding="utf-8")

    def test_none_is_made_of_the_file(self, gguf_model: Path, folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        with pytest.raises(SetupError, match=r"has no tokenizer.json. .*, and pass its folder as --tokenizer."):
            GgufModel.open(gguf_model, folder)

    def test_the_first_token_that_differs_is_named(self, gguf_model: Path, folder: Path) -> None:
        def swap(layout: dict[str, Any]) -> None:
            vocab = layout["model"]["vocab"]
            pieces = {number: piece for piece, number in vocab.items()}
            vocab[pieces[4000]], vocab[pieces[3999]] = 3999, 4000

        self.change(folder, swap)
        with pytest.raises(
            SetupError, match=r"^Token 3999 is '.*' in .*llama.gguf, but .*tokenizer.json has '"
        ):
            GgufModel.open(gguf_model, folder)

    @pytest.mark.parametrize(("extra", "says"), [(1, "Token 4096 does not exist in"), (-1, "Token 4095 is")])
    def test_another_size_is_a_difference(self, gguf_model: Path, folder: Path, extra: int, says: str) -> None:
        def resize(layout: dict[str, Any]) -> None:
            vocab = layout["model"]["vocab"]
            if extra > 0:
                vocab["▁entirely▁new"] = len(vocab)
            else:
                last = max(vocab, key=vocab.__getitem__)
                del vocab[last]
                layout["model"]["merges"] = [
                    pair
                    for pair in layout["model"]["merges"]
                    if "".join(pair if isinstance(pair, list) else pair.split(" ")) != last
                ]
                layout["added_tokens"] = [token for token in layout["added_tokens"] if token["id"] < 4095]

        self.change(folder, resize)
        with pytest.raises(SetupError, match=f"^{says}.*they don't belong together"):
            GgufModel.open(gguf_model, folder)

    def test_rows_without_a_token_are_padding(self, tmp_path: Path) -> None:
        source = ggufs.checkpoint(tmp_path / "padded", llama=replace(ggufs.LLAMA, vocab=4112))
        path = ggufs.write(source, source / "padded.gguf", Kind.Q8_0)
        assert GgufModel.open(path, source).llama.shape.vocab == 4112


def test_weights_that_are_not_finite_are_refused(gguf_model: Path, tmp_path: Path, desk: Path) -> None:
    content = bytearray(gguf_model.read_bytes())
    start = GgufFile.read(gguf_model).tensors["blk.1.ffn_up.weight"].start
    content[start : start + 2] = struct.pack("<e", float("inf"))  # the scale of a block of Q8_0
    (tmp_path / "bad.gguf").write_bytes(content)
    done = package(tmp_path / "bad.gguf", desk / "model", "--tokenizer", gguf_model.parent)
    assert re.search(
        r"has values in blk.1.ffn_up.weight that are not finite in F16. Download it again\.", done.stderr
    )
    assert list(desk.iterdir()) == []


def test_a_file_that_shrinks_meanwhile_leaves_nothing(
    gguf_model: Path, tmp_path: Path, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shrinking.gguf"
    shutil.copyfile(gguf_model, path)
    real = gguf_package.read_rows

    def read(*arguments: Any) -> Any:
        os.truncate(path, 5000)
        return real(*arguments)

    monkeypatch.setattr(gguf_package, "read_rows", read)
    done = package(path, desk / "model", "--tokenizer", gguf_model.parent)
    assert "the GGUF file became shorter while it was read. Nothing was left behind." in done.stderr
    assert list(desk.iterdir()) == []


def test_linear_scaling_is_the_configs(gguf_model: Path, desk: Path) -> None:
    change = {
        "llama.rope.scaling.type": ("linear", gguf.GGUFValueType.STRING),
        "llama.rope.scaling.factor": (4.0, gguf.GGUFValueType.FLOAT32),
    }
    path = ggufs.rewritten(gguf_model, desk / "linear.gguf", change)
    config = GgufModel.open(path, gguf_model.parent).llama.config
    assert config["rope_parameters"] == {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0}
    assert config["rms_norm_eps"] == 0.01
    package(path, desk / "linear", "--tokenizer", gguf_model.parent)
    package(gguf_model, desk / "plain")
    slow, usual = (
        llamas.reference(ModelFiles.find(desk / name).checkpoint).model.rotary_emb.inv_freq
        for name in ("linear", "plain")
    )
    torch.testing.assert_close(slow * 4, usual)
