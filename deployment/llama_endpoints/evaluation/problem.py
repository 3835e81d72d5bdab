"""One problem of a task."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a task.

    Attributes:
        id: unique within the task, such as `HumanEval/0`. It contains no line break.
        group: part of the task that is also reported alone, such as a language; None without parts.
        data: what the task knows about it, as its data file has it.
    """

    id: str
    group: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
