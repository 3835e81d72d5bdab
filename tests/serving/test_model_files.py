"""Finding the packaged model in the folder layouts of Azure and others."""

from pathlib import Path

import pytest

from llama_serving.errors import SetupError
from llama_serving.model_files import ModelFiles


def test_links_to_folders_are_followed(nano_model: Path, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model").symlink_to(nano_model, target_is_directory=True)
    assert ModelFiles.find(tmp_path).variant.name == "nano"


def test_a_circle_of_links_ends(nano_model: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(nano_model, target_is_directory=True)
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    assert ModelFiles.find(tmp_path).variant.name == "nano"


def test_the_same_model_under_two_names_is_one(nano_model: Path, tmp_path: Path) -> None:
    for name in ("1", "latest"):
        (tmp_path / name).symlink_to(nano_model, target_is_directory=True)
    assert ModelFiles.find(tmp_path).variant.name == "nano"


def test_two_models_are_one_too_many(tmp_path: Path) -> None:
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "MLmodel").touch()
    with pytest.raises(SetupError, match=r"2 MLmodel files .* holds 1, 2"):
        ModelFiles.find(tmp_path)
