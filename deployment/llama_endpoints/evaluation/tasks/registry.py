"""The tasks by name."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from llama_endpoints.evaluation.folder import EvaluationFolder
from llama_endpoints.evaluation.metrics.metric import Metric
from llama_endpoints.evaluation.tasks.code_task import CodeRunning
from llama_endpoints.evaluation.tasks.continuations import Continuations
from llama_endpoints.evaluation.tasks.humaneval import HumanEval
from llama_endpoints.evaluation.tasks.infilling import Infilling
from llama_endpoints.evaluation.tasks.key_retrieval import KeyRetrieval
from llama_endpoints.evaluation.tasks.mbpp import Mbpp
from llama_endpoints.evaluation.tasks.multipl_e import MultiplE
from llama_endpoints.evaluation.tasks.perplexity import Perplexity
from llama_endpoints.evaluation.tasks.task import Task
from llama_endpoints.evaluation.tasks.text_generation import TextGeneration
from llama_endpoints.evaluation.tasks.truthfulqa import TruthfulQA
from llama_serving.errors import SetupError

Create = Callable[[str, Mapping[str, Any], CodeRunning], Task]
"""Makes a task from its name, its options, and whether it may run code."""

_TASKS: Final[Mapping[str, Create]] = {
    "bold": Continuations.create,
    "humaneval": HumanEval.create,
    "humaneval-plus": HumanEval.create,
    "infilling": Infilling.create,
    "key-retrieval": KeyRetrieval.create,
    "mbpp": Mbpp.create,
    "multipl-e": MultiplE.create,
    "perplexity": Perplexity.create,
    "text-generation": TextGeneration.create,
    "toxigen": Continuations.create,
    "truthfulqa": TruthfulQA.create,
}


def names() -> tuple[str, ...]:
    """Return the names of all tasks."""
    return tuple(sorted(_TASKS))


def create(name: str, options: Mapping[str, Any], running: CodeRunning | None = None) -> Task:
    """Make a task.

    Args:
        name: of the task.
        options: as `Task.options` returns them.
        running: whether, and within which limits, model-written code is run; not at all if it is None.

    Raises:
        SetupError: there is no such task, or its data is missing.
    """
    if name not in _TASKS:
        raise SetupError(f"There is no task {name}. Choose one of {', '.join(names())}.")
    return _TASKS[name](name, options, running or CodeRunning())


def metrics_of(folder: EvaluationFolder) -> Sequence[Metric]:
    """Return the metrics that the scores in a folder have. The data is not needed.

    Raises:
        SetupError: a file is missing or invalid.
    """
    evaluation = folder.read_evaluation()
    options = evaluation["settings"]["options"]
    there = {"data": str(folder.evaluation)} if options.get("data") else {}  # (any file that exists)
    passed = any("passed" in score.values for score in islice(folder.read_scores(), 1))
    return create(evaluation["task"], {**options, **there}, CodeRunning(allowed=passed)).metrics
