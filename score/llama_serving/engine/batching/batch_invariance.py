"""Checks at the start whether a backend is batch-invariant on this machine, with the loaded model's own shapes.

Seeds and greedy texts reproduce if a row's logits have the same bits alone and beside any other rows. Backends are built for
that, but untested libraries, CPUs or compilers could break it.
"""

import logging
import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from llama_serving.engine.batching.backends.base import Backend, Rows

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

STARTS: Final = (40, 600)
"""Positions of the generated tokens in the check: within one block of attention, and beyond it."""
COPIES: Final = 8
"""Copies of each of them in one step: with a part of a prompt they fill more than one block of a product."""
PROMPT: Final = 40
CUT: Final = 17
"""Tokens of the prompt in the check, and where it is divided."""
PART: Final = 2
"""Tokens of it in the step with the generated ones."""
BUDGET_S: Final = 0.3
"""Seconds for the whole check. Prompts are skipped if the model is too large for that."""
PATTERN: Final = 65_521
"""Length of the random numbers that fill keys and values repeatedly: a prime, so that no two blocks are equal."""


def establish(backend: Backend) -> bool:
    """Return whether results are batch-invariant; first make the backend stricter, step by step, until they are.

    Raises:
        Exception: the model cannot be computed.
    """
    if not backend.batch_invariant:
        return False
    while found := violation(backend):
        way = backend.stricter()
        if not way:
            _log.error(
                "results are not batch-invariant on this machine: %s. Seeds do not reproduce texts.", found
            )
            return False
        _log.warning("results were not batch-invariant on this machine: %s. From now on, %s.", found, way)
    return True


def violation(backend: Backend) -> str:
    """Return what a row's logits wrongly depend on; empty if nothing was found."""
    trial = _Trial(backend)
    began = time.monotonic()
    if not trial.generated_tokens_agree():
        return "a generated token's logits depend on what else is in the step"
    passes_s = time.monotonic() - began
    if passes_s < BUDGET_S / 2 and not trial.prompts_agree():
        return "a prompt's logits depend on how it is divided, or on what else is in the step"
    return ""


class _Trial:
    """Sequences that share keys and values, each with a last block of its own to write to."""

    def __init__(self, backend: Backend) -> None:
        self._tokens = backend.block_tokens
        before = max(STARTS) // self._tokens
        self._shared = range(before)
        own = len(STARTS) * COPIES
        prompt = 2 * -(-PROMPT // self._tokens)
        self._backend = backend.trial(before + own + prompt)
        self._own = range(before, before + own)
        self._prompts = range(before + own, before + own + prompt)
        rng = random.Random(0)  # noqa: S311
        self._ids = [rng.randrange(backend.vocab) for _ in range(PROMPT)]
        self._fill(range(before + own))
        for number in range(len(STARTS)):
            first, *others = self._own[number * COPIES : (number + 1) * COPIES]
            saved = self._backend.save([first])
            for other in others:
                self._backend.restore([other], saved)

    def generated_tokens_agree(self) -> bool:
        """Compare each generated token alone with all of them in one step beside a part of a prompt."""
        rows = [self._generated(which, copy) for copy in range(COPIES) for which in range(len(STARTS))]
        part = Rows(self._ids[:PART], 0, self._prompts, prefill=True, num_logits=0)
        together = self._backend.forward([*rows, part]).view(COPIES, len(STARTS), -1)
        alone = [self._backend.forward([self._generated(which, 0)]) for which in range(len(STARTS))]
        return all(_same(together[:, which], alone[which]) for which in range(len(STARTS)))

    def prompts_agree(self) -> bool:
        """Compare a prompt's last token read at once with one read in two parts beside generated tokens."""
        half = len(self._prompts) // 2
        whole = Rows(self._ids, 0, self._prompts[:half], prefill=True, num_logits=1)
        alone = self._backend.forward([whole])
        rows = [self._generated(which, 0) for which in range(len(STARTS))]
        blocks = self._prompts[half:]
        first = Rows(self._ids[:CUT], 0, blocks, prefill=True, num_logits=1)
        second = Rows(self._ids[CUT:], CUT, blocks, prefill=True, num_logits=1)
        self._backend.forward([*rows, first])
        return _same(self._backend.forward([*rows, second])[-1:], alone)

    def _generated(self, which: int, copy: int) -> Rows:
        start = STARTS[which]
        own = self._own[which * COPIES + copy]
        blocks = (*self._shared[: start // self._tokens], own)
        return Rows(self._ids[:1], start, blocks, prefill=False, num_logits=1)

    def _fill(self, blocks: Sequence[int]) -> None:
        import torch

        pattern = torch.randn(PATTERN, generator=torch.Generator().manual_seed(0))
        saved = self._backend.save(blocks)
        for copy in saved:
            flat = copy.view(-1)
            for part in flat.split(PATTERN):
                part.copy_(pattern[: len(part)])
        self._backend.restore(blocks, saved)


def _same(rows: "torch.Tensor", expected: "torch.Tensor") -> bool:
    """Return whether all rows have the expected bits. (Zeros of both signs are equal; NaN is not equal to itself.)"""
    return bool((rows == expected).all())
