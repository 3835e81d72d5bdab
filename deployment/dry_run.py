"""A batch job without the model: what would fail, how many tokens there are, and how long they would take."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llama_serving.batch.job import Job, todos
from llama_serving.batch.order import Todo
from llama_serving.errors import ServingError
from llama_serving.model_files import ModelFiles
from llama_serving.prompts.builder import PromptBuilder
from llama_serving.prompts.tokenizer import Tokenizer
from llama_serving.service import batches, context_of, dtype_of
from llama_serving.settings import Settings
from llama_serving.work import Preparer


@dataclass(slots=True)
class Found:
    """What is in the rows.

    Attributes:
        rows: all.
        errors: of them, those that would fail.
        prompt_tokens: of the others.
        new_tokens: that these would generate at most: the model may end any answer earlier.
    """

    rows: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0

    def told(self, seconds: float) -> dict[str, Any]:
        """As JSON, beside the seconds that it would take."""
        return {"rows": self.rows, "errors": self.errors, "prompt_tokens": self.prompt_tokens,
                "new_tokens_at_most": self.new_tokens, "seconds_about": round(seconds, 1)}  # fmt: skip


def checked(
    files: ModelFiles, settings: Settings, job: Job, say: Callable[[str], None], told: Callable[[], object]
) -> Found:
    """Look at every row.

    Args:
        files: the model's.
        settings: of the engine that would run.
        job: its sources and parameters.
        say: given a sentence for each bad row.
        told: called after each row.

    Raises:
        SetupError: a source can't be read.
    """
    tokenizer = Tokenizer.from_folder(files.checkpoint, files.variant.special_ids)
    builder = PromptBuilder(tokenizer, files.variant, context_of(files.variant, settings))
    preparer = Preparer(files.variant, builder, settings)
    found = Found()
    for todo in todos(job.sources, job.defaults, settings.max_body):
        found.rows += 1
        try:
            prompt, new = _tokens(preparer, todo)
            found.prompt_tokens += prompt
            found.new_tokens += new
        except ServingError as error:
            found.errors += 1
            say(f"{todo.line.place.file}:{todo.line.place.line}: {error.message}")
        told()
    return found


def _tokens(preparer: Preparer, todo: Todo) -> tuple[int, int]:
    """Of the prompt, and of all its answers at most."""
    if todo.asked is None:
        raise todo.error or ServingError("The line could not be read.")
    (work,) = preparer.prepare(todo.asked)
    return len(work.prompt.token_ids), sum(params.max_new_tokens for params in work.params)


def seconds(files: ModelFiles, settings: Settings, found: Found) -> float:
    """What the good rows would take on this machine, roughly, were every answer as long as it may be."""
    from llama_serving.engine.batching.checkpoint import LlamaConfig
    from llama_serving.engine.batching.speed import Speed

    dtype = dtype_of(files.variant, settings)
    batched = batches(settings, dtype)  # (on the CPU, as long as there is no other backend)
    return Speed.measured(dtype, settings.threads, on_gpu=not batched).seconds(
        LlamaConfig.read(files.checkpoint),
        rows=found.rows - found.errors,
        prompt_tokens=found.prompt_tokens,
        new_tokens=found.new_tokens,
        slots=settings.max_num_seqs if batched else 1,
    )
