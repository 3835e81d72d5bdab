"""MBPP: write a function from one sentence and its tests, after three examples (arXiv 2108.07732)."""

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
from llama_serving.errors import SetupError

EXAMPLES: Final = (2, 3, 4)
"""Problems of its prompt (arXiv 2108.07732, section 3.1, and its published code)."""
_TESTED: Final = range(11, 511)
"""Its test split."""
STOP: Final = "[DONE]"
_WHERE: Final = "The file is mbpp.jsonl of github.com/google-research/google-research/tree/master/mbpp."
_INTRODUCED: Final = (
    "You are an expert Python programmer, and here is your task: {} Your code should pass these tests:\n\n{}\n"
)
_FENCED: Final = "{}\nAnswer with the function in one ```python block."


@dataclass(frozen=True, slots=True)
class Mbpp:
    """See `Task`."""

    data: Path
    ks: tuple[int, ...]
    running: CodeRunning
    name: str = "mbpp"
    runs_code: bool = True

    @classmethod
    def create(cls, _: str, options: Mapping[str, Any], running: CodeRunning) -> "Mbpp":
        """Make the task from its options.

        Raises:
            SetupError: there is no data.
        """
        given = Path(options["data"]) if options.get("data") else None
        return cls(dataset.find(given, "", (), where=_WHERE), tuple(options.get("ks") or (1,)), running)

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
        found = {one["task_id"]: one for one in dataset.read(self.data, "mbpp", key="task_id")}
        missing = [str(number) for number in EXAMPLES if number not in found]
        if missing:
            raise SetupError(
                f"{self.data} has no problem {', '.join(missing)}: problems 2, 3 and 4 are the prompt's examples."
            )
        examples = [found[number] for number in EXAMPLES]
        tested = [number for number in found if number in _TESTED]
        if not tested:
            raise SetupError(f"{self.data} has no problem from 11 to 510, which are the test split.")
        return [Problem(f"MBPP/{number}", None, {**found[number], "examples": examples}) for number in tested]

    def rows(self, problem: Problem, style: PromptStyle, sampling: Sampling) -> Iterable[Row]:
        """See `Task`."""
        for number in range(sampling.samples):
            if style is PromptStyle.DIALOG:
                yield row(problem, number, {"messages": dialog(problem)}, sampling.parameters(number))
            else:
                yield row(problem, number, {"prompt": prompt(problem)}, sampling.parameters(number, [STOP]))

    def completion(self, problem: Problem, text: str, style: PromptStyle) -> str:
        """See `Task`."""
        del problem
        if style is PromptStyle.DIALOG:
            return cuts.first_fence(text, "def ")
        return cuts.before_stop(text, [STOP])

    def scores(self, problem: Problem, samples: Sequence[Sample]) -> Iterable[Score]:
        """See `Task`."""
        self.running.require()
        data = problem.data
        setup = "\n".join([*data.get("test_imports", ()), data.get("test_setup_code", "")])
        test = "\n".join(data["test_list"])

        def judge(completion: str) -> tuple[Verdict, str]:
            return check(Check(completion, setup, test, None, _code(data)), self.running.limits)

        return judged(problem, samples, judge)


def prompt(problem: Problem) -> str:
    """Return the prompt of a base model: `[BEGIN]` and `[DONE]` stand around each solution."""
    examples = [f"{_asked(one)}[BEGIN]\n{_code(one)}\n[DONE]\n\n" for one in problem.data["examples"]]
    return "".join(examples) + f"{_asked(problem.data)}[BEGIN]\n"


def dialog(problem: Problem) -> list[dict[str, str]]:
    """Return the same examples as a dialog."""
    messages = list[dict[str, str]]()
    for one in problem.data["examples"]:
        messages += [
            {"role": "user", "content": _FENCED.format(_asked(one))},
            {"role": "assistant", "content": f"```python\n{_code(one)}\n```"},
        ]
    return [*messages, {"role": "user", "content": _FENCED.format(_asked(problem.data))}]


def _asked(one: Mapping[str, Any]) -> str:
    return _INTRODUCED.format(one.get("text") or one["prompt"], "\n".join(one["test_list"]))


def _code(one: Mapping[str, Any]) -> str:
    return str(one["code"]).replace("\r\n", "\n").strip()
