"""What `package` writes, and where it refuses to."""

import errno
from pathlib import Path

import pytest

from llama_endpoints.checkpoints.inspection import inspect
from llama_endpoints.checkpoints.package import WeightsMode, package
from llama_endpoints.nano import FOLDER
from llama_serving.catalog import NANO
from llama_serving.errors import SetupError
from llama_serving.model_files import ModelFiles
from tests.support.packages import WEIGHTS, linked, run, told, tree


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
