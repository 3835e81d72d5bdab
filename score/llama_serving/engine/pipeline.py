"""The reference engine: `transformers.pipeline` loads the model, its `generate` runs one sequence at a time.

Correctness comes before speed: every other engine is tested against this one. Each sequence runs alone, so results do not
depend on a batch. Our own sampler draws every token, as a logits processor that leaves one choice, so no library setting
takes part.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from llama_serving.constraints.matcher import Matcher
from llama_serving.engine import compute_threads
from llama_serving.engine.base import EngineStats
from llama_serving.engine.handle import Handle
from llama_serving.engine.reference_sampler import Sampler, read
from llama_serving.engine.thread import EngineThread, ThreadedEngine
from llama_serving.errors import InternalError, ServingError, SetupError
from llama_serving.llama_config import load as load_config
from llama_serving.llama_config import refuse_quantized
from llama_serving.sampling_params import FinishReason, SamplingParams

_log = logging.getLogger(__name__)

_NO_POOL: Final = "HF_DEACTIVATE_ASYNC_LOAD"
_LOADING: Final = threading.Lock()
SCORED: Final = 64
"""Prompt tokens whose logits are in memory together, if their log-probabilities are requested."""


@dataclass(frozen=True, slots=True)
class _PipelineSequence:
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    deadline: float | None
    stop: Callable[[int], bool] | None
    matcher: Matcher | None
    handle: Handle

    def early_end(self) -> FinishReason | None:
        return self.handle.early_end(self.deadline, time.monotonic())


class PipelineEngine(ThreadedEngine):
    """Generates with transformers, one sequence after another, on the one thread that owns torch.

    Args:
        checkpoint: a folder with `config.json` and safetensors.
        dtype: `float32`, `bfloat16` or `float16`.
        threads: of torch; None is torch's default.

    Raises:
        SetupError: transformers cannot load the checkpoint.
    """

    def __init__(self, checkpoint: Path, *, dtype: str, threads: int | None = None) -> None:
        self._running: _PipelineSequence | None = None
        self._tokens_out = 0
        self._model: Any = None

        def load() -> None:
            try:
                refuse_quantized(load_config(checkpoint), "pipeline")
                self._model = _load(checkpoint, dtype, threads)
            except SetupError:
                raise
            except Exception as error:
                raise SetupError(f"{checkpoint} can't be loaded as a {dtype} model: {error}") from error

        self._thread: EngineThread[_PipelineSequence] = EngineThread(load, self._serve)
        self._thread.start()

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
        """See `Engine.submit`."""
        del streamed  # (all tokens are delivered one by one)
        sequence = _PipelineSequence(tuple(prompt_ids), params, deadline, stop, matcher, Handle())
        self._thread.submit(sequence, len(sequence.prompt_ids))
        return sequence.handle

    @property
    def capacity(self) -> int | None:
        """See `Engine.capacity`."""
        return None

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        if self._thread.forked:
            return self._stats(frozenset(), waiting=0, alive=False)
        with self._thread.lock:
            running = frozenset(() if self._running is None else (self._running.handle,))
            return self._stats(running, waiting=len(self._thread.open) - len(running), alive=self._thread.alive)

    def _stats(self, running: frozenset[Handle], *, waiting: int, alive: bool) -> EngineStats:
        return EngineStats(
            engine="pipeline",
            batch_invariant=True,
            running=len(running),
            waiting=waiting,
            sequences=self._thread.sequences,
            tokens_in=self._thread.tokens_in,
            tokens_out=self._tokens_out,
            alive=alive,
            running_handles=running,
        )

    def _serve(self) -> None:
        while (sequence := self._thread.inbox.get()) is not None:
            self._run(sequence)

    def _run(self, sequence: _PipelineSequence) -> None:
        with self._thread.lock:
            if sequence.handle not in self._thread.open:  # it ended while it was queued
                return
            self._running = sequence
        try:
            reason = self._generate(sequence)
        except BaseException as error:
            _log.exception("a sequence failed")
            self._running = None
            self._thread.fail(
                sequence.handle,
                error
                if isinstance(error, ServingError)
                else InternalError("The model failed on this sequence. Try again; the log has the cause."),
            )
            if not isinstance(error, Exception):  # not only this sequence's failure: the thread ends
                raise
        else:
            self._running = None
            self._thread.finish(sequence.handle, reason)

    def _generate(self, sequence: _PipelineSequence) -> FinishReason:
        """Run one sequence; its tokens are delivered to the handle as they are drawn."""
        import torch
        import transformers

        model, config = self._model, cast("Any", transformers.GenerationConfig)
        reason = sequence.early_end()
        if reason is not None:
            return reason
        if sequence.params.prompt_logprobs is not None:
            self._score(sequence, sequence.params.prompt_logprobs)
        if not sequence.params.max_new_tokens:
            return "length"
        sampler = Sampler(sequence.params, sequence.prompt_ids, sequence.matcher)
        ended: list[FinishReason] = []

        def draw(_: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            # logits: (1, vocabulary)
            token = sampler.draw(logits[0].double().cpu().numpy())
            sequence.handle.push(token)
            with self._thread.lock:
                self._tokens_out += 1
            if token.id in sequence.params.stop_ids or (sequence.stop is not None and sequence.stop(token.id)):
                ended.append("stop")
            choice = torch.full_like(logits, -torch.inf)
            choice[0, token.id] = 0.0
            return choice

        def stopped(ids: torch.Tensor, _: torch.Tensor, **__: object) -> torch.Tensor:
            self._thread.spin.adjust()
            self._end_waiting()
            whole = ids.shape[1] - len(sequence.prompt_ids) >= sequence.params.max_new_tokens
            if not ended and not whole and (reason := sequence.early_end()) is not None:
                ended.append(reason)
            return torch.full((ids.shape[0],), bool(ended), device=ids.device)

        prompt = torch.tensor([sequence.prompt_ids], device=model.device)
        with torch.inference_mode():
            model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=config(
                    max_new_tokens=sequence.params.max_new_tokens,
                    do_sample=False,
                    use_cache=True,
                    pad_token_id=0,
                ),
                logits_processor=[draw],
                stopping_criteria=[stopped],
            )
        return ended[0] if ended else "length"

    def _score(self, sequence: _PipelineSequence, alternatives: int) -> None:
        """Deliver the log-probabilities of the prompt; logits are computed for some of its tokens at a time."""
        import torch

        ids = sequence.prompt_ids
        with torch.inference_mode():
            hidden = self._model.model(torch.tensor([ids], device=self._model.device), use_cache=False)[0][0]
            for start in range(0, len(ids) - 1, SCORED):
                rows = (
                    self._model.lm_head(hidden[start : min(start + SCORED, len(ids) - 1)])
                    .double()
                    .cpu()
                    .numpy()
                )
                sequence.handle.prompt += [
                    read(row, token, alternatives)
                    for row, token in zip(rows, ids[start + 1 : start + 1 + SCORED], strict=True)
                ]

    def _end_waiting(self) -> None:
        """End queued sequences that are cancelled or past their deadline."""
        with self._thread.lock:
            waiting = [sequence for sequence in self._thread.open.values() if sequence is not self._running]
        for sequence in waiting:
            if (reason := sequence.early_end()) is not None:
                self._thread.finish(sequence.handle, reason)


def _load(checkpoint: Path, dtype: str, threads: int | None) -> Any:
    """Load the model with a text-generation pipeline. It is never downloaded and never unpickled."""
    import torch
    import transformers

    library: Any = transformers  # its annotations are too partial for strict typing
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    compute_threads.use(threads)
    with _weights_on_this_thread():
        pipeline = library.pipeline(
            "text-generation",
            model=str(checkpoint),
            # The pipeline requires a tokenizer; it is never called, since ids go in and out.
            tokenizer=library.PreTrainedTokenizerFast(tokenizer_file=str(checkpoint / "tokenizer.json")),
            dtype=getattr(torch, dtype),
            device_map="auto" if torch.cuda.is_available() else "cpu",
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True},
        )
    model = pipeline.model.eval()
    # The checkpoint's sampling defaults must not replace parameters that we leave out.
    model.generation_config = library.GenerationConfig()
    return model


@contextmanager
def _weights_on_this_thread() -> Iterator[None]:
    """Keep transformers from loading weights in a thread pool.

    It is controlled by an environment variable only. Other models and child processes must find that unchanged, so one model
    is loaded at a time.
    """
    with _LOADING:
        before = os.environ.get(_NO_POOL)
        os.environ[_NO_POOL] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_NO_POOL]
            else:
                os.environ[_NO_POOL] = before
