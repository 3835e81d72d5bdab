"""Convert a GGUF file into an ordinary checkpoint: config.json, the reference tokenizer, and safetensors in shards.

At most one block of rows is in memory.
"""

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from llama_endpoints.checkpoints.file_patterns import OPTIONAL_FILES
from llama_endpoints.checkpoints.gguf_file import DOWNLOAD_AGAIN, GgufFile, GgufTensor, read_rows
from llama_endpoints.checkpoints.gguf_llama import GgufLlama
from llama_endpoints.checkpoints.gguf_tokenizer import FILE as TOKENIZER
from llama_endpoints.checkpoints.gguf_tokenizer import check_tokens
from llama_endpoints.checkpoints.inspection import adapt, check_tokenizer
from llama_endpoints.checkpoints.package import check_output, staged, writing
from llama_endpoints.checkpoints.quantization import OLD_FILES
from llama_endpoints.checkpoints.tensor_file import ITEM_BYTES, Floats, as_float32, from_float32, header_of
from llama_serving.catalog import ModelVariant
from llama_serving.contract.json_lines import json_document
from llama_serving.errors import SetupError
from llama_serving.llama_config import FILE as CONFIG
from llama_serving.prompts.tokenizer import Tokenizer

SHARD_BYTES: Final = 5_000_000_000  # as save_pretrained of transformers
_BLOCK_VALUES: Final = 4 * 1024 * 1024
_TYPES: Final[Mapping[str, str]] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

Progress = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A GGUF file and the reference tokenizer that belongs to it.

    Attributes:
        llama: what the file holds.
        folder: folder of the tokenizer.
        tokenizer: the tokenizer.
    """

    llama: GgufLlama
    folder: Path
    tokenizer: Tokenizer

    @classmethod
    def open(cls, path: Path, folder: Path) -> "GgufModel":
        """Read and check a file and a tokenizer, but not the weights.

        Raises:
            SetupError: the file cannot be served, or the tokenizer is another model's.
        """
        llama = GgufLlama.of(GgufFile.read(path))
        return cls(llama, folder, check_tokens(llama.file, folder, llama.shape.vocab))

    @property
    def path(self) -> Path:
        """The GGUF file."""
        return self.llama.file.path

    @property
    def origin(self) -> dict[str, str]:
        """The file's name and types, for the record of the packaged model."""
        return {"file": self.path.name, "types": self.llama.kinds}

    def check_variant(self, variant: ModelVariant) -> None:
        """Check early, before the weights are converted, that this is the variant.

        Raises:
            SetupError: it is another model.
        """
        config = self.llama.config
        adapt(variant, config, self.path)
        check_tokenizer(self.tokenizer, variant)
        ends = {variant.eos_id, variant.step_id}  # 70B-Instruct ends at either
        if config["bos_token_id"] != variant.bos_id or config["eos_token_id"] not in ends:
            raise SetupError(
                f"{self.path} begins and ends texts with the ids {config['bos_token_id']} and {config['eos_token_id']}, "
                f"{variant.name} with {variant.bos_id} and {variant.eos_id}. Name the right --variant."
            )

    def write_weights(self, folder: Path, progress: Progress = lambda _: None) -> None:
        """Write the weights into `folder`, in shards of at most 5 GB.

        Args:
            folder: an existing folder.
            progress: called with processed bytes of the file.

        Raises:
            SetupError: a weight is not finite.
        """
        dtype = _TYPES[self.llama.config["dtype"]]
        shards = _shards(self.llama.sources, ITEM_BYTES[dtype])
        free, needed = shutil.disk_usage(folder).free, _bytes(self.llama.sources, dtype)
        if free < needed:
            raise OSError(errno.ENOSPC, f"the converted weights need {needed:,} bytes where {free:,} are free")
        places: dict[str, str] = {}
        with self.path.open("rb") as reader:
            for number, names in enumerate(shards, 1):
                one = len(shards) == 1
                target = "model.safetensors" if one else f"model-{number:05}-of-{len(shards):05}.safetensors"
                places |= dict.fromkeys(names, target)
                with (folder / target).open("xb") as writer:
                    self._write_shard(names, dtype, reader, writer, progress)
        if len(shards) > 1:
            index = {"metadata": {"total_size": needed}, "weight_map": places}
            (folder / "model.safetensors.index.json").write_text(
                json_document(index, indent=2), encoding="utf-8"
            )

    def _write_shard(
        self, names: list[str], dtype: str, reader: IO[bytes], writer: IO[bytes], progress: Progress
    ) -> None:
        sources = self.llama.sources
        writer.write(header_of([(name, sources[name].shape) for name in names], dtype))
        for name in names:
            head = self.llama.shape.head_dim if self.llama.permuted(name) else None
            for rows in _blocks(reader, sources[name], head, progress):
                raw = from_float32(rows, dtype)
                if not np.isfinite(as_float32(raw, dtype)).all():
                    raise SetupError(
                        f"{self.path} has values in {sources[name].name} that are not finite in {dtype}. {DOWNLOAD_AGAIN}"
                    )
                writer.write(raw)
        writer.flush()
        os.fsync(writer.fileno())


@contextmanager
def unpacked(model: GgufModel, output: Path, *, overwrite: bool) -> Iterator[Path]:
    """Create a temporary checkpoint beside `output`, without its weights, and remove it afterwards.

    It is named after the GGUF file, as a checkpoint's folder names the model.

    Raises:
        SetupError: `output` exists, or a file cannot be written.
    """
    with writing(output):
        check_output(output, (model.path, model.folder), overwrite=overwrite)
        with staged(output) as stage:
            folder = stage / (model.path.stem.strip(".") or "model")
            folder.mkdir(parents=True)
            config = json_document(model.llama.config, indent=2)
            (folder / CONFIG).write_text(config, encoding="utf-8")
            patterns = (TOKENIZER, *(name for name in OPTIONAL_FILES if name not in OLD_FILES))
            for path in (path for pattern in patterns for path in model.folder.glob(pattern)):
                if path.is_file():
                    shutil.copyfile(path, folder / path.name)
            yield folder


def _shards(sources: Mapping[str, GgufTensor], item_bytes: int) -> list[list[str]]:
    """Return the names of each shard's tensors."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in sources.items():
        length = math.prod(tensor.shape) * item_bytes
        if shards[-1] and size + length > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += length
    return shards


def _bytes(sources: Mapping[str, GgufTensor], dtype: str) -> int:
    return sum(math.prod(tensor.shape) for tensor in sources.values()) * ITEM_BYTES[dtype]


def _blocks(reader: IO[bytes], tensor: GgufTensor, head: int | None, progress: Progress) -> Iterator[Floats]:
    """Yield a tensor's rows; `head` is the number of rows in a head whose order is llama.cpp's."""
    step = max(1, _BLOCK_VALUES // tensor.shape[-1])
    if head is not None:
        step = head * max(1, step // head)
    for first in range(0, tensor.rows, step):
        stop = min(first + step, tensor.rows)
        rows = read_rows(reader, tensor, first, stop)
        yield rows if head is None else _in_halves(rows, head)
        progress((stop - first) * tensor.row_bytes)


def _in_halves(rows: Any, head: int) -> Floats:
    """Return rows of heads in the hub's order.

    A rotary embedding turns pairs of rows. In GGUF a pair is two neighbours (as in Meta's files); in the hub's form, its
    rows are half a head apart. llama.cpp's convert_hf_to_gguf.py changes the one order into the other for q and k
    (`LlamaModel.permute`); this is the inverse.
    """
    pairs = rows.reshape(-1, head // 2, 2, rows.shape[-1])
    halves: Floats = pairs.swapaxes(1, 2).reshape(rows.shape)
    return halves
