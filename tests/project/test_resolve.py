"""What `environments.resolve` makes of a requirements file, without asking an index."""

from pathlib import Path

import pytest

from environments import resolve
from environments.resolve import Requirements, differences, lines, normal, public, spellings, versions

TEXT = """\
# What it holds.
azureml-dataset-runtime[fuse]==1.62.0.post1
PyYAML==6.0.3

# What those bring. Torch's are left out.
backports.tempfile==1.0
typing_extensions==4.16.0
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "requirements.txt").write_text(TEXT, "utf-8")
    (tmp_path / "Dockerfile").write_text("RUN pip install --index-url https://example.org torch==2\n", "utf-8")
    return tmp_path


def test_a_file_is_what_is_asked_for_and_what_that_brings(image: Path) -> None:
    read = Requirements.read(image / "requirements.txt")
    assert read.asked + "".join(TEXT.splitlines(keepends=True)[-2:]) == TEXT
    assert read.brought == {"backports-tempfile": "1.0", "typing-extensions": "4.16.0"}
    assert read.pinned == {"azureml-dataset-runtime": "1.62.0.post1", "pyyaml": "6.0.3", **read.brought}


def test_cuda_packages_are_pinned_where_torch_is_the_public_indexs(image: Path) -> None:
    assert Requirements.read(image / "requirements.txt").cuda is False
    (image / "Dockerfile").write_text("RUN pip install torch==2\n", "utf-8")
    assert Requirements.read(image / "requirements.txt").cuda is True


@pytest.mark.parametrize("name", ["nvidia-cublas", "nvidia-cudnn-cu13", "cuda-toolkit", "triton"])
def test_cuda_packages(name: str) -> None:
    assert resolve.CUDA.fullmatch(name)
    assert not resolve.CUDA.fullmatch(f"not-{name}")


def test_differences() -> None:
    pinned = {"a": "1", "b": "2", "torch": "2.13.0"}
    assert differences(pinned, {"a": "1", "b": "2", "torch": "2.13.0+cpu"}) == []
    assert differences(pinned, {"a": "2", "c": "3", "torch": "2.13.0"}) == [
        "c is not pinned: today it would be 3",
        "b is pinned, and nothing needs it",
        "a: pinned 1, resolved 2",
    ]


def test_names_are_compared_as_indexes_do() -> None:
    assert [normal(name) for name in ("PyYAML", "backports.tempfile", "a__b-.c")] == [
        "pyyaml",
        "backports-tempfile",
        "a-b-c",
    ]
    assert spellings(TEXT)["pyyaml"] == "PyYAML"
    assert versions("# a==1\nB[x,y]==2.0+cpu\nc>=3\n") == {"b": "2.0+cpu"}
    assert (public("2.13.0+cpu"), public("1.0b2")) == ("2.13.0", "1.0b2")
    assert lines({"A": "1", "b": "2"}) == "A==1\nb==2\n"


def test_an_image_with_two_environments_has_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpu").mkdir()
    for name in ("requirements.txt", "vllm-requirements.txt"):
        (tmp_path / "gpu" / name).touch()
    monkeypatch.setattr(resolve, "FOLDER", tmp_path)
    assert resolve.files() == {
        "gpu": tmp_path / "gpu/requirements.txt",
        "gpu/vllm": tmp_path / "gpu/vllm-requirements.txt",
    }


def test_all_images_are_found() -> None:
    assert list(resolve.files()) == ["batch", "evaluate", "gpu", "gpu/vllm", "online", "package"]
