"""The task text-generation: texts against references, by ROUGE and BLEU.

Data and options are those of Azure ML's component evaluate-model for the task text-generation: rows with a column of inputs
(`input_string`) and one of references (`ground_truth`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from llama_endpoints.evaluation import data_file
from llama_endpoints.evaluation.metrics.metric import Metric
from llama_endpoints.evaluation.metrics.text_metrics import TextMetrics
from llama_endpoints.evaluation.problem import Problem
from llama_endpoints.evaluation.sample import Sample
from llama_endpoints.evaluation.score import Score, Verdict
from llama_endpoints.evaluation.tasks.code_task import CodeRunning, failure
from llama_endpoints.evaluation.tasks.task import PromptStyle, Row, Sampling, row
from llama_serving.errors import SetupError

NAME: Final = "text-generation"
INPUT, LABEL = "input_string", "ground_truth"
_DIALOG: Final = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "object", "required": ["role", "content"]},
}


@dataclass(frozen=True)
class TextGeneration:
    """Texts that are compared with references.

    Attributes:
        data: JSON Lines or CSV.
        inputs: names of the input columns. Several are joined by line breaks.
        label: name of the column of references.
        text_metrics: how texts are compared.
    """

    data: Path
    inputs: tuple[str, ...] = (INPUT,)
    label: str = LABEL
    text_metrics: TextMetrics = field(default_factory=TextMetrics)
    name: str = NAME
    runs_code: bool = False

    @classmethod
    def create(cls, _: str, options: Mapping[str, Any], __: CodeRunning) -> "TextGeneration":
        """Make the task from its options.

        Raises:
            SetupError: the columns are not told apart.
        """
        inputs = tuple(options.get("input_column_names") or (INPUT,))
        label = str(options.get("label_column_name") or LABEL)
        if label in inputs:
            raise SetupError(
                f"The column {label} can't be an input and the reference: give another label_column_name."
            )
        return cls(
            Path(options["data"]), inputs, label,
            TextMetrics(use_stemmer=bool(options.get("use_stemmer", True)), use_aggregator=bool(options.get("use_aggregator", True))),
        )  # fmt: skip

    @property
    def options(self) -> Mapping[str, Any]:
        """The options, as JSON."""
        return {
            "data": str(self.data), "input_column_names": list(self.inputs), "label_column_name": self.label,
            "use_stemmer": self.text_metrics.use_stemmer, "use_aggregator": self.text_metrics.use_aggregator,
        }  # fmt: skip

    @property
    def metrics(self) -> Sequence[Metric]:
        """ROUGE and BLEU."""
        return self.text_metrics.metrics

    def problems(self) -> Sequence[Problem]:
        """Return the rows, named by their lines.

        Raises:
            SetupError: the data is missing or invalid.
        """
        return self._problems

    @cached_property
    def _problems(self) -> Sequence[Problem]:
        text = {"type": "string"}
        one = len(self.inputs) == 1
        given = {name: {"anyOf": [text, _DIALOG]} if one else text for name in self.inputs}
        schema = {
            "type": "object",
            "required": [*self.inputs, self.label],
            "properties": {**given, self.label: text},
        }
        return [Problem(f"line {line}", None, one) for line, one in data_file.rows(self.data, schema)]

    def rows(self, problem: Problem, style: PromptStyle, sampling: Sampling) -> Iterable[Row]:
        """Return the rows of a problem, one for each sample."""
        values = [problem.data[name] for name in self.inputs]
        asked = values[0] if len(values) == 1 else "\n".join(values)
        if isinstance(asked, list):
            prompt: Row = {"messages": asked}
        elif style is PromptStyle.DIALOG:
            prompt = {"messages": [{"role": "user", "content": asked}]}
        else:
            prompt = {"prompt": asked}
        for sample in range(sampling.samples):
            yield row(problem, sample, prompt, sampling.parameters(sample))

    def completion(self, problem: Problem, text: str, style: PromptStyle) -> str:  # noqa: ARG002  (the protocol's)
        """Return the text as it is."""
        return text

    def scores(self, problem: Problem, samples: Sequence[Sample]) -> Iterator[Score]:
        """Yield each sample's scores. One without an answer is scored as an empty text.

        Raises:
            SetupError: the extra `evaluate` is not installed.
        """
        for sample in samples:
            values = self.text_metrics.scores(sample.completion or "", problem.data[self.label])
            yield scored(problem, sample, values)


def scored(problem: Problem, sample: Sample, values: Mapping[str, float]) -> Score:
    """Return the score of a sample whose values are neither right nor wrong."""
    if sample.completion is None:
        return Score(problem.id, sample.sample, problem.group, values, Verdict.NOT_RUN, failure(sample))
    return Score(problem.id, sample.sample, problem.group, values)
