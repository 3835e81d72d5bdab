"""Identifies a model without reading all of its weights (up to 138 GB)."""

import hashlib
from pathlib import Path
from typing import Final

from llama_serving.model_files import ModelFiles

PIECES: Final = 64
PIECE: Final = 4096
COMPUTED: Final = ("config.json", "tokenizer.json")
"""The files beside the weights that decide which text follows a prompt's ids."""


def of(files: ModelFiles) -> dict[str, str]:
    """Return the model's name, and a digest of its row, its small files, and 64 pieces of 4 KiB of each weight file."""
    sha = hashlib.sha256(repr(sorted(files.variant.to_dict().items())).encode())
    for path in sorted(files.checkpoint.iterdir()):
        if path.suffix == ".safetensors":
            _sample(sha, path)
        elif path.suffix == ".json":
            sha.update(path.name.encode() + path.read_bytes())
    return {"name": files.variant.name, "digest": sha.hexdigest()}


def of_checkpoint(folder: Path) -> str:
    """Return a digest that is the same wherever the checkpoint is, packaged or not: SHA-256 over `COMPUTED` and over 64
    pieces of 4 KiB of each weight file, with the files' names.

    Raises:
        OSError: a file cannot be read.
    """
    sha = hashlib.sha256()
    for name in COMPUTED:
        sha.update(name.encode() + hashlib.sha256((folder / name).read_bytes()).digest())
    for path in sorted(folder.glob("*.safetensors")):
        _sample(sha, path)
    return sha.hexdigest()


def _sample(sha: "hashlib._Hash", path: Path) -> None:
    size = path.stat().st_size
    sha.update(f"{path.name} {size}".encode())
    with path.open("rb") as file:
        for number in range(PIECES):
            file.seek(number * max(0, size - PIECE) // (PIECES - 1))
            sha.update(file.read(PIECE))
