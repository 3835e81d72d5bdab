"""What every engine is: token ids in, token ids out, from any thread.

handle = engine.submit(ids, params, deadline=…)
for token in handle: …          # or `async for`
handle.finish_reason            # "stop", "length", "deadline", "cancelled"
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from llama_serving.engine.handle import Handle
from llama_serving.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts since the start, and what is inside now.

    Attributes:
        backend: what computes, where an engine has a choice.
        fallback_reason: why that is not the fastest there is.
        batch_invariant: a sequence's tokens do not depend on what else is computed, so that seeds and greedy texts repeat; None
            where the engine does not know.
        running_handles: of the sequences that are `running`.
        sequences: submitted so far; `tokens_in` and `tokens_out` are theirs.
        alive: it takes requests.
        away: what it needs to generate is not there, and may come back; until then it refuses what it is given.
        failed_starts: how often in a row what it needs could not be started again.
        steps: forward passes; `rows` went through them.
        reused_tokens: tokens of prompts that did not have to be computed, since an earlier prompt had them.
        num_preemptions: how often a sequence had to make room for older ones.
        kv_blocks: blocks of the cache; `kv_blocks_free` of them can be had.
    """

    engine: str
    running: int
    waiting: int
    sequences: int
    tokens_in: int
    tokens_out: int
    alive: bool
    backend: str = ""
    fallback_reason: str = ""
    batch_invariant: bool | None = None
    away: bool = False
    failed_starts: int = 0
    steps: int = 0
    rows: int = 0
    reused_tokens: int = 0
    num_preemptions: int = 0
    kv_blocks: int = 0
    kv_blocks_free: int = 0
    running_handles: "frozenset[Handle]" = frozenset()


class Engine(Protocol):
    """Generates token ids. It knows nothing of text, prompts or protocols."""

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        deadline: float | None = None,
        stop: Callable[[int], bool] | None = None,
        streamed: bool = True,
    ) -> Handle:
        """Queues one sequence; returns at once.

        Args:
            prompt_ids: at least one id, each inside the vocabulary; the caller has checked that they and
                `params.max_new_tokens` fit the context.
            params: how to sample.
            deadline: `time.monotonic()` seconds at which the sequence ends with what it has.
            stop: asked with every generated id, on the engine's thread; True ends the sequence there (stop
                strings, which the engine knows nothing of).
            streamed: its tokens are read as they come. An engine may hand over several at a time otherwise, where that is cheaper.

        Raises:
            BadRequest: the sequence can't fit the engine's memory, whatever else runs.
            Unavailable: the engine is draining, closed or dead, or what it needs is away.
        """
        ...

    @property
    def capacity(self) -> int | None:
        """Tokens that one sequence can come to at most; None where memory sets no limit of its own."""
        ...

    def stats(self) -> EngineStats:
        """What the engine is doing."""
        ...

    def drain(self) -> None:
        """Takes nothing more and returns when everything admitted has ended."""
        ...

    def close(self) -> None:
        """Ends everything now; what runs is cancelled."""
        ...
