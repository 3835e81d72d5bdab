"""Hooks on the engine's thread, before it draws a token."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import pytest

from llama_serving.engine.handle import Token
from llama_serving.engine.reference_sampler import Row, Sampler
from llama_serving.sampling_params import SamplingParams

PATIENCE_S: Final = 60
"""How long a test waits for what would never come if the code were wrong."""

Hook = Callable[[SamplingParams, int], None]
BeforeDraw = Callable[[Hook], None]


@pytest.fixture
def before_draw(monkeypatch: pytest.MonkeyPatch) -> BeforeDraw:
    """Runs a hook on the engine's thread before each draw, with the sequence's parameters and position.

    The batching engine draws for all at once; after a fault it draws again, for each by itself.
    """
    from llama_serving.engine.batching import sampler  # (torch, which few tests need)

    original, together = Sampler.draw, sampler.draw

    def install(hook: Hook) -> None:
        def draw(self: Sampler, logits: Row) -> Token:
            hook(self.params, self._position)
            return original(self, logits)

        def draw_all(logits: Any, sequences: Sequence[Any]) -> list[Token]:
            for sequence in sequences:
                hook(sequence.params, sequence.num_generated)
            return together(logits, sequences)

        monkeypatch.setattr(Sampler, "draw", draw)
        monkeypatch.setattr(sampler, "draw", draw_all)

    return install


class Gate:
    """A hook that holds the engine's thread at one draw of one sequence until the test lets it go on."""

    def __init__(self, seed: int, position: int = 0) -> None:
        self.reached, self._go_on = threading.Event(), threading.Event()
        self._at = (seed, position)

    def __call__(self, params: SamplingParams, position: int) -> None:
        if (params.seed, position) == self._at:
            self.reached.set()
            assert self._go_on.wait(PATIENCE_S)

    def open(self) -> None:
        self._go_on.set()
