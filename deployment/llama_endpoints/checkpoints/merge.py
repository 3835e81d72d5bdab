"""Merge an adapter into a checkpoint's weights: file by file, a block of rows at a time, in float32.

A merged tensor keeps the base's type and shape, so a merged file differs from the base's only in some bytes: the header is
copied, and at most one block of rows is in memory.
"""

import errno
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from llama_endpoints.checkpoints.adapter import CONFIG, WEIGHTS, LoraAdapter, Update
from llama_endpoints.checkpoints.inspection import Checkpoint, inspect
from llama_endpoints.checkpoints.tensor_file import (
    ITEM_BYTES,
    Floats,
    Tensor,
    TensorFile,
    as_float32,
    from_float32,
)
from llama_serving.errors import SetupError

_BLOCK_VALUES: Final = 4 * 1024 * 1024
"""The most elements of a weight in memory at a time."""
_CHUNK: Final = 16 * 1024 * 1024

Progress = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class TensorChange:
    """How far a tensor was moved: Frobenius norms of the difference and of the base."""

    difference: float
    base: float

    @property
    def relative(self) -> float:
        """The difference relative to the base; infinity for a base of zeros."""
        if self.base:
            return self.difference / self.base
        return math.inf if self.difference else 0.0


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged checkpoint.

    Attributes:
        checkpoint: inspected, with a record of its origin.
        changes: by name of the tensor.
    """

    checkpoint: Checkpoint
    changes: Mapping[str, TensorChange]


def merge(
    base: Checkpoint,
    adapter: LoraAdapter,
    folder: Path,
    *,
    link: bool = True,
    progress: Progress = lambda _: None,
) -> Merged:
    """Write the merged checkpoint to `folder`, which must not exist.

    Args:
        base: an unquantized checkpoint.
        adapter: the adapter, read for the base's shape.
        folder: a folder on a disk with room for another copy of the weights.
        link: whether unchanged files are hard-linked to the base's if possible.
        progress: called with processed bytes of the base.

    Raises:
        SetupError: a sum overflows its type.
    """
    folder.mkdir()
    _check_room(base, folder)
    for path in base.small:
        shutil.copyfile(path, folder / path.name)
    changes: dict[str, TensorChange] = {}
    digests: dict[str, str] = {}
    for path in base.weights:
        digests[path.name] = _merge_file(
            path, folder / path.name, adapter, changes, link=link, progress=progress
        )
    found = inspect(folder, base.variant)
    record = _record(digests, adapter, changes)
    merged = replace(found, warnings=base.warnings, merged=record, gguf=base.gguf)
    return Merged(merged, changes)


def _record(
    digests: Mapping[str, str], adapter: LoraAdapter, changes: Mapping[str, TensorChange]
) -> dict[str, Any]:
    """Return the record of the weights' origin."""
    files = (adapter.folder / CONFIG, adapter.folder / WEIGHTS)
    return {
        "base": dict(digests),
        "adapter": {path.name: _digest(path) for path in files},
        "relative_change": {name: _six_digits(change.relative) for name, change in changes.items()},
    }


def _six_digits(value: float) -> float | None:
    """Round a number for JSON, which has no infinity."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _merge_file(  # noqa: PLR0913  (a file, and what is told of it)
    source: Path,
    target: Path,
    adapter: LoraAdapter,
    changes: dict[str, TensorChange],
    *,
    link: bool,
    progress: Progress,
) -> str:
    """Merge one file. Return the SHA-256 of the base's file."""
    file = TensorFile.read(source) if source.suffix == ".safetensors" else None
    if file is None or not file.tensors.keys() & adapter.updates.keys():
        if not (link and _linked(source, target)):
            shutil.copyfile(source, target)
        progress(source.stat().st_size)
        return _digest(source)
    with source.open("rb") as reader, target.open("xb") as writer:
        stream = _Stream(reader, writer, progress)
        writer.write(stream.take(file.header_bytes))
        for tensor in file.tensors.values():
            update = adapter.updates.get(tensor.name)
            if update is None:
                stream.copy(tensor.stop - tensor.start)
            else:
                changes[tensor.name] = _add(stream, tensor, update, adapter.file)
        writer.flush()
        os.fsync(writer.fileno())
    return stream.hasher.hexdigest()


class _Stream:
    """The base's file, read sequentially, and the merged one."""

    def __init__(self, reader: IO[bytes], writer: IO[bytes], progress: Progress) -> None:
        self.writer = writer
        self.hasher = hashlib.sha256()
        self._reader = reader
        self._progress = progress

    def take(self, count: int) -> bytes:
        """Return the next bytes of the base's file."""
        raw = self._reader.read(count)
        if len(raw) != count:
            raise OSError(errno.EIO, "a file of the base became shorter while it was read")
        self.hasher.update(raw)
        self._progress(count)
        return raw

    def copy(self, count: int) -> None:
        """Copy bytes unchanged."""
        while count:
            size = min(_CHUNK, count)
            self.writer.write(self.take(size))
            count -= size


def _add(stream: _Stream, tensor: Tensor, update: Update, adapter: TensorFile) -> TensorChange:
    """Merge one tensor by blocks of rows."""
    rows, columns = tensor.shape[0], math.prod(tensor.shape[1:])
    product = _product(update, adapter)
    replacement = (
        None if update.replacement is None else adapter.floats(update.replacement).reshape(rows, columns)
    )
    difference = norm = 0.0
    step = max(1, _BLOCK_VALUES // columns)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        raw = stream.take((stop - start) * columns * ITEM_BYTES[tensor.dtype])
        before = as_float32(raw, tensor.dtype, tensor.name).reshape(stop - start, columns)
        after = before if replacement is None else replacement[start:stop]
        if product is not None:
            after = after + product(start, stop)
        merged = from_float32(after, tensor.dtype)
        _check_finite(merged, tensor)
        stream.writer.write(merged)
        difference += float(np.square(after - before, dtype=np.float64).sum())
        norm += float(np.square(before, dtype=np.float64).sum())
    return TensorChange(math.sqrt(difference), math.sqrt(norm))


def _product(update: Update, adapter: TensorFile) -> Callable[[int, int], Floats] | None:
    """Return a function that computes rows of the scaled product."""
    if update.a is None or update.b is None:
        return None
    a, b, scale = adapter.floats(update.a), adapter.floats(update.b), np.float32(update.scale)
    if update.embedding:
        return lambda start, stop: (a[:, start:stop].T @ b.T) * scale
    return lambda start, stop: (b[start:stop] @ a) * scale


def _check_finite(raw: bytes, tensor: Tensor) -> None:
    if not np.isfinite(as_float32(raw, tensor.dtype)).all():
        raise SetupError(
            f"{tensor.name} with the adapter added exceeds the range of {tensor.dtype}: the adapter, its scale or the base "
            "is damaged. Nothing was written."
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source.resolve(), target)
    except OSError:  # a copy works too
        return False
    return True


def _check_room(base: Checkpoint, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < base.weight_bytes:
        raise OSError(
            errno.ENOSPC, f"the merged weights need {base.weight_bytes:,} bytes where {free:,} are free"
        )
