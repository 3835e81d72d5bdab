"""Packaging: the weights by hard link, copy or reference; all of the model or nothing of it."""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner, Result

import llama_endpoints.checkpoints.package as packaging
from llama_endpoints.checkpoints.inspection import Checkpoint, inspect
from llama_endpoints.checkpoints.package import Packaged, WeightsMode, package
from llama_endpoints.cli.main import main
from llama_endpoints.nano import FOLDER
from llama_serving.catalog import NANO
from llama_serving.contract import azure
from llama_serving.errors import BadRequest, SetupError
from llama_serving.model_files import ModelFiles
from llama_serving.service.service import Service
from llama_serving.settings import Settings

WEIGHTS = "model.safetensors"
WEIGHT_BYTES = (FOLDER / WEIGHTS).stat().st_size
SHAPE = NANO.shape
CODE_LLAMA = "codellama/CodeLlama-7b-hf"


def inside(model: Path) -> Path:
    """Where the checkpoint lies in a packaged model."""
    return model / "artifacts" / "llama" / "checkpoint"


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything at and below a folder: inode and content of each file."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, b"" if path.is_dir() else path.read_bytes())
        for path in folder.rglob("*")
    }


def copied(folder: Path) -> Path:
    """A copy of the embedded model's checkpoint."""
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", WEIGHTS):
        shutil.copyfile(FOLDER / name, folder / name)
    return folder


def linked(folder: Path, model: Path) -> Path:
    """The same, with the weights of a packaged model; for tests that only rename or delete them."""
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(FOLDER / name, folder / name)
    (folder / WEIGHTS).hardlink_to(inside(model) / WEIGHTS)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return copied(tmp_path / "checkpoint")


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """The folder that models are written into."""
    folder = tmp_path / "desk"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of no catalog, as transformers saves a large one: bf16, in several files."""
    folder = tmp_path_factory.mktemp("checkpoints") / "mine"
    library: Any = transformers
    config = library.LlamaConfig(
        vocab_size=SHAPE.vocab,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    library.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="70KB")
    shutil.copyfile(FOLDER / "tokenizer.json", folder / "tokenizer.json")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def run(*arguments: str | Path) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def told(result: Result) -> list[str]:
    """What stands on standard error beside the progress bar."""
    lines = re.split(r"[\r\n]+", result.stderr)
    return [line for line in lines if line and not line.startswith("weights:")]


def record(model: Path) -> Any:
    return json.loads((model / "artifacts" / "llama" / "llama_model.json").read_text(encoding="utf-8"))


class TestWeights:
    def test_links_share_the_checkpoints_bytes(self, checkpoint: Path, desk: Path) -> None:
        done = package(inspect(checkpoint, NANO), desk / "model")
        assert done == Packaged(desk / "model", WeightsMode.LINK)
        target = inside(desk / "model") / WEIGHTS
        assert target.samefile(checkpoint / WEIGHTS)
        assert not target.is_symlink()
        assert target.stat().st_nlink == 2

    def test_only_weights_are_linked(self, checkpoint: Path, desk: Path) -> None:
        package(inspect(checkpoint, NANO), desk / "model")
        for name in ("config.json", "tokenizer.json"):
            small = inside(desk / "model") / name
            assert small.read_bytes() == (checkpoint / name).read_bytes()
            assert not small.samefile(checkpoint / name)

    @pytest.mark.parametrize("weights", [WeightsMode.LINK, WeightsMode.COPY])
    def test_the_model_outlives_the_checkpoint(
        self, checkpoint: Path, desk: Path, weights: WeightsMode
    ) -> None:
        package(inspect(checkpoint, NANO), desk / "model", weights=weights)
        shutil.rmtree(checkpoint)
        found = ModelFiles.find(desk)
        assert found == ModelFiles(inside(desk / "model"), NANO)
        assert inspect(found.checkpoint, NANO).weight_bytes == (FOLDER / WEIGHTS).stat().st_size

    def test_a_copy_is_a_copy(self, checkpoint: Path, desk: Path) -> None:
        done = package(inspect(checkpoint, NANO), desk / "model", weights=WeightsMode.COPY)
        assert done == Packaged(desk / "model", WeightsMode.COPY)
        target = inside(desk / "model") / WEIGHTS
        assert target.read_bytes() == (checkpoint / WEIGHTS).read_bytes()
        assert (target.stat().st_nlink, (checkpoint / WEIGHTS).stat().st_nlink) == (1, 1)

    def test_a_reference_holds_no_checkpoint(
        self, checkpoint: Path, desk: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(checkpoint.parent)
        package(inspect(Path("checkpoint"), NANO), desk / "model", weights=WeightsMode.REFERENCE)
        monkeypatch.chdir(desk)
        assert not list((desk / "model").rglob("*.safetensors"))
        assert ModelFiles.find(desk / "model") == ModelFiles(checkpoint, NANO)
        shutil.rmtree(checkpoint)
        with pytest.raises(SetupError, match=re.escape(f"The checkpoint {checkpoint} that")):
            ModelFiles.find(desk / "model")

    @pytest.mark.parametrize("weights", WeightsMode)
    def test_all_bytes_are_reported_as_dealt_with(
        self, sharded: Path, desk: Path, weights: WeightsMode
    ) -> None:
        found = inspect(sharded, row_of(sharded))
        steps: list[int] = []
        package(found, desk / "model", weights=weights, progress=steps.append)
        assert sum(steps) == found.weight_bytes

    def test_the_hubs_cache_is_followed_to_its_blobs(self, tmp_path: Path, desk: Path) -> None:
        blobs = copied(tmp_path / "models--x--y" / "blobs")
        snapshot = tmp_path / "models--x--y" / "snapshots" / "0123abc"
        snapshot.mkdir(parents=True)
        for number, blob in enumerate(sorted(blobs.iterdir())):
            (snapshot / blob.name).symlink_to(Path("..", "..", "blobs", f"{number:064x}"))
            blob.rename(blobs / f"{number:064x}")
        package(inspect(snapshot, NANO), desk / "model")
        target = inside(desk / "model") / WEIGHTS
        assert not any(path.is_symlink() for path in (desk / "model").rglob("*"))
        assert target.samefile(snapshot / WEIGHTS)
        shutil.rmtree(tmp_path / "models--x--y")
        assert target.read_bytes() == (FOLDER / WEIGHTS).read_bytes()

    def test_another_file_system_gets_a_copy(self, checkpoint: Path, elsewhere: Path) -> None:
        result = run(
            "package", "--checkpoint", checkpoint, "--variant", "nano", "--output", elsewhere / "model"
        )
        assert result.exit_code == 0
        assert told(result) == [
            "The weights were copied, since they cannot be linked (Invalid cross-device link)."
        ]
        assert f"{WEIGHT_BYTES:,} bytes of weights copied." in result.stdout
        assert (inside(elsewhere / "model") / WEIGHTS).read_bytes() == (checkpoint / WEIGHTS).read_bytes()
        assert (checkpoint / WEIGHTS).stat().st_nlink == 1

    @pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS])
    def test_what_cannot_be_linked_is_copied(
        self, sharded: Path, desk: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        monkeypatch.setattr(os, "link", failing(number))
        done = package(inspect(sharded, row_of(sharded)), desk / "model")
        assert done == Packaged(desk / "model", WeightsMode.COPY, os.strerror(number))
        for path in sharded.glob("model*"):
            assert (inside(desk / "model") / path.name).read_bytes() == path.read_bytes()

    @pytest.mark.parametrize("weights", [WeightsMode.LINK, WeightsMode.COPY])
    def test_a_copy_that_will_not_fit_is_not_begun(
        self, checkpoint: Path, desk: Path, monkeypatch: pytest.MonkeyPatch, weights: WeightsMode
    ) -> None:
        monkeypatch.setattr(os, "link", failing(errno.EXDEV))
        monkeypatch.setattr(packaging, "_copy", None)
        monkeypatch.setattr(
            shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9_000_000, 8_500_000, 500_000)
        )
        with pytest.raises(
            SetupError, match=rf"needs {WEIGHT_BYTES:,} bytes, but 500,000 are free \(--weights reference"
        ):
            package(inspect(checkpoint, NANO), desk / "model", weights=weights)
        assert tree(desk) == {}


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here to write to: /dev/shm is missing, or the only one")
    folder = Path(tempfile.mkdtemp(dir=memory))
    yield folder
    shutil.rmtree(folder)


def failing(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def row_of(folder: Path) -> Any:
    from llama_endpoints.checkpoints.variants import custom_variant

    return custom_variant(folder, dialog="none", infill="none")


class TestOutput:
    def test_folders_above_are_made(self, desk: Path) -> None:
        package(inspect(FOLDER, NANO), desk / "a" / "b" / "model")
        assert [path.name for path in (desk / "a" / "b").iterdir()] == ["model"]

    def test_an_empty_folder_becomes_the_model(self, desk: Path) -> None:
        package(inspect(FOLDER, NANO), desk)
        assert ModelFiles.find(desk).variant == NANO

    def test_the_model_knows_nothing_of_this_machine(self, checkpoint: Path, desk: Path) -> None:
        package(inspect(checkpoint, NANO), desk / "model")
        files = [path for path in (desk / "model").rglob("*") if path.is_file()]
        for machine in (checkpoint.parent, FOLDER.parents[1], Path.home()):
            assert not [path for path in files if str(machine).encode() + b"/" in path.read_bytes()]
        assert not list((desk / "model").rglob("*.pkl"))
        assert not list((desk / "model").rglob("__pycache__"))

    def test_what_exists_is_left_alone(self, desk: Path) -> None:
        (desk / "model").mkdir()
        (desk / "model" / "MLmodel").write_text("mine")
        (desk / "file").write_text("mine")
        before = tree(desk)
        for name in ("model", "file"):
            result = run("package", "--checkpoint", "nano", "--output", desk / name)
            assert result.exit_code == 2
            assert told(result) == [
                f"Error: {desk / name} already exists. Use another --output, or add --overwrite."
            ]
        assert tree(desk) == before

    def test_overwrite_replaces_a_model_whole(self, desk: Path) -> None:
        (desk / "model").mkdir()
        (desk / "model" / "MLmodel").write_text("old")
        (desk / "model" / "left over").write_text("old")
        result = run("package", "--checkpoint", "nano", "--output", desk / "model", "--overwrite")
        assert result.exit_code == 0
        assert ModelFiles.find(desk).variant == NANO
        assert not (desk / "model" / "left over").exists()
        assert [path.name for path in desk.iterdir()] == ["model"]

    @pytest.mark.parametrize("name", ["photos", "file"])
    def test_overwrite_replaces_nothing_but_models(self, desk: Path, name: str) -> None:
        (desk / "photos").mkdir()
        (desk / "photos" / "1.jpg").write_text("mine")
        (desk / "file").write_text("mine")
        before = tree(desk)
        with pytest.raises(
            SetupError, match=f"{name} is not an MLflow model, so --overwrite does not replace it"
        ):
            package(inspect(FOLDER, NANO), desk / name, overwrite=True)
        assert tree(desk) == before

    @pytest.mark.parametrize("weights", WeightsMode)
    @pytest.mark.parametrize("output", [".", "checkpoint", "blobs"])
    def test_overwrite_never_deletes_the_checkpoint(
        self, desk: Path, nano_model: Path, output: str, weights: WeightsMode
    ) -> None:
        checkpoint = linked(desk / "checkpoint", nano_model)
        (desk / "blobs").mkdir()
        (checkpoint / WEIGHTS).rename(desk / "blobs" / WEIGHTS)
        (checkpoint / WEIGHTS).symlink_to(Path("..", "blobs", WEIGHTS))
        for folder in (desk, checkpoint, desk / "blobs"):
            (folder / "MLmodel").write_text("looks like a model")
        before = tree(desk)
        with pytest.raises(SetupError, match="holds the checkpoint itself, which --overwrite would delete"):
            package(inspect(checkpoint, NANO), desk / output, overwrite=True, weights=weights)
        assert tree(desk) == before

    @pytest.mark.parametrize("stop", [OSError(errno.EBUSY, "busy"), KeyboardInterrupt(), SystemExit(143)])
    @pytest.mark.parametrize("failing_rename", [1, 2])
    def test_a_stop_while_replacing_brings_the_old_model_back(
        self, desk: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException, failing_rename: int
    ) -> None:
        (desk / "model").mkdir()
        (desk / "model" / "MLmodel").write_text("old")
        before = tree(desk)
        found = inspect(FOLDER, NANO)
        renames: list[Path] = []
        real = Path.rename

        def rename(self: Path, target: Path) -> Path:
            renames.append(self)
            if len(renames) == failing_rename:
                raise stop
            return real(self, target)

        monkeypatch.setattr(Path, "rename", rename)
        with pytest.raises((SetupError, type(stop))):
            package(found, desk / "model", overwrite=True)
        assert tree(desk) == before


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


def test_the_model_has_the_kernels_of_all_cpus_of_the_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that can't be compiled are named, and those of other sources left out."""
    names = ("kernels-x-one.so", "kernels-x-two.so")
    for name in names:
        (tmp_path / name).write_text(name)
    made = [tmp_path / name for name in names]
    monkeypatch.setattr(packaging.build, "found_or_made_all", lambda: (made, ["g++ fails: too old"]))
    done = package(inspect(FOLDER, NANO), tmp_path / "model")
    found = (tmp_path / "model" / "code" / "llama_serving").rglob("kernels-*.so")
    assert sorted(path.read_text() for path in found) == list(names)
    assert done.no_kernels == "g++ fails: too old"
