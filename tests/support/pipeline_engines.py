"""What the tests of the pipeline engine share."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from llama_serving.catalog import NANO
from llama_serving.engine.base import Engine
from llama_serving.engine.handle import Handle
from llama_serving.sampling_params import SamplingParams
from tests.support.draws import PATIENCE_S

VOCAB: Final = NANO.shape.vocab
GREEDY: Final = SamplingParams(max_new_tokens=24)
SAMPLED: Final = replace(GREEDY, temperature=1.5, seed=11)
PROMPTS: Final = {
    "one token": (1,),
    "a few": (1, 307, 283, 539, 931, 1001, 298),
    "repetitive": (1, 300, 300, 300, 300, 300),
    "bytes": (1, *range(3, 259, 7)),
    "600 tokens": (1, *(259 + (n * 37) % 640 for n in range(600))),
}
PROMPT: Final = PROMPTS["a few"]


def ids_of(handle: Handle) -> list[int]:
    return [token.id for token in handle]


def run(
    engine: Engine, prompt: Sequence[int], params: SamplingParams, **more: float
) -> tuple[list[int], str | None]:
    handle = engine.submit(prompt, params, **more)
    return ids_of(handle), handle.finish_reason


def in_thread(work: Callable[[], object]) -> None:
    """Run `work` in a thread, and fail if it blocks."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "it blocks"


async def collected(handle: Handle) -> list[int]:
    return [token.id async for token in handle]
