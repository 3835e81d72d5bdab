"""Small random Llamas as GGUF files, in each type that is read, and files made of raw metadata and tensors."""

import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from llama_endpoints.nano import FOLDER
from load_tests.bench import write_gguf
from tests.support import llamas

Array = NDArray[Any]
Kind = gguf.GGMLQuantizationType

LLAMA: Final = llamas.Llama(
    layers=2, hidden=256, ffn=512, heads=4, kv_heads=2, head_dim=64, vocab=4096, positions=512
)
"""Wide enough for blocks of 256, with grouped heads and nano's vocabulary."""


def checkpoint(folder: Path, dtype: torch.dtype = torch.float32, llama: llamas.Llama = LLAMA) -> Path:
    """A random model with nano's tokenizer."""
    llamas.write(llama, folder, dtype=dtype)
    shutil.copyfile(FOLDER / "tokenizer.json", folder / "tokenizer.json")
    return folder


def write(source: Path, target: Path, kind: Kind | Callable[[str], Kind]) -> Path:
    """The checkpoint `source` as a GGUF file."""
    write_gguf.write(source, target, kind if callable(kind) else lambda _: kind, encode)
    return target


def encode(values: Array, kind: Kind) -> Array:
    """The bytes of a matrix; K types by us, since the library only decodes them."""
    if kind.name not in ("Q4_K", "Q5_K", "Q6_K"):
        encoded: Array = gguf.quantize(values, kind)
        return encoded
    blocks = values.reshape(-1, 256)
    packed = _q6_k(blocks) if kind is Kind.Q6_K else _q45_k(blocks, 5 if kind is Kind.Q5_K else 4)
    return packed.reshape(values.shape[0], -1)


def decoded(values: Array, kind: Kind) -> Array:
    """A matrix after it was encoded and decoded."""
    back: Array = gguf.dequantize(encode(values, kind), kind)
    return back.reshape(values.shape)


def _q45_k(blocks: Array, bits: int) -> Array:
    """Q4_K and Q5_K: eight parts of 32 weights, scale * q - minimum, both of 6 bits times a float16."""
    parts = blocks.reshape(-1, 8, 32)
    low = np.minimum(parts.min(-1), 0)
    scale, offset = (parts.max(-1) - low) / (2**bits - 1), -low
    (d, sc), (dmin, mn) = _six_bits(scale), _six_bits(offset)
    step = np.maximum((d * sc)[..., None], 1e-12)
    q = np.rint((parts + (dmin * mn)[..., None]) / step).clip(0, 2**bits - 1).astype(np.uint8)
    scales = np.concatenate(
        [
            sc[:, :4] | sc[:, 4:] >> 4 << 6,
            mn[:, :4] | mn[:, 4:] >> 4 << 6,
            sc[:, 4:] & 15 | (mn[:, 4:] & 15) << 4,
        ],
        axis=1,
    )
    nibbles = (q & 15).reshape(-1, 4, 2, 32)
    high = (q >> 4 << np.arange(8, dtype=np.uint8).reshape(1, 8, 1)).sum(1, dtype=np.uint8)
    parts_of_a_block = [_f16(d), _f16(dmin), scales, *([high] if bits == 5 else [])]
    return np.concatenate(
        [*parts_of_a_block, (nibbles[:, :, 0] | nibbles[:, :, 1] << 4).reshape(-1, 128)], axis=1
    )


def _six_bits(values: Array) -> tuple[Array, Array]:
    unit = (values.max(-1, keepdims=True) / 63).astype(np.float16).astype(np.float32)
    return unit, np.rint(values / np.maximum(unit, 1e-12)).clip(0, 63).astype(np.uint8)


def _q6_k(blocks: Array) -> Array:
    """16 parts of 16 weights, scale * (q - 32): the scale 8 bits times a float16."""
    parts = blocks.reshape(-1, 16, 16)
    scale = np.abs(parts).max(-1) / 31
    d = (scale.max(-1, keepdims=True) / 127).astype(np.float16).astype(np.float32)
    sc = np.rint(scale / np.maximum(d, 1e-12)).clip(0, 127).astype(np.int8)
    step = np.maximum((d * sc)[..., None], 1e-12)
    q = (np.rint(parts / step).clip(-32, 31) + 32).astype(np.uint8)
    low = (q & 15).reshape(-1, 2, 2, 64)
    high = (q >> 4).reshape(-1, 2, 4, 32) << np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    return np.concatenate(
        [
            (low[:, :, 0] | low[:, :, 1] << 4).reshape(-1, 128),
            high.sum(2, dtype=np.uint8).reshape(-1, 64),
            sc.view(np.uint8),
            _f16(d),
        ],
        axis=1,
    )


def _f16(values: Array) -> Array:
    return values.astype("<f2").view(np.uint8)


def rewritten(source: Path, target: Path, change: Mapping[str, Any], **more: list[float]) -> Path:
    """A GGUF file with other metadata (None removes a key) and more tensors."""
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(target, "llama")
    writer.kv_data[0].clear()
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in change:
            item = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], item)
    for key, value in change.items():
        if value is not None:
            writer.add_key_value(key, *value)
    for one in reader.tensors:
        writer.add_tensor(one.name, one.data, raw_dtype=one.tensor_type)
    for name, values in more.items():
        writer.add_tensor(name, np.array(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def string(text: str | bytes) -> bytes:
    """A string as the format has it."""
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, kind: int, value: bytes) -> bytes:
    """A key of the metadata."""
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: str, dims: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    """A tensor's line in the header."""
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def raw_file(
    path: Path, keys: Sequence[bytes] = (), tensors: Sequence[bytes] = (), data: bytes = b"", version: int = 3
) -> Path:
    """A file of these parts, padded to the usual alignment."""
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join([*keys, *tensors])
    path.write_bytes(header + bytes(-len(header) % 32) + data)
    return path
