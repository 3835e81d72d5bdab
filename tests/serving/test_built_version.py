"""What the code says it was built from, wherever it lies."""

import json
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from llama_serving import version
from llama_serving.version import Build, build, write_record


def test_a_packaged_model_says_what_packaged_it(nano_model: Path) -> None:
    code = nano_model / "code" / "llama_serving"
    assert json.loads((code / "build.json").read_text(encoding="utf-8")) == asdict(build())
    assert build(code) == build()
    assert build().version == "0.1.0"


def test_a_record_counts_before_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "build", lambda: Build("7", "abc"))
    write_record(tmp_path)
    assert build(tmp_path) == Build("7", "abc")


def test_code_that_is_copied_alone_knows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(version, "version", missing)
    assert build(tmp_path / "llama_serving") == Build("", "")
