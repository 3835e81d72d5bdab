"""A batch job without the model: count errors and tokens, and estimate the time."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llama_serving.batch.job import BatchJob, todos
from llama_serving.batch.windows import Todo
from llama_serving.engine.batching.speed import Amount, Length
from llama_serving.errors import ServingError
from llama_serving.model_files import ModelFiles
from llama_serving.prompts.builder import PromptBuilder
from llama_serving.prompts.tokenizer import Tokenizer
from llama_serving.service.engine_factory import dtype_of, select_engine
from llama_serving.service.preparation import PreparedInput, RequestPreparer
from llama_serving.service.service import context_of
from llama_serving.settings import Settings


@dataclass(slots=True)
class DryRunResult:
    """The result of a dry run.

    Attributes:
        rows: number of rows.
        errors: rows that would fail.
        amount: work of the other rows, if every answer has its full length.
    """

    rows: int = 0
    errors: int = 0
    amount: Amount = field(default_factory=Amount)

    def to_dict(self, seconds: float | None) -> dict[str, Any]:
        """Return it as JSON, with the estimated seconds."""
        return {"rows": self.rows, "errors": self.errors, "prompt_tokens": self.amount.prompt_tokens,
                "new_tokens_at_most": self.amount.new_tokens,
                "seconds_about": None if seconds is None else round(seconds, 1)}  # fmt: skip


def checked(
    files: ModelFiles,
    settings: Settings,
    job: BatchJob,
    say: Callable[[str], None],
    on_row: Callable[[], object],
) -> DryRunResult:
    """Check every row.

    Args:
        files: the model's files.
        settings: settings of the engine that would run.
        job: the job's sources and parameters.
        say: called with a sentence for each bad row.
        on_row: called after each row.

    Raises:
        SetupError: a source cannot be read.
    """
    tokenizer = Tokenizer.from_folder(files.checkpoint, files.variant.special_ids)
    builder = PromptBuilder(tokenizer, files.variant, context_of(files.variant, settings))
    preparer = RequestPreparer(files.variant, builder, settings)
    found = DryRunResult()
    for todo in todos(job.sources, job.defaults, settings.max_body):
        found.rows += 1
        try:
            work = _work(preparer, todo)
            for index, params in enumerate(work.params):
                found.amount.add(Length(len(work.prompt.token_ids), params), known=index > 0)
        except ServingError as error:
            found.errors += 1
            say(f"{todo.line.place.file}:{todo.line.place.line}: {error.message}")
        on_row()
    return found


def _work(preparer: RequestPreparer, todo: Todo) -> PreparedInput:
    if todo.request is None:
        raise todo.error or ServingError("The line could not be read.")
    (work,) = preparer.prepare(todo.request)
    return work


def seconds(files: ModelFiles, settings: Settings, found: DryRunResult) -> float | None:
    """Estimate the seconds for the good rows on this machine, if every answer has its full length; None if unknown."""
    from llama_serving.engine.batching import speed
    from llama_serving.engine.batching.backends.selection import BackendRequest
    from llama_serving.engine.batching.checkpoint import read_config

    dtype = dtype_of(files.variant, settings)
    if select_engine(settings, dtype).name != "batching":
        return None
    backend = BackendRequest(dtype, settings.backend, settings.quantization, settings.cpu_instructions)
    return speed.seconds(
        read_config(files.checkpoint), backend, found.amount, settings.max_num_seqs, settings.threads
    )
