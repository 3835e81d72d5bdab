"""Inputs of a job: files, folders and patterns -> files, with their names in the records."""

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llama_serving.errors import SetupError

SUFFIXES: Final = (".jsonl", ".ndjson", ".json", ".csv")
"""Suffixes of the files that are taken from a folder; `.gz` may follow."""
_AT_ONCE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class InputFile:
    """An input file.

    Attributes:
        name: in the records, relative to the given input.
    """

    path: Path
    name: str


@dataclass(frozen=True, slots=True)
class Digest:
    """Content of a file, summarized.

    Attributes:
        lines: newlines, and one more for a last line without one; None for a compressed file.
    """

    name: str
    bytes: int
    sha256: str
    lines: int | None


def find(given: Sequence[str], *, but: Sequence[Path] = ()) -> tuple[InputFile, ...]:
    """Return the files, in the order given; those of a folder or a pattern by name.

    A file's name is its path below the common folder of all inputs.

    Args:
        given: files, folders and patterns.
        but: files to leave out of folders and patterns.

    Raises:
        SetupError: an input does not exist, has no file, is given twice, or is not allowed.
    """
    ours = {path.absolute() for path in but}
    found = [(root.absolute(), path.absolute()) for text in given for root, path in _expand(text, ours)]
    if not found:
        raise SetupError("No input was given. Name a file, a folder or a pattern.")
    common = os.path.commonpath([os.path.normpath(root) for root, _ in found])
    sources = tuple(InputFile(path, Path(os.path.relpath(path, common)).as_posix()) for _, path in found)
    name, times = Counter(source.name for source in sources).most_common(1)[0]
    if times > 1:
        raise SetupError(f"{name} is given twice. Name each file once.")
    for source in sources:
        _check(source, ours)
    return sources


def _check(source: InputFile, ours: Collection[Path]) -> None:
    shown = source.name.encode(errors="backslashreplace").decode()
    if not source.path.is_file():
        raise SetupError(f"{shown} is not a regular file. Write its rows to one: an input is read twice.")
    if source.name != shown:
        raise SetupError(f"The name {shown} is not UTF-8. Rename the file.")
    if any(path.exists() and path.samefile(source.path) for path in ours):
        raise SetupError(f"{shown} is an input, and --output would overwrite it. Give another --output.")


def digest(source: InputFile, on_piece: Callable[[int], None]) -> Digest:
    """Read a whole file and return its digest; `on_piece` is called with the number of bytes of each piece.

    Raises:
        SetupError: the file cannot be read.
    """
    sha, size, newlines, last = hashlib.sha256(), 0, 0, b""
    try:
        with source.path.open("rb") as file:
            while piece := file.read(_AT_ONCE):
                sha.update(piece)
                size += len(piece)
                newlines += piece.count(b"\n")
                last = piece[-1:]
                on_piece(len(piece))
    except OSError as error:
        raise SetupError(f"{source.path} can't be read: {error.strerror}.") from error
    packed = source.path.suffix.lower() == ".gz"
    lines = None if packed else newlines + (last not in (b"", b"\n"))
    return Digest(source.name, size, sha.hexdigest(), lines)


def _expand(text: str, ours: Collection[Path]) -> Iterable[tuple[Path, Path]]:
    """Yield the folder that names are relative to, and the file, for each file of an input."""
    path = Path(text)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if _is_rows(file.relative_to(path)) and file.is_file())
        files = [file for file in files if file.absolute() not in ours]
        if not files:
            raise SetupError(f"{text} has no file that ends in {', '.join(SUFFIXES)} (or these with .gz).")
        return [(path, file) for file in files]
    if path.exists():
        return [(path.parent, path)]
    files = sorted(Path(name) for name in glob.glob(text, recursive=True) if Path(name).is_file())  # noqa: PTH207
    files = [file for file in files if file.absolute() not in ours]
    if not files:
        raise SetupError(f"{text} is not a file or folder, and no file matches it as a pattern.")
    return [(file.parent, file) for file in files]


def _is_rows(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and path.name.lower().removesuffix(".gz").endswith(SUFFIXES)
