"""Which Python `make` takes: the newest that runs and that torch can be had for; and that it is said."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

NEEDED = "Python 3.11, 3.12 or 3.13 is needed, one that torch 2.13.0 can be had for: install it, or name it with PYTHON=..."
REAL = f"{sys.version_info.major}.{sys.version_info.minor}"
ASKS = """#!/bin/sh
case "$*" in
  *version_info*) {version} ;;
  *"index versions torch"*) {index} ;;
esac
"""


def chosen(folder: Path, *arguments: str) -> tuple[int, str, list[str]]:
    """Exit code, what is chosen, and what is said, with the interpreters of a folder alone."""
    done = subprocess.run(
        [ROOT / ".ci" / "newest-python", "torch==2.13.0", *arguments],
        env={"PATH": f"{folder}:{tools(folder.parent)}"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout.strip(), done.stderr.splitlines()


def tools(folder: Path) -> Path:
    """What the script itself needs, and no Python."""
    kept = folder / "tools"
    kept.mkdir(exist_ok=True)
    for name in ("grep", "sh", "tr"):
        if not (kept / name).exists():
            found = next(
                Path(place, name) for place in os.environ["PATH"].split(":") if Path(place, name).exists()
            )
            (kept / name).symlink_to(found)
    return kept


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def python(folder: Path, name: str, version: str | None, torch: str = "2.15.0, 2.13.0, 2.12.1") -> str:
    """An interpreter, by what the script asks it; of version None it is pyenv's word for one that is not switched on."""
    answers = {
        "version": "exit 127" if version is None else f"echo {version}",
        "index": f'echo "torch (2.15.0)"; echo "Available versions: {torch}"' if torch else "exit 1",
    }
    file = folder / name
    file.write_text(ASKS.format(**answers))
    file.chmod(0o755)
    return str(file)


def test_the_newest_is_taken_and_told(path: Path) -> None:
    python(path, "python3.11", "3.11")
    newest = python(path, "python3.13", "3.13")
    assert chosen(path) == (0, newest, [f"Python 3.13: {newest}"])


def test_one_that_does_not_run_is_passed_over(path: Path) -> None:
    python(path, "python3.13", None)
    older = python(path, "python3.12", "3.12")
    assert chosen(path)[1] == older


@pytest.mark.parametrize("torch", ["2.15.0, 2.14.0", "2.13.0.1", "12.13.0", "2.13.0rc1"])
def test_one_without_torch_is_passed_over_and_that_is_said(path: Path, torch: str) -> None:
    python(path, "python3.13", "3.13", torch)
    older = python(path, "python3.11", "3.11")
    assert chosen(path) == (
        0,
        older,
        ["python3.13 is passed over: the package index has no torch 2.13.0 for it.", f"Python 3.11: {older}"],
    )


def test_where_no_index_answers_the_newest_is_taken(path: Path) -> None:
    assert chosen(path)[1:] == ("", [NEEDED])
    assert chosen(path)[0] == 1
    newest = python(path, "python3.12", "3.12", torch="")
    assert chosen(path)[1] == newest


def test_python3_may_be_one_that_suits(path: Path) -> None:
    assert chosen(path)[0] == 1
    one = python(path, "python3", "3.12")
    assert chosen(path)[1] == one
    python(path, "python3", "3.14")
    assert chosen(path)[0] == 1


def test_the_one_that_is_named_is_taken(path: Path) -> None:
    python(path, "python3.13", "3.13")
    named = python(path, "mine", "3.11", torch="")
    assert chosen(path, named)[:2] == (0, named)
    assert chosen(path, "mine")[:2] == (0, named)


@pytest.mark.parametrize(
    ("version", "said"), [("3.10", "mine is none of Python 3.11, 3.12 and 3.13."), (None, "mine does not run.")]
)
def test_one_that_is_named_and_does_not_suit_is_refused(path: Path, version: str | None, said: str) -> None:
    python(path, "python3.13", "3.13")
    python(path, "mine", version)
    assert chosen(path, "mine") == (1, "", [said, NEEDED])


def test_the_one_that_runs_here_suits() -> None:
    done = subprocess.run(
        [ROOT / ".ci" / "newest-python", "torch==2.13.0", sys.executable],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"{sys.executable}\n",
        f"Python {REAL}: {sys.executable}\n",
    )
