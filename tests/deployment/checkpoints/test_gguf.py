"""GGUF files: each type that is read becomes the checkpoint that it was made from, and everything else is refused."""

import json
import os
import re
import shutil
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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
from tests.support.ggufs import Kind, entry, string, tensor

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


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in float32."""
    return ggufs.checkpoint(tmp_path_factory.mktemp("original") / "llama")


@pytest.fixture(scope="module")
def model(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It in Q8_0, beside its tokenizer."""
    folder = tmp_path_factory.mktemp("gguf")
    shutil.copyfile(original / "tokenizer.json", folder / "tokenizer.json")
    return ggufs.write(original, folder / "llama.gguf", Kind.Q8_0)


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
def test_logits_and_text_are_the_originals(original: Path, tmp_path: Path, desk: Path, kind: str) -> None:
    path = ggufs.write(original, tmp_path / "llama.gguf", Kind[kind])
    done = package(path, desk / "model", "--tokenizer", original)
    assert done.exit_code == 0, done.stderr
    assert f"converted from llama.gguf ({kind})" in done.stdout
    files = ModelFiles.find(desk / "model")
    weights, before = tensors(files.checkpoint), tensors(original)
    worst = 0.0
    for name, weight in before.items():
        lost = weights[name].float() - weight
        worst = max(worst, float(lost.norm() / weight.norm()))
        if weight.dim() > 1:  # rows of q and k are encoded in another order, but row by row
            decoded = torch.from_numpy(ggufs.decoded(weight.numpy(), Kind[kind]))
            assert torch.equal(weights[name], decoded.to(weights[name].dtype)), name
    expected, found = logits(original), logits(files.checkpoint)
    assert float((found - expected).norm() / expected.norm()) <= 8 * worst  # 5 to 6 times, for every type
    service = Service.start(files, Settings(dtype="float32"))
    body = {"prompt": "def f(x):\n", "max_tokens": 8, "temperature": 0}
    ((one,),) = service.generate(openai.parse({"model": files.variant.name, **body}))
    ids = [1, *service.tokenizer.encode(body["prompt"])]
    assert list(one.token_ids) == llamas.generate(llamas.reference(files.checkpoint), ids, 8)


def test_without_the_permutation_the_logits_are_others(
    original: Path, model: Path, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check above finds a forgotten permutation: its error is not the format's."""
    monkeypatch.setattr(gguf_package, "_in_halves", lambda rows, _: rows)
    assert package(model, desk / "model").exit_code == 0
    expected, found = logits(original), logits(ModelFiles.find(desk / "model").checkpoint)
    assert float((found - expected).norm() / expected.norm()) > 0.5


def test_types_may_be_mixed_as_llama_cpp_mixes_them(original: Path, tmp_path: Path, desk: Path) -> None:
    def kind(name: str) -> Kind:
        if name == "lm_head.weight" or "v_proj" in name:
            return Kind.Q6_K
        return Kind.Q5_K if "layers.0.mlp.down" in name else Kind.Q4_K

    path = ggufs.write(original, tmp_path / "llama.Q4_K_M.gguf", kind)
    done = package(path, desk / "model", "--tokenizer", original)
    assert done.stdout.endswith("weights converted from llama.Q4_K_M.gguf (Q4_K, Q6_K, Q5_K).\n")
    files = ModelFiles.find(desk / "model")
    assert files.variant.name == "llama.Q4_K_M"
    assert {weight.dtype for weight in tensors(files.checkpoint).values()} == {torch.float16}
    record = json.loads((files.checkpoint.parent / "llama_model.json").read_text(encoding="utf-8"))
    assert record["gguf"] == {"file": "llama.Q4_K_M.gguf", "types": "Q4_K, Q6_K, Q5_K"}
    assert [path.name for path in desk.iterdir()] == ["model"]


def test_shards_and_blocks_change_nothing(model: Path, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert package(model, desk / "one").exit_code == 0
    monkeypatch.setattr(gguf_package, "SHARD_BYTES", 1_000_000)
    monkeypatch.setattr(gguf_package, "_BLOCK_VALUES", 20_000)
    done = package(model, desk / "many")
    assert done.exit_code == 0, done.stderr
    one, many = (ModelFiles.find(desk / name).checkpoint for name in ("one", "many"))
    assert len(list(many.glob("*.safetensors"))) > 3
    expected, found = tensors(one), tensors(many)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert torch.equal(logits(many), logits(one))


def test_transformers_own_reader_finds_the_same_weights(original: Path, model: Path, desk: Path) -> None:
    """An independent oracle for names, decoding and the order of rows: it has a GGUF reader of its own."""
    import transformers

    assert package(model, desk / "model").exit_code == 0
    found = tensors(ModelFiles.find(desk / "model").checkpoint)
    theirs: Any = transformers.LlamaForCausalLM.from_pretrained(model.parent, gguf_file=model.name)
    for name, weight in theirs.state_dict().items():
        assert torch.equal(found[name], weight.to(torch.float16)), name


def test_an_adapter_is_merged_into_the_converted_weights(model: Path, desk: Path) -> None:
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
    done = package(model, desk / "model", "--adapter", adapter)
    assert done.exit_code == 0, done.stderr
    record = json.loads((desk / "model/artifacts/llama/llama_model.json").read_text(encoding="utf-8"))
    assert {"merged", "gguf"} <= record.keys()
    assert [path.name for path in desk.iterdir()] == ["model"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143), OSError(28, "No space left on device")])
def test_a_stop_leaves_nothing(
    model: Path, desk: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    def fail(*_: object) -> None:
        assert list(desk.rglob("*.safetensors"))
        raise stop

    monkeypatch.setattr(gguf_package, "from_float32", fail)
    done = package(model, desk / "deep" / "model")
    assert done.exit_code != 0
    if isinstance(stop, OSError):
        assert f"Cannot write {desk}/deep/model: No space left on device. Nothing was left" in done.stderr
    assert list(desk.iterdir()) == []


def test_a_full_disk_is_seen_before_anything_is_converted(
    model: Path, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9_000, 8_500, 500))
    done = package(model, desk / "model")
    assert re.search(r"the converted weights need [\d,]+ bytes where 500 are free", done.stderr)
    assert list(desk.iterdir()) == []


class TestCommand:
    def test_a_catalog_model_of_another_shape_is_refused(self, model: Path, desk: Path) -> None:
        name = "codellama/CodeLlama-7b-hf"
        done = run("package", "--checkpoint", model, "--output", desk / "model", "--variant", name)
        assert done.exit_code == 2
        assert f"{model} is not {name}: its config has layers 2 instead of 32, hidden 256" in done.stderr
        assert list(desk.iterdir()) == []

    def test_the_catalogs_ends_must_be_the_files(self, model: Path, tmp_path: Path) -> None:
        opened = GgufModel.open(model, model.parent)
        from llama_endpoints.checkpoints.variants import custom_variant

        with gguf_package.unpacked(opened, tmp_path / "model", overwrite=False) as folder:
            variant = custom_variant(folder, dialog="none", infill="none")
            opened.check_variant(variant)
            with pytest.raises(SetupError, match=r"with the ids 1 and 2, llama with 1 and 7. Name the right"):
                opened.check_variant(replace(variant, eos_id=7))

    def test_a_tokenizer_belongs_to_gguf_files(self, original: Path, desk: Path) -> None:
        done = package(original, desk / "model", "--tokenizer", original)
        assert "--tokenizer belongs to a GGUF file; other checkpoints bring theirs. Remove it." in done.stderr

    def test_references_are_refused(self, model: Path, desk: Path) -> None:
        done = package(model, desk / "model", "--weights", "reference")
        assert "are converted, so they cannot be referenced. Use --weights link or copy." in done.stderr

    def test_what_exists_is_not_replaced(self, model: Path, desk: Path) -> None:
        (desk / "model").mkdir()
        (desk / "model" / "MLmodel").write_text("mine")
        assert "already exists. Use another --output" in package(model, desk / "model").stderr
        shutil.copytree(model.parent, desk / "model", dirs_exist_ok=True)
        done = package(desk / "model" / model.name, desk / "model", "--overwrite")
        assert "holds the checkpoint itself, which --overwrite would delete" in done.stderr
        assert (desk / "model" / model.name).is_file()

    def test_one_of_several_files_must_be_named(self, model: Path, tmp_path: Path, desk: Path) -> None:
        for name in ("a.gguf", "b.GGUF"):
            (tmp_path / name).hardlink_to(model)
        done = package(tmp_path, desk / "model")
        assert f"{tmp_path} has 2 GGUF files (a.gguf, b.GGUF). Pass one of them as --checkpoint." in done.stderr
        assert "is not a file. Pass an existing GGUF" in package(tmp_path / "c.gguf", desk / "model").stderr

    def test_without_the_library_one_sentence_says_what_to_install(
        self, model: Path, desk: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "gguf", None)
        done = package(model, desk / "model")
        assert done.exit_code == 2
        assert "is not installed: pip install 'llama-endpoints[gguf]'." in done.stderr


class TestTokenizer:
    @pytest.fixture
    def folder(self, model: Path, tmp_path: Path) -> Path:
        target = tmp_path / "tokenizer"
        target.mkdir()
        shutil.copyfile(model.parent / "tokenizer.json", target / "tokenizer.json")
        return target

    @staticmethod
    def change(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
        path = folder / "tokenizer.json"
        layout = json.loads(path.read_text(encoding="utf-8"))
        change(layout)
        path.write_text(json.dumps(layout), encoding="utf-8")

    def test_none_is_made_of_the_file(self, model: Path, folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        with pytest.raises(SetupError, match=r"has no tokenizer.json. .*, and pass its folder as --tokenizer."):
            GgufModel.open(model, folder)

    def test_the_first_token_that_differs_is_named(self, model: Path, folder: Path) -> None:
        def swap(layout: dict[str, Any]) -> None:
            vocab = layout["model"]["vocab"]
            pieces = {number: piece for piece, number in vocab.items()}
            vocab[pieces[4000]], vocab[pieces[3999]] = 3999, 4000

        self.change(folder, swap)
        with pytest.raises(
            SetupError, match=r"^Token 3999 is '.*' in .*llama.gguf, but .*tokenizer.json has '"
        ):
            GgufModel.open(model, folder)

    @pytest.mark.parametrize(("extra", "says"), [(1, "Token 4096 does not exist in"), (-1, "Token 4095 is")])
    def test_another_size_is_a_difference(self, model: Path, folder: Path, extra: int, says: str) -> None:
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
            GgufModel.open(model, folder)

    def test_rows_without_a_token_are_padding(self, tmp_path: Path) -> None:
        source = ggufs.checkpoint(tmp_path / "padded", llama=replace(ggufs.LLAMA, vocab=4112))
        path = ggufs.write(source, source / "padded.gguf", Kind.Q8_0)
        assert GgufModel.open(path, source).llama.shape.vocab == 4112


def rewritten(source: Path, target: Path, change: dict[str, Any], *, extra: str = "") -> Path:
    """A GGUF file with other metadata; None removes a key. `extra` names one more tensor, of [1, 2]."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, change.pop("general.architecture", "llama"))
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key in change:
            continue
        kind = field.types[0]
        writer.add_key_value(key, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
    for key, (value, kind) in ((key, value) for key, value in change.items() if value is not None):
        writer.add_key_value(key, value, kind)
    for one in reader.tensors:
        writer.add_tensor(one.name, one.data, raw_dtype=one.tensor_type)
    if extra:
        writer.add_tensor(extra, np.array([1, 2], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


V = gguf.GGUFValueType
METADATA: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": ({"general.architecture": "qwen2"}, "holds a model of architecture 'qwen2'; only"),
    "an adapter": ({"general.type": ("adapter", V.STRING)}, "holds a adapter of architecture 'llama'"),
    "a part": ({"split.count": (3, V.UINT16)}, "is one of 3 parts. Join them first: llama-gguf-split"),
    "experts": ({"llama.expert_count": (8, V.UINT32)}, "llama.expert_count 8; only 0 is served"),
    "yarn": ({"llama.rope.scaling.type": ("yarn", V.STRING)}, "'yarn'; only 'none' or 'linear' is served"),
    "an unknown key": ({"llama.logit_scale": (2.0, V.FLOAT32)}, "has llama.logit_scale, which no model"),
    "no context": ({"llama.context_length": None}, "lacks llama.context_length; a positive integer"),
    "no epsilon": ({"llama.attention.layer_norm_rms_epsilon": None}, "rms_epsilon; a positive number"),
    "no layers": ({"llama.block_count": (0, V.UINT32)}, "llama.block_count 0; a positive integer is needed"),
    "too many layers": ({"llama.block_count": (2**31 - 1, V.UINT32)}, "2147483647, but only 21 tensors"),
    "more layers": ({"llama.block_count": (1, V.UINT32)}, r"has the tensor blk\.1\.\S+, which no Llama has"),
    "a negative size": ({"llama.embedding_length": (-5, V.INT32)}, "-5; a positive integer"),
    "a text for a size": ({"llama.embedding_length": ("x" * 99, V.STRING)}, "length 'x{39}…; a positive"),
    "heads that do not divide": ({"llama.attention.head_count": (3, V.UINT32)}, "each must be a multiple"),
    "another width": ({"llama.feed_forward_length": (513, V.UINT32)}, r"ffn_gate.weight, .* \(513, 256\)"),
    "partly rotary": ({"llama.rope.dimension_count": (32, V.UINT32)}, "heads of 64, .* turns 32; these"),
    "an infinite theta": ({"llama.rope.freq_base": (float("inf"), V.FLOAT32)}, "freq_base inf; a positive"),
    "an end outside": ({"tokenizer.ggml.eos_token_id": (9999, V.UINT32)}, "9999; an id below 4096 is needed"),
    "another vocabulary": ({"llama.vocab_size": (4000, V.UINT32)}, r"for token_embd.weight, .* \(4000, 256\)"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, "has no tokenizer.ggml.tokens, so that no tokenizer can"),
}


@pytest.mark.parametrize(("change", "says"), METADATA.values(), ids=METADATA)
def test_metadata_of_what_is_not_served_is_refused(
    model: Path, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    path = rewritten(model, tmp_path / "changed.gguf", dict(change))
    with pytest.raises(SetupError, match=f"^{re.escape(str(path))} .*{says}") as caught:
        GgufModel.open(path, model.parent)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("rope_freqs.weight", "as Llama 3.1 does; that is not"),
        ("blk.0.attn_q.bias", "the tensor blk.0.attn_q.bias"),
    ],
)
def test_other_tensors_are_refused(model: Path, tmp_path: Path, name: str, says: str) -> None:
    path = rewritten(model, tmp_path / "more.gguf", {}, extra=name)
    with pytest.raises(SetupError, match=says):
        GgufModel.open(path, model.parent)


def test_frequencies_times_one_are_the_usual_ones(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "array", lambda *_: np.ones(2, np.float32))
    path = rewritten(model, tmp_path / "ones.gguf", {}, extra="rope_freqs.weight")
    assert "rope_freqs.weight" not in GgufModel.open(path, model.parent).llama.sources


def test_linear_scaling_is_the_configs(model: Path, desk: Path) -> None:
    change = {"llama.rope.scaling.type": ("linear", V.STRING), "llama.rope.scaling.factor": (4.0, V.FLOAT32)}
    path = rewritten(model, desk / "linear.gguf", change)
    config = GgufModel.open(path, model.parent).llama.config
    assert config["rope_parameters"] == {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0}
    assert config["rms_norm_eps"] == 0.01
    package(path, desk / "linear", "--tokenizer", model.parent)
    package(model, desk / "plain")
    slow, usual = (
        llamas.reference(ModelFiles.find(desk / name).checkpoint).model.rotary_emb.inv_freq
        for name in ("linear", "plain")
    )
    torch.testing.assert_close(slow * 4, usual)


@pytest.mark.parametrize("kind", ["Q3_K", "IQ4_XS", "Q5_0", "I32", "TQ1_0"])
def test_other_types_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    number = int(Kind[kind])
    keys = [entry("general.architecture", 8, string("llama"))]
    path = ggufs.raw_file(
        tmp_path / "x.gguf", keys, [tensor("token_embd.weight", (256, 32), number)], bytes(40_000)
    )
    with pytest.raises(SetupError, match=f"has token_embd.weight in {kind}; the types read are F32, F16, BF16"):
        GgufModel.open(path, tmp_path)


def keyed(kind: int, value: bytes) -> Callable[[Path], Path]:
    return lambda path: ggufs.raw_file(path, [entry("k", kind, value)])


def placed(*lines: bytes, keys: tuple[bytes, ...] = (), data: int = 4096) -> Callable[[Path], Path]:
    return lambda path: ggufs.raw_file(path, keys, lines, bytes(data))


def raw(content: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return write


ALIGNMENT = "general.alignment"
HUGE = 2**63
FAULTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty": (raw(b""), "it is cut short"),
    "another format": (raw(b"PK\x03\x04" * 9), "it does not begin with GGUF"),
    "version 1": (lambda path: ggufs.raw_file(path, version=1), "it has version 1, and only 2 and 3"),
    "big-endian": (lambda path: ggufs.raw_file(path, version=3 << 24), "it is big-endian"),
    "a count without end": (raw(b"GGUF" + struct.pack("<IQQ", 3, HUGE, HUGE)), "cut short"),
    "a string without end": (keyed(8, struct.pack("<Q", HUGE)), "cut short"),
    "an array without end": (keyed(9, struct.pack("<IQ", 12, HUGE)), "cut short"),
    "strings without end": (keyed(9, struct.pack("<IQ", 8, HUGE)), "cut short"),
    "a nested array": (keyed(9, struct.pack("<IQ", 9, 1)), "type 9, which is unknown or nested"),
    "an unknown value": (keyed(77, b""), "value of the unknown type 77"),
    "a key that is no text": (
        lambda path: ggufs.raw_file(path, [string(b"\xff\xfe") + b"\0\0\0\0\0"]),
        "'utf-8' codec can't decode",
    ),
    "a key twice": (
        lambda path: ggufs.raw_file(path, [entry("k", 0, b"1"), entry("k", 0, b"1")]),
        "its metadata has k twice",
    ),
    "a tensor twice": (placed(tensor("a", (4,)), tensor("a", (4,), offset=32)), "has the tensor a twice"),
    "an unknown tensor type": (placed(tensor("a", (4,), 31)), "its tensor a is of the unknown type 31"),
    "no dimension": (placed(tensor("a", ())), "has 0 dimensions"),
    "too many dimensions": (placed(tensor("a", (1, 1, 1, 1, 1))), "has 5 dimensions"),
    "an empty tensor": (placed(tensor("a", (0, 5))), r"has the impossible shape \(5, 0\)"),
    "a broken block": (placed(tensor("a", (33,), 8)), r"of Q8_0 has the impossible shape \(33,\)"),
    "a size that overflows": (placed(tensor("a", (2**32, 2**32))), "cut short: a ends at"),
    "beyond the end": (placed(tensor("a", (2048,))), r"cut short: a ends at 8,\d+ of 4,\d+ bytes"),
    "an offset beyond": (placed(tensor("a", (4,), offset=2**64 - 32)), "cut short: a ends at"),
    "not aligned": (placed(tensor("a", (4,), offset=4)), "begins at 4, not at a multiple of 32"),
    "an overlap": (placed(tensor("a", (64,)), tensor("b", (4,), offset=32)), "tensors a and b overlap"),
    "no alignment": (placed(keys=(entry(ALIGNMENT, 4, struct.pack("<I", 0)),)), "is 0 and no power of two"),
    "an odd alignment": (placed(keys=(entry(ALIGNMENT, 4, struct.pack("<I", 24)),)), "is 24 and no power"),
    "a text for it": (placed(keys=(entry(ALIGNMENT, 8, string("32")),)), "is '32' and no power of two"),
}


@pytest.mark.parametrize(("write", "says"), FAULTS.values(), ids=FAULTS)
def test_a_damaged_or_hostile_file_is_one_sentence(
    tmp_path: Path, write: Callable[[Path], Path], says: str
) -> None:
    path = write(tmp_path / "x.gguf")
    with pytest.raises(
        SetupError, match=rf"x.gguf can't be read as a GGUF file: .*{says}.*Download it again\.$"
    ):
        GgufFile.read(path)


def test_a_header_has_a_limit(tmp_path: Path) -> None:
    path = keyed(9, struct.pack("<IQ", 0, 2**36))(tmp_path / "x.gguf")
    os.truncate(path, 2**37)  # a sparse file
    with pytest.raises(SetupError, match="its header is longer than 33,554,432 bytes"):
        GgufFile.read(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small GGUF file and its tokenizer's folder."""
    folder = ggufs.checkpoint(
        tmp_path_factory.mktemp("small") / "llama",
        llama=llamas.Llama(layers=1, hidden=32, ffn=32, heads=2, kv_heads=1, head_dim=16, vocab=4096),
    )
    return ggufs.write(folder, folder / "small.gguf", Kind.Q4_0), folder


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_a_sentence_or_harmless(
    small: tuple[Path, Path], tmp_path: Path, data: st.DataObject
) -> None:
    path, folder = small
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), "cut"):
        del content[data.draw(st.integers(0, len(content) - 1), "length") :]
    else:
        # Most of the file is tokens and weights; its keys and tensors are where damage matters.
        keys, lines = content.index(b"tokenizer.ggml.model"), content.rindex(b"output")
        for _ in range(data.draw(st.integers(1, 4), "changes")):
            where = data.draw(
                st.one_of(
                    st.integers(0, keys),
                    st.integers(max(0, lines - 900), min(lines + 900, len(content) - 1)),
                    st.integers(0, len(content) - 1),
                ),
                "where",
            )
            content[where] = data.draw(st.integers(0, 255), "byte")
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(content)
    target = tmp_path / "target"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    with suppress(SetupError):  # (anything else fails the test, and so does a minute)
        GgufModel.open(damaged, folder).write_weights(target)


def test_weights_that_are_not_finite_are_refused(model: Path, tmp_path: Path, desk: Path) -> None:
    content = bytearray(model.read_bytes())
    start = GgufFile.read(model).tensors["blk.1.ffn_up.weight"].start
    content[start : start + 2] = struct.pack("<e", float("inf"))  # the scale of a block of Q8_0
    (tmp_path / "bad.gguf").write_bytes(content)
    done = package(tmp_path / "bad.gguf", desk / "model", "--tokenizer", model.parent)
    assert re.search(
        r"has values in blk.1.ffn_up.weight that are not finite in F16. Download it again\.", done.stderr
    )
    assert list(desk.iterdir()) == []


def test_a_file_that_shrinks_meanwhile_leaves_nothing(
    model: Path, tmp_path: Path, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shrinking.gguf"
    shutil.copyfile(model, path)
    real = gguf_package.read_rows

    def read(*arguments: Any) -> Any:
        os.truncate(path, 5000)
        return real(*arguments)

    monkeypatch.setattr(gguf_package, "read_rows", read)
    done = package(path, desk / "model", "--tokenizer", model.parent)
    assert "the GGUF file became shorter while it was read. Nothing was left behind." in done.stderr
    assert list(desk.iterdir()) == []
