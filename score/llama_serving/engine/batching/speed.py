"""How long work will take on this machine, without the model: steps of a few layers of its size, whose weights mean nothing.

What is measured is the engine's own code at the lengths that the work has, so that nothing has to be known of the machine.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Final

from llama_serving.engine import compute_threads
from llama_serving.engine.batching.backends.selection import BackendRequest, BackendSelection, select_backend
from llama_serving.llama_config import LlamaConfig
from llama_serving.sampling_params import SamplingParams

SAMPLE: Final = 512
"""Sequences that stand for all."""
WEIGHTS: Final = 1 << 27
"""Of the layers that are measured, at most; but one layer at least."""
PROMPT_ROWS: Final = 256
"""Tokens of prompts in a step, while others generate."""
TIMES: Final = 5


@dataclass(frozen=True, slots=True)
class Length:
    """A sequence.

    Attributes:
        prompt: tokens of it.
        params: with the tokens that it generates, at most.
    """

    prompt: int
    params: SamplingParams

    @property
    def half(self) -> int:
        """Tokens that it has in the middle of its time."""
        return self.prompt + self.params.max_new_tokens // 2


@dataclass(slots=True)
class Amount:
    """What is to be done, in numbers that don't grow with it.

    Attributes:
        sequences: how many.
        prompt_tokens: of all together.
        new_tokens: of all together, at most.
        sample: some of the sequences, each as likely as any other.
    """

    sequences: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    sample: list[Length] = field(default_factory=list)
    _random: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311

    def add(self, length: Length, *, known: bool = False) -> None:
        """One more; `known` is one whose prompt another has brought along."""
        self.sequences += 1
        self.prompt_tokens += 0 if known else length.prompt
        self.new_tokens += length.params.max_new_tokens
        if len(self.sample) < SAMPLE:
            self.sample.append(length)
        elif (at := self._random.randrange(self.sequences)) < SAMPLE:
            self.sample[at] = length


def seconds(
    config: LlamaConfig, request: BackendRequest, amount: Amount, slots: int, threads: int | None = None
) -> float:
    """What that would take, were every answer as long as it may be; loading the model is not in it.

    Args:
        config: of the model.
        request: of the backend.
        amount: what is to be done.
        slots: sequences that are generated at a time.
        threads: of torch; None is its own choice, within a container's quota.

    Raises:
        SetupError: what is wanted can't be had here.
    """
    if not amount.sequences:
        return 0.0
    compute_threads.use(threads)
    together = _together(amount.sample, min(slots, amount.sequences))
    mean = amount.prompt_tokens // amount.sequences
    some = _layers(config)
    selection = select_backend(config, request)
    none_s, some_s = (_measured(replace(config, layers=n), selection, together, mean) for n in (0, some))

    def whole(at: int) -> float:
        return none_s[at] + (some_s[at] - none_s[at]) * config.layers / some

    step_s, token_s = whole(0) + _drawing(config, together), whole(1)
    return max(0.0, amount.new_tokens / len(together) * step_s + amount.prompt_tokens * token_s)


def _layers(config: LlamaConfig) -> int:
    one = (config.weights_per_token - config.hidden * config.vocab) // max(1, config.layers)
    return max(1, min(config.layers, WEIGHTS // max(1, one)))


def _together(sample: Sequence[Length], count: int) -> list[Length]:
    """Sequences as a step meets them: one that generates long is there for longer."""
    until = list(accumulate(length.params.max_new_tokens for length in sample))
    marks = [(n + 0.5) * until[-1] / count for n in range(count)]
    return [next(one for one, end in zip(sample, until, strict=True) if end > mark) for mark in marks]


def _measured(
    config: LlamaConfig, selection: BackendSelection, together: Sequence[Length], prompt: int
) -> tuple[float, float]:
    """Seconds of a step in which those generate, and of a token in a step full of prompts of such a length."""
    from llama_serving.engine.batching.backends.base import Rows

    def blocks(tokens: int) -> int:
        return -(-tokens // selection.block_tokens)

    part = min(max(prompt, 1), PROMPT_ROWS)
    count = PROMPT_ROWS // part
    before = max(0, prompt - part) // 2
    ends = [one.half + 1 for one in together]
    number = max(sum(map(blocks, ends)), count * blocks(before + part)) + 1
    backend = selection.load(config, _Meaningless(), lambda _: number)
    generating, free = [], 1
    for end in ends:
        own = range(free, free + blocks(end))
        generating.append(Rows(ids=(1,), start=end - 1, blocks=own, prefill=False, needs_logits=True))
        free = own.stop
    size = blocks(before + part)
    prompts = [Rows(ids=(1,) * part, start=before, blocks=range(1 + n * size, 1 + (n + 1) * size), prefill=True, needs_logits=True)
               for n in range(count)]  # fmt: skip
    return _best(lambda: backend.forward(generating)), _best(lambda: backend.forward(prompts)) / (count * part)


def _drawing(config: LlamaConfig, together: Sequence[Length]) -> float:
    """Seconds in which the tokens of a step are drawn."""
    import torch

    from llama_serving.engine.batching import sampler
    from llama_serving.engine.batching.sequence import Sequence as Running
    from llama_serving.engine.handle import Handle

    logits = 3 * torch.randn(len(together), config.vocab)  # (about as sharp as a model's)
    running = [Running(n, (1,), one.params, Handle()) for n, one in enumerate(together)]
    return _best(lambda: sampler.draw(logits, running))


def _best(do: Callable[[], Any]) -> float:
    do()
    times = []
    for _ in range(TIMES):
        began = time.perf_counter()
        do()
        times.append(time.perf_counter() - began)
    return min(times)


class _Meaningless:
    """Weights of any model: of the right shape."""

    def tensor(self, name: str, shape: tuple[int, ...]) -> Any:
        import torch

        del name
        return torch.full(shape, 0.01)
