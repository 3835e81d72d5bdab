"""The reference engine: `transformers.pipeline` loads the model, its `generate` runs one sequence at a time.

Correct before fast. Every engine that comes later is tested against this one. What makes it repeatable:
each sequence runs alone, so that nobody's company changes its last bits, and our own sampler draws every
token (as a logits processor that leaves one choice), so that no library setting takes part.
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

from llama_serving.engine import compute_threads
from llama_serving.engine.base import EngineStats
from llama_serving.engine.handle import Handle
from llama_serving.engine.reference_sampler import Sampler
from llama_serving.engine.thread import EngineThread
from llama_serving.errors import InternalError, SetupError
from llama_serving.llama_config import load as load_config
from llama_serving.sampling_params import FinishReason, SamplingParams

_log = logging.getLogger(__name__)

_NO_POOL: Final = "HF_DEACTIVATE_ASYNC_LOAD"
_LOADING: Final = threading.Lock()


@dataclass(frozen=True, slots=True)
class _Job:
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    deadline: float | None
    stop: Callable[[int], bool] | None
    handle: Handle


class PipelineEngine:
    """Generates with transformers, one sequence after the other, on one thread that owns torch.

    Args:
        checkpoint: a folder with `config.json` and safetensors.
        dtype: `float32`, `bfloat16` or `float16`.
        threads: of torch; None is torch's own choice.

    Raises:
        SetupError: transformers can't load the checkpoint.
    """

    def __init__(self, checkpoint: Path, *, dtype: str, threads: int | None = None) -> None:
        self._running: _Job | None = None
        self._tokens_out = 0
        self._model: Any = None

        def load() -> None:
            try:
                _refuse_quantized(checkpoint)
                self._model = _load(checkpoint, dtype, threads)
            except SetupError:
                raise
            except Exception as error:
                raise SetupError(f"{checkpoint} can't be loaded as a {dtype} model: {error}") from error

        self._thread: EngineThread[_Job] = EngineThread(load, self._serve)
        self._thread.start()

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        deadline: float | None = None,
        stop: Callable[[int], bool] | None = None,
        streamed: bool = True,
    ) -> Handle:
        """See `Engine.submit`."""
        del streamed  # (a token costs the same, whoever reads it)
        job = _Job(tuple(prompt_ids), params, deadline, stop, Handle())
        self._thread.take(job, len(job.prompt_ids))
        return job.handle

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

    def drain(self) -> None:
        """See `Engine.drain`."""
        self._thread.drain()

    def close(self) -> None:
        """See `Engine.close`."""
        self._thread.close()

    def _serve(self) -> None:
        while (job := self._thread.inbox.get()) is not None:
            self._run(job)

    def _run(self, job: _Job) -> None:
        with self._thread.lock:
            if job.handle not in self._thread.open:  # it ended while it waited
                return
            self._running = job
        try:
            reason = self._generate(job)
        except BaseException as error:
            _log.exception("a sequence failed")
            self._running = None
            self._thread.fail(
                job.handle,
                InternalError("The model failed on this sequence. Try again; the log has the cause."),
            )
            if not isinstance(error, Exception):  # more than this sequence's fault: the thread ends
                raise
        else:
            self._running = None
            self._thread.finish(job.handle, reason)

    def _generate(self, job: _Job) -> FinishReason:
        """Runs one sequence; its tokens leave through the handle as they are drawn."""
        import torch
        import transformers

        model, config = self._model, cast("Any", transformers.GenerationConfig)
        reason = _ended(job)
        if reason is not None:
            return reason
        sampler = Sampler(job.params, job.prompt_ids)
        ended: list[FinishReason] = []

        def draw(_: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            # logits: (1, vocabulary)
            token = sampler.draw(logits[0].double().cpu().numpy())
            job.handle.push(token)
            with self._thread.lock:
                self._tokens_out += 1
            if token.id in job.params.stop_ids or (job.stop is not None and job.stop(token.id)):
                ended.append("stop")
            choice = torch.full_like(logits, -torch.inf)
            choice[0, token.id] = 0.0
            return choice

        def stopped(ids: torch.Tensor, _: torch.Tensor, **__: object) -> torch.Tensor:
            self._thread.spin.adjust()
            self._end_waiting()
            whole = ids.shape[1] - len(job.prompt_ids) >= job.params.max_new_tokens
            if not ended and not whole and (reason := _ended(job)) is not None:
                ended.append(reason)
            return torch.full((ids.shape[0],), bool(ended), device=ids.device)

        prompt = torch.tensor([job.prompt_ids], device=model.device)
        with torch.inference_mode():
            model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=config(
                    max_new_tokens=job.params.max_new_tokens, do_sample=False, use_cache=True, pad_token_id=0
                ),
                logits_processor=[draw],
                stopping_criteria=[stopped],
            )
        return ended[0] if ended else "length"

    def _end_waiting(self) -> None:
        """Ends what is cancelled or out of time before its turn: a deadline can't wait for the queue."""
        with self._thread.lock:
            waiting = [job for job in self._thread.open.values() if job is not self._running]
        for job in waiting:
            if (reason := _ended(job)) is not None:
                self._thread.finish(job.handle, reason)


def _refuse_quantized(checkpoint: Path) -> None:
    """transformers reads some of them, each with a library of its own: one way to serve them is enough."""
    if load_config(checkpoint).get("quantization_config") is not None:
        raise SetupError(
            "The pipeline engine doesn't compute quantized checkpoints (config.json has a quantization_config). "
            "Set LLAMA_ENGINE=vllm, or use the model's unquantized checkpoint."
        )


def _load(checkpoint: Path, dtype: str, threads: int | None) -> Any:
    """The model behind a text-generation pipeline; nothing is fetched (everything is a local file), nothing is unpickled."""
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
            # The pipeline insists on a tokenizer; ids come and go here, so it is never called.
            tokenizer=library.PreTrainedTokenizerFast(tokenizer_file=str(checkpoint / "tokenizer.json")),
            dtype=getattr(torch, dtype),
            device_map="auto" if torch.cuda.is_available() else "cpu",
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True},
        )
    model = pipeline.model.eval()
    # What the checkpoint's authors sample with must not fill in what we leave out.
    model.generation_config = library.GenerationConfig()
    return model


@contextmanager
def _weights_on_this_thread() -> Iterator[None]:
    """Keeps transformers from loading weights with a pool of threads.

    It reads an environment variable alone. The process's other models and its children are to find it as it was, so one
    model is loaded at a time.
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


def _ended(job: _Job) -> FinishReason | None:
    if job.handle.cancelled:
        return "cancelled"
    if job.deadline is not None and time.monotonic() >= job.deadline:
        return "deadline"
    return None
