"""Checkpoints to package, and what `package` makes of them."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner, Result

from llama_endpoints.cli.main import main
from llama_endpoints.nano import FOLDER
from llama_serving.catalog import NANO

WEIGHTS = "model.safetensors"
SHAPE = NANO.shape


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


def run(*arguments: str | Path) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def told(result: Result) -> list[str]:
    """What stands on standard error beside the progress bar."""
    lines = re.split(r"[\r\n]+", result.stderr)
    return [line for line in lines if line and not line.startswith("weights:")]


def failing(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail
