"""Weights of a packaged model: copied, linked, resumed."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llama_endpoints.checkpoints.package as packaging
from llama_endpoints.checkpoints.inspection import inspect
from llama_endpoints.checkpoints.package import Packaged, WeightsMode, package
from llama_endpoints.nano import FOLDER
from llama_serving.catalog import NANO
from llama_serving.errors import SetupError
from llama_serving.model_files import ModelFiles
from tests.support.packages import WEIGHTS, copied, failing, inside, run, told, tree

WEIGHT_BYTES = (FOLDER / WEIGHTS).stat().st_size


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


def row_of(folder: Path) -> Any:
    from llama_endpoints.checkpoints.variants import custom_variant

    return custom_variant(folder, dialog="none", infill="none")


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
