"""The interface of all engines: token ids in, token ids out, from any thread.

handle = engine.submit(ids, params, deadline=…)
for token in handle: …          # or `async for`
handle.finish_reason            # "stop", "length", "deadline", "cancelled"
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from llama_serving.constraints.matcher import Matcher
from llama_serving.engine.handle import Handle
from llama_serving.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts since the start, and the present state.

    Attributes:
        backend: what computes, where an engine has several backends.
        fallback_reason: why that is not the fastest backend.
        instructions: the CPU's instruction set that the backend's kernels use, if it has kernels of its own.
        batch_invariant: whether a sequence's tokens are independent of the rest of the batch, so that seeds and greedy
            texts reproduce; None if the engine does not know.
        running_handles: handles of the `running` sequences.
        sequences: submitted so far; `tokens_in` and `tokens_out` are their tokens.
        alive: the engine accepts sequences.
        away: the server that generates is not reachable and may come back; until then sequences are refused.
        failed_starts: failed restarts of that server in a row.
        steps: forward passes; `rows` is the number of tokens that went through them.
        reused_tokens: prompt tokens that were not computed because an earlier prompt had the same prefix.
        num_preemptions: how often a sequence made room for older ones.
        guessed_tokens: tokens guessed by speculation; `accepted_tokens` of them were right.
        kv_blocks: blocks of the cache; `kv_blocks_free` of them are free.
        remote_kv_usage: share in use of a cache that another process has; None if it does not say.
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
    instructions: str = ""
    batch_invariant: bool | None = None
    away: bool = False
    failed_starts: int = 0
    steps: int = 0
    rows: int = 0
    reused_tokens: int = 0
    num_preemptions: int = 0
    guessed_tokens: int = 0
    accepted_tokens: int = 0
    kv_blocks: int = 0
    kv_blocks_free: int = 0
    remote_kv_usage: float | None = None
    running_handles: "frozenset[Handle]" = frozenset()

    @property
    def kv_usage(self) -> float | None:
        """Share of the cache in use; None if it is not known."""
        return 1 - self.kv_blocks_free / self.kv_blocks if self.kv_blocks else self.remote_kv_usage


class Engine(Protocol):
    """Generates token ids. It knows nothing of text, prompts or protocols."""

    def submit(  # noqa: PLR0913  (all but two are named)
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        deadline: float | None = None,
        stop: Callable[[int], bool] | None = None,
        matcher: Matcher | None = None,
        streamed: bool = True,
    ) -> Handle:
        """Queue one sequence and return at once.

        Args:
            prompt_ids: at least one id, each inside the vocabulary; the caller has checked that they and
                `params.max_new_tokens` fit the context.
            params: how to sample.
            deadline: `time.monotonic()` seconds at which the sequence ends with what it has.
            stop: called with every generated id, on the engine's thread; True ends the sequence there. (Engines know no
                text, so the caller finds stop strings.)
            matcher: holds the text to `params.constraint`; used by this sequence alone, on the engine's thread.
            streamed: tokens are read one by one. Otherwise an engine may deliver several together where that is cheaper.

        Raises:
            BadRequest: the sequence can never fit the engine's memory.
            Unavailable: the engine is draining, closed or dead, or its server is away.
        """

    @property
    def capacity(self) -> int | None:
        """The most tokens of one sequence; None if memory sets no limit of its own."""

    def stats(self) -> EngineStats:
        """Return counts and the present state."""

    def drain(self) -> None:
        """Accept nothing more, and return when all admitted sequences have ended."""

    def close(self) -> None:
        """Stop now; what runs is cancelled."""
