"""The quality of lower-precision weights: nano's bits per byte of Python, fewer are better.

`python -m load_tests.bench.quality` prints it. The Python is this interpreter's standard library. `python -m load_tests.bench.quality CHECKPOINT`
prints how far the next token's distribution lies from that of bfloat16 weights, for a checkpoint that needs no text, such as a random one.
"""

from __future__ import annotations

import random
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from llama_endpoints.nano import FOLDER, evaluate
from llama_endpoints.nano.corpus import File
from llama_serving.catalog import NANO
from llama_serving.engine.batching.backends.base import Rows
from llama_serving.engine.batching.backends.selection import BackendRequest, select_backend
from llama_serving.engine.batching.checkpoint import CheckpointWeights, read_config
from llama_serving.prompts.tokenizer import Tokenizer
from llama_serving.settings import QUANTIZATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llama_serving.engine.batching.backends.base import Backend

FILES: Final = 40
SIZES: Final = (1_000, 4_000)
"""The most bytes of a file: each fits nano's context."""


TOKENS: Final = 256
"""Random tokens after which the distributions are compared."""


def loaded(quantization: str, folder: Path = FOLDER) -> Backend:
    """Return a checkpoint on the native backend.

    Raises:
        SetupError: the backend cannot be used here.
    """
    config = read_config(folder)
    selection = select_backend(config, BackendRequest("bfloat16", "native", quantization))
    tokens = NANO.trained_positions.value
    return selection.load(config, CheckpointWeights(folder), lambda _: -(-tokens // selection.block_tokens))


def distributions(folder: Path, quantization: str) -> torch.Tensor:
    """Return (tokens, vocab) log probabilities after each of some random tokens."""
    backend = loaded(quantization, folder)
    rng = random.Random(2)  # noqa: S311
    blocks = range(backend.num_blocks)
    rows = [
        Rows((rng.randrange(backend.vocab),), at, blocks, prefill=True, num_logits=1) for at in range(TOKENS)
    ]
    return backend.forward(rows).double().log_softmax(-1)


def divergences(folder: Path) -> dict[str, float]:
    """Return the mean Kullback-Leibler divergence in bits from the distributions with bfloat16 weights."""
    exact = distributions(folder, "none")
    found = {}
    for name in QUANTIZATIONS[1:]:
        off = exact - distributions(folder, name)
        found[name] = float((exact.exp() * off).sum(-1).mean()) / float(torch.log(torch.tensor(2.0)))
    return found


def bits(backend: Backend) -> Callable[[Sequence[int]], float]:
    """Return a function that computes the bits of a text's tokens, each given those before it."""

    def of(ids: Sequence[int]) -> float:
        whole = range(backend.num_blocks)
        rows = [Rows((token,), at, whole, prefill=True, num_logits=1) for at, token in enumerate(ids[:-1])]
        logits = torch.cat([backend.forward(rows[at : at + 256]) for at in range(0, len(rows), 256)])
        taken = logits.log_softmax(-1)[torch.arange(len(rows)), torch.tensor(ids[1:])]
        return float(-taken.double().sum()) / float(torch.log(torch.tensor(2.0)))

    return of


def texts() -> list[File]:
    """Return some small files of the standard library, the same in each run."""
    folder = Path(sysconfig.get_path("stdlib"))
    small = [path for path in sorted(folder.rglob("*.py")) if SIZES[0] < path.stat().st_size <= SIZES[1]]
    chosen = random.Random(1).sample(small, FILES)  # noqa: S311
    return [File("python", path.name, path.read_text(encoding="utf-8")) for path in chosen]


def table() -> dict[str, float]:
    """Return bits per byte: in float32 by the training code, and by the kernels in bf16 and with quantized weights."""
    tokenizer, files = Tokenizer.from_folder(FOLDER, NANO.special_ids), texts()
    ways = {"float32": evaluate.Reader(FOLDER).bits} | {name: bits(loaded(name)) for name in QUANTIZATIONS}
    return {name: evaluate.bits_per_byte(way, files, tokenizer) for name, way in ways.items()}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        for name, value in divergences(Path(sys.argv[1])).items():
            print(f"{name}: {value:.6f} bits from bfloat16")  # noqa: T201
    else:
        for name, value in table().items():
            print(f"{name}: {value:.4f} bits a byte")  # noqa: T201
