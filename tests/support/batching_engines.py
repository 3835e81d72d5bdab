"""A small model behind the batching engine, whose steps a test can hold."""

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import torch

from llama_serving.engine.batching.backends.base import Backend, Rows
from llama_serving.engine.batching.engine import BatchingEngine
from llama_serving.engine.handle import Handle
from llama_serving.sampling_params import SamplingParams
from tests.support import backends
from tests.support.draws import PATIENCE_S

GREEDY: Final = SamplingParams(max_new_tokens=12)
BLOCKS: Final = 400


@dataclass(frozen=True)
class Model:
    """A checkpoint, and the backend that computes it."""

    folder: Path
    backend: str = "portable"


class Watched:
    """A backend with a hook before each pass, and a record of its rows."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.before: Callable[[Sequence[Rows]], None] = lambda batch: None
        self.passes: list[list[int]] = []
        self.threads: set[int] = set()

    def forward(self, batch: Sequence[Rows]) -> torch.Tensor:
        self.threads.add(threading.get_ident())
        self.before(batch)
        if batch[0].blocks[0]:  # not the engine's own probe
            self.passes.append([len(rows.ids) for rows in batch])
        return self.inner.forward(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Started:
    """An engine with a watched backend and a cache of `blocks` blocks of 16 tokens."""

    def __init__(self, model: Model, *, blocks: int = BLOCKS, **options: Any) -> None:
        self.blocks = blocks // 2 if model.backend.startswith("native") else blocks

        def load() -> Watched:
            self.backend = Watched(backends.make(model.backend, model.folder, self.blocks + 1))
            return self.backend

        self.engine = BatchingEngine(load, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def ids(self, prompt: Sequence[int], params: SamplingParams = GREEDY) -> list[int]:
        return [token.id for token in self.engine.submit(prompt, params)]


def prompt(seed: int, count: int = 20) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 300) for _ in range(count)]


def ids_of(handle: Handle) -> list[int]:
    return [token.id for token in handle]


class Gate:
    """Holds the engine's thread before one pass until the test releases it."""

    def __init__(self, backend: Watched, passes: int = 0) -> None:
        self.reached, self._go_on = threading.Event(), threading.Event()
        self._left = passes
        backend.before = self._wait

    def _wait(self, _: Sequence[Rows]) -> None:
        if self._left == 0:
            self.reached.set()
            assert self._go_on.wait(PATIENCE_S)
        self._left -= 1

    def open(self) -> None:
        self._go_on.set()


def alone(model: Model, jobs: Sequence[tuple[list[int], SamplingParams]]) -> list[list[int]]:
    """Each by itself, with nothing shared, in one chunk."""
    with Started(model, max_num_seqs=1, share_prefixes=False) as started:
        return [started.ids(*job) for job in jobs]
