"""The reference engine: `transformers.pipeline` loads the model, its `generate` runs one sequence at a time.

Correct before fast. Every engine that comes later is tested against this one. What makes it repeatable:
each sequence runs alone, so that nobody's company changes its last bits, and our own sampler draws every
token (as a logits processor that leaves one choice), so that no library setting takes part.
"""

import atexit
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llama_serving.contract.request import FinishReason, SamplingParams
from llama_serving.engine.base import EngineStats, Handle
from llama_serving.engine.sampling import Sampler
from llama_serving.errors import InternalError, SetupError, Unavailable

_log = logging.getLogger(__name__)

RETRY_AFTER_S: Final = 5


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
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._open: dict[Handle, _Job] = {}
        self._running: _Job | None = None
        self._closed = False
        self._sequences = self._tokens_in = self._tokens_out = 0
        self._pid = os.getpid()
        loaded: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._serve, args=(checkpoint, dtype, threads, loaded), name="engine", daemon=True
        )
        self._thread.start()
        atexit.register(self.close)  # a thread still inside torch while the interpreter goes would abort it
        failure = loaded.get()
        if failure is not None:
            self.close()
            raise SetupError(f"{checkpoint} can't be loaded as a {dtype} model: {failure}") from failure

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        deadline: float | None = None,
        stop: Callable[[int], bool] | None = None,
    ) -> Handle:
        """See `Engine.submit`."""
        job = _Job(tuple(prompt_ids), params, deadline, stop, Handle())
        if self._forked or not self._admit(job):
            raise Unavailable("The engine takes no requests: it is shutting down or has stopped.",
                              retry_after=RETRY_AFTER_S)  # fmt: skip
        return job.handle

    @property
    def capacity(self) -> int | None:
        """See `Engine.capacity`."""
        return None

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        if self._forked:
            return self._stats(running=0, waiting=0, alive=False)
        with self._lock:
            running = 0 if self._running is None else 1
            return self._stats(running=running, waiting=len(self._open) - running, alive=self._alive())

    def _stats(self, *, running: int, waiting: int, alive: bool) -> EngineStats:
        return EngineStats(
            engine="pipeline",
            running=running,
            waiting=waiting,
            sequences=self._sequences,
            tokens_in=self._tokens_in,
            tokens_out=self._tokens_out,
            alive=alive,
        )

    def drain(self) -> None:
        """See `Engine.drain`."""
        if self._forked:
            return
        with self._idle:
            self._closed = True
            self._idle.wait_for(lambda: not self._open)

    def close(self) -> None:
        """See `Engine.close`."""
        if self._forked:
            return
        atexit.unregister(self.close)
        with self._lock:
            self._closed = True
            for handle in self._open:
                handle.cancel()
        self._jobs.put(None)
        self._thread.join()

    @property
    def _forked(self) -> bool:
        """This is a copy in a child process: it has no thread, and its lock may be held for ever."""
        return self._pid != os.getpid()

    def _alive(self) -> bool:
        return not self._closed and self._thread.is_alive()

    def _admit(self, job: _Job) -> bool:
        with self._lock:
            if not self._alive():
                return False
            self._jobs.put(job)
            self._open[job.handle] = job
            self._sequences += 1
            self._tokens_in += len(job.prompt_ids)
            return True

    def _serve(
        self,
        checkpoint: Path,
        dtype: str,
        threads: int | None,
        loaded: "queue.SimpleQueue[BaseException | None]",
    ) -> None:
        try:
            model = _load(checkpoint, dtype, threads)
        except BaseException as error:  # (crosses to the constructor, which raises it)
            loaded.put(error)
            return
        loaded.put(None)
        try:
            while (job := self._jobs.get()) is not None:
                self._run(model, job)
        finally:
            self._fail_all()

    def _run(self, model: Any, job: _Job) -> None:
        with self._lock:
            if job.handle not in self._open:  # it ended while it waited
                return
            self._running = job
        try:
            reason = self._generate(model, job)
        except BaseException as error:
            _log.exception("a sequence failed")
            job.handle.fail(
                InternalError("The model failed on this sequence. Try again; the log has the cause.")
            )
            if not isinstance(error, Exception):  # more than this sequence's fault: the thread ends
                raise
        else:
            job.handle.finish(reason)
        finally:
            with self._idle:
                self._running = None
                del self._open[job.handle]
                self._idle.notify_all()

    def _generate(self, model: Any, job: _Job) -> FinishReason:
        """Runs one sequence; its tokens leave through the handle as they are drawn."""
        import torch
        import transformers

        config: Any = transformers.GenerationConfig
        reason = _ended(job)
        if reason is not None:
            return reason
        sampler = Sampler(job.params, job.prompt_ids)
        ended: list[FinishReason] = []

        def draw(_: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            # logits: (1, vocabulary)
            token = sampler.draw(logits[0].double().cpu().numpy())
            job.handle.push(token)
            with self._lock:
                self._tokens_out += 1
            if token.id in job.params.stop_ids or (job.stop is not None and job.stop(token.id)):
                ended.append("stop")
            choice = torch.full_like(logits, -torch.inf)
            choice[0, token.id] = 0.0
            return choice

        def stopped(ids: torch.Tensor, _: torch.Tensor, **__: object) -> torch.Tensor:
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
        with self._idle:
            waiting = [job for job in self._open.values() if job is not self._running]
            for job in waiting:
                reason = _ended(job)
                if reason is not None:
                    job.handle.finish(reason)
                    del self._open[job.handle]
            self._idle.notify_all()

    def _fail_all(self) -> None:
        with self._idle:
            self._closed = True
            for handle in self._open:
                handle.finish("cancelled") if handle.cancelled else handle.fail(
                    Unavailable("The engine has stopped.", retry_after=RETRY_AFTER_S)
                )
            self._open.clear()
            self._idle.notify_all()


def _load(checkpoint: Path, dtype: str, threads: int | None) -> Any:
    """The model behind a text-generation pipeline; nothing is fetched, nothing is unpickled."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # or the weights are loaded by a pool of other threads
    import torch
    import transformers

    library: Any = transformers  # its annotations are too partial for strict typing
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
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


def _ended(job: _Job) -> FinishReason | None:
    if job.handle.cancelled:
        return "cancelled"
    if job.deadline is not None and time.monotonic() >= job.deadline:
        return "deadline"
    return None
