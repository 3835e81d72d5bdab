"""Where `--version` finds the commit."""

import subprocess
from pathlib import Path

import pytest

from llama_endpoints.version import commit


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "deployment" / "llama_endpoints"
    folder.mkdir(parents=True)
    return folder


def test_a_build_has_a_record(package: Path) -> None:
    (package / "commit.txt").write_text("1a2b3c4\n", encoding="utf-8")
    assert commit(package) == "1a2b3c4"


def test_a_checkout_asks_git(package: Path) -> None:
    root = package.parents[1]
    (root / "pyproject.toml").write_text("", encoding="utf-8")
    git = ("git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run([*git, "init", "--quiet"], check=True)
    assert commit(package) == "", "no commit yet"
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "First"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert head.startswith(commit(package))
    assert len(commit(package)) >= 7


def test_elsewhere_none_is_known(package: Path) -> None:
    assert commit(package) == ""
