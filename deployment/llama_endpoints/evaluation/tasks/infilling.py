"""HumanEval infilling: write the line, or the span, that is missing from a function (arXiv 2207.14255)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llama_endpoints.evaluation import dataset
from llama_endpoints.evaluation.metrics.metric import Metric, mean_metric, pass_metrics
from llama_endpoints.evaluation.problem import Problem
from llama_endpoints.evaluation.sample import Sample
from llama_endpoints.evaluation.sandbox.python import Check, check
from llama_endpoints.evaluation.score import Score, Verdict
from llama_endpoints.evaluation.tasks.code_task import CodeRunning, judged
from llama_endpoints.evaluation.tasks.task import PromptStyle, Row, Sampling, row

KINDS: Final = {"single-line": "SingleLine", "random-span": "RandomSpan"}
_WHERE: Final = "The files are those of github.com/openai/human-eval-infilling."


@dataclass(frozen=True, slots=True)
class Infilling:
    """See `Task`.

    Attributes:
        kind: `single-line` or `random-span`.
        order: `psm`, `spm`, or empty where the server's is not known. The model's row decides it, not the request.
    """

    data: Path
    kind: str
    order: str
    running: CodeRunning
    name: str = "infilling"

    @classmethod
    def create(cls, _: str, options: Mapping[str, Any], running: CodeRunning) -> "Infilling":
        """Make the task from its options.

        Raises:
            SetupError: there is no data.
        """
        kind = options.get("kind") or "single-line"
        given = Path(options["data"]) if options.get("data") else None
        file = f"HumanEval-{KINDS[kind]}Infilling.jsonl.gz"
        path = dataset.find(given, "human_eval_infilling", (f"../data/{file}", f"data/{file}"), where=_WHERE)
        return cls(path, kind, options.get("order") or "", running)

    @property
    def options(self) -> Mapping[str, Any]:
        """See `Task`."""
        return {"data": str(self.data), "kind": self.kind, "order": self.order}

    @property
    def runs_code(self) -> bool:
        """See `Task`. Exact matches are counted without it."""
        return self.running.allowed

    @property
    def metrics(self) -> Sequence[Metric]:
        """See `Task`. The pass rate is named as the paper's table has it."""
        exact = mean_metric("exact match", "exact")
        if not self.runs_code:
            return (exact,)
        (passed,) = pass_metrics((1,))
        name = f"{self.kind}/{self.order.upper()}" if self.order else self.kind
        return (Metric(name, passed.terms, rate=True), exact)

    def problems(self) -> Sequence[Problem]:
        """See `Task`."""
        return [
            Problem(one["task_id"], None, one) for one in dataset.read(self.data, "infilling", key="task_id")
        ]

    def rows(self, problem: Problem, style: PromptStyle, sampling: Sampling) -> Iterable[Row]:
        """See `Task`. Infilling has one form of prompt."""
        del style
        given = {"prefix": problem.data["prompt"], "suffix": problem.data["suffix"]}
        stop = ["\n"] if self.kind == "single-line" else []
        return [
            row(problem, number, given, sampling.parameters(number, stop)) for number in range(sampling.samples)
        ]

    def completion(self, problem: Problem, text: str, style: PromptStyle) -> str:
        """See `Task`. Of a single line, what follows the first one is not part of it; a span ends where the model ends it."""
        del problem, style
        if self.kind != "single-line":
            return text
        line, newline, _ = text.partition("\n")
        return line + newline

    def scores(self, problem: Problem, samples: Sequence[Sample]) -> Iterable[Score]:
        """See `Task`."""
        data = problem.data
        if self.runs_code:
            self.running.require()

        def judge(completion: str) -> tuple[Verdict, str]:
            if not self.runs_code:
                return (
                    (Verdict.PASSED, "")
                    if self._is_exact(problem, completion)
                    else (Verdict.FAILED, "another text")
                )
            program = self._joined(completion, data["prompt"], data["suffix"])
            given = Check(
                program,
                data["prompt"] + data["canonical_solution"] + data["suffix"],
                data["test"],
                data["entry_point"],
            )
            return check(given, self.running.limits)

        for sample, score in zip(samples, judged(problem, samples, judge), strict=True):
            exact = float(sample.completion is not None and self._is_exact(problem, sample.completion))
            values = {**score.values, "exact": exact} if self.runs_code else {"exact": exact}
            yield Score(score.problem, score.sample, score.group, values, score.verdict, score.detail)

    def _is_exact(self, problem: Problem, completion: str) -> bool:
        expected: str = problem.data["canonical_solution"]
        if self.kind == "single-line":
            return completion.rstrip("\n") == expected.rstrip("\n")
        return completion == expected

    def _joined(self, completion: str, prefix: str, suffix: str) -> str:
        """Return the program. A model may end a line before its newline."""
        if self.kind == "single-line" and not completion.endswith("\n") and not suffix.startswith("\n"):
            completion += "\n"
        return prefix + completion + suffix
