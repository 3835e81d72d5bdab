"""Read a GGUF file: its metadata, the place of each tensor, and a tensor's rows as float32.

The header is parsed here and not by `gguf.GGUFReader`, which trusts counts and keeps numpy objects for each number: it needs
3.5 GB for a header of 5 MB. Rows are decoded by the library `gguf`.
(The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)
"""

import errno
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from llama_endpoints.checkpoints.tensor_file import Floats
from llama_serving.errors import SetupError

MAGIC: Final = b"GGUF"
DOWNLOAD_AGAIN: Final = "Download it again."
_VERSIONS: Final = (2, 3)  # version 1 had other lengths; llama.cpp reads it no longer
_LONGEST_HEADER: Final = 32 * 1024 * 1024  # 1 MB with a vocabulary of 32,000; 10 MB with 200,000 and merges
_MOST_DIMENSIONS: Final = 4
_DEFAULT_ALIGNMENT: Final = 32
_LARGEST_ALIGNMENT: Final = 65_536
_SCALARS: Final[Mapping[int, str]] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor's place in a file.

    Attributes:
        kind: ggml's name of its type, such as Q4_K.
        shape: rows first, as in safetensors (GGUF has the opposite order).
        start: offset of its first byte.
        row_bytes: bytes of a row.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    row_bytes: int

    @property
    def rows(self) -> int:
        """The number of rows; a vector has one."""
        return math.prod(self.shape[:-1])

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self.rows * self.row_bytes


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file with its header parsed. Arrays in its metadata are tuples."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @classmethod
    def read(cls, path: Path) -> "GgufFile":
        """Parse a file's header.

        Raises:
            SetupError: it is damaged, cut short or of another format, or `gguf` is not installed.
        """
        try:
            import gguf  # noqa: F401  (asked first: the header itself needs it for types of tensors alone)
        except ImportError as error:
            raise SetupError(
                "The package that decodes GGUF files is not installed: pip install 'llama-endpoints[gguf]'."
            ) from error
        try:
            size = path.stat().st_size
            with path.open("rb") as stream:
                header = _Header(stream, size)
                _check_version(header)
                tensor_count, key_count = header.number("Q"), header.number("Q")
                metadata = _metadata(header, key_count)
                return cls(path, metadata, _tensors(header, tensor_count, metadata))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise SetupError(f"{path} can't be read as a GGUF file: {reason}. {DOWNLOAD_AGAIN}") from error


def read_rows(stream: IO[bytes], tensor: GgufTensor, first: int, stop: int) -> Floats:
    """Return rows of a tensor as float32, in the shape (rows, columns).

    Raises:
        OSError: the file became shorter.
    """
    import gguf

    stream.seek(tensor.start + first * tensor.row_bytes)
    raw = stream.read((stop - first) * tensor.row_bytes)
    if len(raw) != (stop - first) * tensor.row_bytes:
        raise OSError(errno.EIO, "the GGUF file became shorter while it was read")
    rows = np.frombuffer(raw, np.uint8).reshape(stop - first, tensor.row_bytes)
    with np.errstate(all="ignore"):  # a damaged scale gives infinity or NaN, which the caller checks
        values = gguf.dequantize(rows, gguf.GGMLQuantizationType[tensor.kind])
    return np.asarray(values, np.float32).reshape(stop - first, tensor.shape[-1])


class _Header:
    """The beginning of a file, read sequentially and never beyond its limits."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self.file_size = size
        self.position = 0
        self._stream = stream
        self._limit = min(size, _LONGEST_HEADER)

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if count > self._limit - self.position:
            too_long = self._limit == _LONGEST_HEADER
            raise ValueError(
                f"its header is longer than {_LONGEST_HEADER:,} bytes" if too_long else "it is cut short"
            )
        raw = self._stream.read(count)
        if len(raw) != count:
            raise ValueError("it is cut short")
        self.position += count
        return raw

    def number(self, code: str) -> Any:
        """Return the next number; `code` is struct's."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self, errors: str = "strict") -> str:
        """Return the next string: its length, its bytes."""
        return self.take(self.number("Q")).decode("utf-8", errors)

    def value(self, kind: int) -> Any:
        """Return a value of metadata."""
        if kind == _STRING:
            return self.string("replace")
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY:
            raise ValueError(f"its metadata has a value of the unknown type {kind}")
        item, count = self.number("I"), self.number("Q")
        if item == _STRING:
            return tuple(self.string("replace") for _ in range(count))
        if item not in _SCALARS:
            raise ValueError(f"its metadata has an array of the type {item}, which is unknown or nested")
        width = struct.calcsize("<" + _SCALARS[item])
        return struct.unpack(f"<{count}{_SCALARS[item]}", self.take(width * count))


def _check_version(header: _Header) -> None:
    if header.take(len(MAGIC)) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version = header.number("I")
    if version & 0xFFFF == 0:
        raise ValueError("it is big-endian, and only little-endian files are read")
    if version not in _VERSIONS:
        raise ValueError(f"it has version {version}, and only 2 and 3 are read")


def _metadata(header: _Header, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(count):
        key = header.string()
        if key in found:
            raise ValueError(f"its metadata has {key} twice")
        found[key] = header.value(header.number("I"))
    return found


def _tensors(header: _Header, count: int, metadata: Mapping[str, Any]) -> dict[str, GgufTensor]:
    found: dict[str, GgufTensor] = {}
    for _ in range(count):
        tensor = _tensor(header)
        if tensor.name in found:
            raise ValueError(f"it has the tensor {tensor.name} twice")
        found[tensor.name] = tensor
    align = _alignment(metadata)
    base = -(-header.position // align) * align
    placed = {name: _placed(tensor, base, align, header.file_size) for name, tensor in found.items()}
    for before, after in pairwise(sorted(placed.values(), key=lambda tensor: tensor.start)):
        if before.start + before.size > after.start:
            raise ValueError(f"its tensors {before.name} and {after.name} overlap")
    return placed


def _tensor(header: _Header) -> GgufTensor:
    """Return a tensor whose `start` is relative to the end of the header."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    name, dimensions = header.string(), header.number("I")
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise ValueError(f"its tensor {name} has {dimensions} dimensions")
    shape = tuple(reversed([header.number("Q") for _ in range(dimensions)]))
    number, start = header.number("I"), header.number("Q")
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise ValueError(f"its tensor {name} is of the unknown type {number}") from None
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if not all(shape) or shape[-1] % block:
        raise ValueError(f"its tensor {name} of {kind.name} has the impossible shape {shape}")
    return GgufTensor(name, kind.name, shape, start, shape[-1] // block * block_bytes)


def _alignment(metadata: Mapping[str, Any]) -> int:
    align = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(align) is not int or not 1 <= align <= _LARGEST_ALIGNMENT or align & (align - 1):
        raise ValueError(f"its general.alignment is {align!r} and no power of two up to {_LARGEST_ALIGNMENT}")
    return align


def _placed(tensor: GgufTensor, base: int, align: int, file_size: int) -> GgufTensor:
    start = base + tensor.start
    if tensor.start % align:
        raise ValueError(f"its tensor {tensor.name} begins at {tensor.start}, not at a multiple of {align}")
    if start + tensor.size > file_size:
        raise ValueError(
            f"it is cut short: {tensor.name} ends at {start + tensor.size:,} of {file_size:,} bytes"
        )
    return GgufTensor(tensor.name, tensor.kind, tensor.shape, start, tensor.row_bytes)
