"""The file of an overlap index: a head, then arrays in a row. It is read by mapping it into memory.

8 bytes   LLOVLP01, the format and its version
8 bytes   length of the head, little endian
head      JSON: `files` ([path, licence] each), `arrays` ({name: [dtype, count]}), `sha256` of files and arrays, `gram` and `winnow`
arrays    each from the next multiple of 64 bytes
"""

import hashlib
import json
import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llama_serving.errors import SetupError
from llama_serving.service.guards.overlap.lines import GRAM, WINNOW

MAGIC: Final = b"LLOVLP01"
ALIGNMENT: Final = 64
DTYPES: Final = {
    "grams": "<u8",  # sorted
    "positions": "<u4",  # of each n-gram: its first line's place in `hashes`
    "hashes": "<u8",  # of each line of each file
    "numbers": "<u4",  # of those lines in their files, from 1
    "starts": "<u4",  # of each file in `hashes`
}
Arrays = Mapping[str, NDArray[Any]]


def write(path: Path, files: Sequence[tuple[str, str]], arrays: Arrays) -> None:
    """Write an index. The file appears complete or not at all."""
    blocks = [np.ascontiguousarray(arrays[name], DTYPES[name]).tobytes() for name in DTYPES]
    sha = _digest_of(files)
    for block in blocks:
        sha.update(block)
    head = json.dumps(
        {
            "files": files,
            "arrays": {name: [dtype, len(arrays[name])] for name, dtype in DTYPES.items()},
            "sha256": sha.hexdigest(),
            "gram": GRAM,
            "winnow": WINNOW,
        }
    ).encode()
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(MAGIC + len(head).to_bytes(8, "little") + head)
        for block in blocks:
            file.write(bytes(-file.tell() % ALIGNMENT))
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read(path: Path) -> tuple[list[tuple[str, str]], Arrays]:
    """Return files and arrays of an index, once its digest is right. The arrays stay in the file.

    Raises:
        SetupError: it can't be read, is no index or one of another version, or is damaged.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # (ValueError: it is empty)
        why = error.strerror if isinstance(error, OSError) else "it is empty"
        raise SetupError(f"the index {path} can't be read ({why}).") from error
    try:
        return _parsed(mapped)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SetupError(
            f"{path} is no index of this version, or is damaged. Write it again with `llama-endpoints guard index`."
        ) from error


def _parsed(mapped: mmap.mmap) -> tuple[list[tuple[str, str]], Arrays]:
    if mapped[:8] != MAGIC:
        raise ValueError
    end = 16 + int.from_bytes(mapped[8:16], "little")
    head = json.loads(mapped[16:end])
    if (head["gram"], head["winnow"]) != (GRAM, WINNOW):
        raise ValueError
    arrays: dict[str, NDArray[Any]] = {}
    sha = _digest_of(head["files"])
    for name, dtype in DTYPES.items():
        count = head["arrays"][name][1]
        end += -end % ALIGNMENT
        arrays[name] = np.frombuffer(mapped, dtype, count, end)
        sha.update(arrays[name].data)
        end += arrays[name].nbytes
    if sha.hexdigest() != head["sha256"]:
        raise ValueError
    return [(str(name), str(licence)) for name, licence in head["files"]], arrays


def _digest_of(files: Sequence[Sequence[str]]) -> "hashlib._Hash":
    return hashlib.sha256(json.dumps(files).encode())
