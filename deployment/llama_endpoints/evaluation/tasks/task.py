"""What a task is: problems -> rows for a model; texts -> completions -> scores."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from llama_endpoints.evaluation.metrics.metric import Metric
from llama_endpoints.evaluation.problem import Problem
from llama_endpoints.evaluation.sample import Sample
from llama_endpoints.evaluation.score import Score

Row = dict[str, Any]
"""A row of a batch file. Its id is `PROBLEM/SAMPLE`."""


class PromptStyle(StrEnum):
    """How a model is asked."""

    COMPLETION = "completion"  # base and Python models continue a text
    DIALOG = "dialog"  # Instruct models answer a message


@dataclass(frozen=True, slots=True)
class Sampling:
    """How texts are drawn.

    Attributes:
        samples: texts for each problem.
        temperature: 0 is greedy.
        top_p: of nucleus sampling.
        max_new_tokens: of a text.
        seed: of a problem's first sample; each further sample has the next one.
    """

    samples: int = 1
    temperature: float = 0.0
    top_p: float = 0.95
    max_new_tokens: int = 512
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)

    def parameters(self, sample: int, stop: Sequence[str] = ()) -> dict[str, Any]:
        """Return the parameters of one row."""
        drawn = (
            {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed + sample}
            if self.temperature > 0
            else {"temperature": 0}
        )
        return {"max_new_tokens": self.max_new_tokens, **drawn, **({"stop": list(stop)} if stop else {})}


class Task(Protocol):
    """A task with its data. `tasks.create` makes one from its name and its options."""

    @property
    def name(self) -> str:
        """The name on the command line, such as `humaneval`."""

    @property
    def options(self) -> Mapping[str, Any]:
        """What `tasks.create` needs to make the same task again, as JSON."""

    @property
    def data(self) -> Path | None:
        """The data file; None for a task that makes its own problems."""

    @property
    def runs_code(self) -> bool:
        """Whether scoring runs what the model wrote, which `--run-generated-code` allows."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """The metrics that its scores have."""

    def problems(self) -> Sequence[Problem]:
        """Return all problems, in order.

        Raises:
            SetupError: the data is missing or invalid.
        """

    def rows(self, problem: Problem, style: PromptStyle, sampling: Sampling) -> Iterable[Row]:
        """Return the rows of a problem, one for each sample."""

    def completion(self, problem: Problem, text: str, style: PromptStyle) -> str:
        """Return a text, cut as the task does."""

    def scores(self, problem: Problem, samples: Sequence[Sample]) -> Iterable[Score]:
        """Yield the score of each of a problem's samples. It may be called from several threads.

        Raises:
            SetupError: the samples cannot be scored here.
        """


def row(problem: Problem, sample: int, given: Mapping[str, Any], parameters: Mapping[str, Any]) -> Row:
    """Return the row of one sample."""
    return {"id": f"{problem.id}/{sample}", **given, "parameters": dict(parameters)}
