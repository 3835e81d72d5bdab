"""The tasks by name."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from llama_endpoints.evaluation.task import Task
from llama_serving.errors import SetupError

Create = Callable[[Mapping[str, Any]], Task]
"""Makes a task from its options."""

_TASKS: Final[dict[str, Create]] = {}


def names() -> tuple[str, ...]:
    """Return the names of all tasks."""
    return tuple(sorted(_TASKS))


def create(name: str, options: Mapping[str, Any]) -> Task:
    """Make a task.

    Args:
        name: of the task.
        options: as `Task.options` returns them.

    Raises:
        SetupError: there is no such task, or its data is missing.
    """
    if name not in _TASKS:
        raise SetupError(f"There is no task {name}. Choose one of {', '.join(names())}.")
    return _TASKS[name](options)
