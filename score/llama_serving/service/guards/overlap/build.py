"""Builds an overlap index of the text files below a folder."""

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from llama_serving.errors import SetupError
from llama_serving.service.guards.overlap import index_file
from llama_serving.service.guards.overlap.licences import Licences
from llama_serving.service.guards.overlap.lines import grams, hashed, winnowed

LARGEST: Final = 16 << 20
"""Bytes of a file; a larger one is data."""
SKIPPED: Final = frozenset((".git", ".hg", ".svn", "__pycache__", "node_modules"))
MOST_LINES: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Built:
    """What an index has: numbers of files, lines and n-grams, and how many files were left out (binary, or too large)."""

    files: int
    lines: int
    grams: int
    left_out: int


def build(folder: Path, output: Path) -> Built:
    """Index a folder. Symbolic links are not followed.

    Raises:
        SetupError: the folder has no text, or more lines than an index can hold.
    """
    licences = Licences(folder)
    files: list[tuple[str, str]] = []
    hashes, numbers, starts = array("Q"), array("I"), array("I")
    all_grams, positions = array("Q"), array("I")
    left_out = 0
    for path in _paths(folder):
        text = _text(path)
        if text is None:
            left_out += 1
            continue
        of_lines, of_numbers = hashed(text.splitlines())
        if not len(of_lines):
            continue
        of_grams = grams(of_lines)
        kept = winnowed(of_grams)
        files.append((path.relative_to(folder).as_posix(), licences.of(path, text)))
        starts.append(len(hashes))
        all_grams.frombytes(of_grams[kept].tobytes())
        positions.frombytes((kept + len(hashes)).astype(np.uint32).tobytes())
        hashes.frombytes(of_lines.tobytes())
        numbers.frombytes(of_numbers.tobytes())
    if not files or len(hashes) > MOST_LINES:
        raise SetupError(
            f"{folder} has {'too many lines for one index' if files else 'no text files'}. Name another folder."
        )
    order = np.argsort(np.frombuffer(all_grams, np.uint64), kind="stable")
    arrays: dict[str, Any] = {
        "grams": np.frombuffer(all_grams, np.uint64)[order],
        "positions": np.frombuffer(positions, np.uint32)[order],
        "hashes": np.frombuffer(hashes, np.uint64),
        "numbers": np.frombuffer(numbers, np.uint32),
        "starts": np.frombuffer(starts, np.uint32),
    }
    index_file.write(output, files, arrays)
    return Built(len(files), len(hashes), len(all_grams), left_out)


def _paths(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - SKIPPED)
        for name in sorted(names):
            path = Path(place, name)
            if path.is_file() and not path.is_symlink():
                yield path


def _text(path: Path) -> str | None:
    """Return a file's text; None if it is none."""
    if path.stat().st_size > LARGEST:
        return None
    raw = path.read_bytes()
    return None if b"\0" in raw else raw.decode("utf-8", "replace")
