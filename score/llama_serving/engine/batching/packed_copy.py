"""Quantized weights of an earlier start, in the user's cache folder: the next start reads them and quantizes nothing.

Only quantized weights are kept: a copy in bfloat16 would have the checkpoint's size, and be read no faster than it is packed.
"""

import hashlib
import json
import logging
import os
import shutil
import struct
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llama_serving.engine.batching.native import build

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

_log = logging.getLogger(__name__)

LEAST: Final = 1 << 26
"""Bytes of weights below which they are quantized again, in less than a second."""
SAMPLE: Final = 4096
"""Bytes of each tensor that tell one checkpoint from another."""
ORDER: Final = ("model.h", "pack.h")
"""The kernels' sources that define the order of packed weights."""
SPARE: Final = 1 << 30
"""Bytes that must be left on the disk."""


@dataclass(frozen=True, slots=True)
class PackedCopy:
    """The place of one checkpoint's packed weights.

    Attributes:
        path: of the file, whether it exists or not. Its name has the digest of checkpoint, quantization and order.
        older: pattern of the names that the same checkpoint's copies have.
    """

    path: Path
    older: str

    @classmethod
    def of(cls, checkpoint: Path, quantization: str, folder: Path | None = None) -> "PackedCopy":
        """Return the place for a checkpoint's folder, in `folder` (default: the user's cache).

        Raises:
            OSError: the weights cannot be read.
        """
        resolved = checkpoint.resolve()
        place = hashlib.sha256(str(resolved).encode()).hexdigest()[:8]
        name = f"{resolved.name}-{place}-{quantization}"
        digest = _digest(resolved, quantization)
        return cls((folder or build.cache() / "packed") / f"{name}-{digest[:32]}.safetensors", f"{name}-*")

    def read(self) -> "dict[str, Tensor]":
        """Return the tensors by name; empty where there is no usable copy."""
        if not self.path.is_file():
            return {}
        try:
            found = dict(_tensors(self.path))
        except Exception as error:
            _log.warning("the packed weights in %s can't be read and are packed again: %s", self.path, error)
            return {}
        _log.info("weights are read from %s, where an earlier start has packed them", self.path)
        return found

    def write(self, tensors: "Mapping[str, Tensor]") -> None:
        """Keep the tensors for the next start, in place of the same checkpoint's older copies.

        Small ones are not kept. A disk that is full or read-only costs a line of log.
        """
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size < LEAST or self.path.exists():
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _require_room(self.path.parent, size)
            self._write(tensors)
        except OSError as error:
            _log.warning("packed weights are not kept for the next start: %s", error)
        else:
            _log.info("packed weights are kept in %s (%s bytes) for the next start", self.path, f"{size:,}")

    def _write(self, tensors: "Mapping[str, Tensor]") -> None:
        from safetensors.torch import save_file

        handle, name = tempfile.mkstemp(prefix=".packed-", dir=self.path.parent)
        os.close(handle)
        made = Path(name)
        try:
            save_file(dict(tensors), made)
            made.replace(self.path)
        finally:
            made.unlink(missing_ok=True)
        for old in self.path.parent.glob(self.older):
            if old != self.path:
                with suppress(OSError):
                    old.unlink()


def _require_room(folder: Path, size: int) -> None:
    if shutil.disk_usage(folder).free < size + SPARE:
        raise OSError(f"{size:,} bytes would leave less than 1 GiB on the disk of {folder}")


def _tensors(path: Path) -> "Iterator[tuple[str, Tensor]]":
    """Yield copies in large pages. The file is opened for each, so that its mapped pages can be released."""
    from safetensors import safe_open

    from llama_serving.engine.batching.backends.blocks import zeros

    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    for name in names:
        with safe_open(path, framework="pt") as file:
            mapped = file.get_tensor(name)
            yield name, zeros(mapped.shape, mapped.dtype).copy_(mapped)


def _digest(checkpoint: Path, quantization: str) -> str:
    """Return a digest of the weights' names, shapes and places, of a part of each tensor, and of what packs them."""
    digest = hashlib.sha256(quantization.encode())
    for source in ORDER:
        digest.update((build.HERE / source).read_bytes())
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
            (length,) = struct.unpack("<Q", file.read(8))
            if not 0 < length <= status.st_size - 8:
                raise OSError(f"{path} is no safetensors file")
            header = file.read(length)
            digest.update(header)
            for begin, end in _places(path, header):
                file.seek(8 + length + begin + max(0, end - begin - SAMPLE) // 2)
                digest.update(file.read(min(SAMPLE, end - begin)))
    return digest.hexdigest()


def _places(path: Path, header: bytes) -> list[tuple[int, int]]:
    try:
        entries = json.loads(header)
        places = [tuple(one["data_offsets"]) for name, one in entries.items() if name != "__metadata__"]
        return [(int(begin), int(end)) for begin, end in places if 0 <= begin <= end]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise OSError(f"{path} is no safetensors file") from error
