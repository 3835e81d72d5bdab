"""MultiPL-E: HumanEval in other languages (arXiv 2208.08227), for those whose runtimes are here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llama_endpoints.evaluation import dataset
from llama_endpoints.evaluation.metrics.metric import Metric, pass_metrics
from llama_endpoints.evaluation.problem import Problem
from llama_endpoints.evaluation.sample import Sample
from llama_endpoints.evaluation.sandbox import languages
from llama_endpoints.evaluation.score import Score, Verdict
from llama_endpoints.evaluation.tasks import cuts
from llama_endpoints.evaluation.tasks.code_task import CodeRunning, judged
from llama_endpoints.evaluation.tasks.task import PromptStyle, Row, Sampling, row
from llama_serving.errors import SetupError

_ASKED: Final = "Complete this function. Answer with the whole code in one block.\n\n```{}\n{}\n```"
_TUPLES: Final = "import org.javatuples.*;\n"
"""In each Java prompt. The library is seldom installed, and few problems need it."""


@dataclass(frozen=True, slots=True)
class MultiplE:
    """See `Task`.

    Attributes:
        data: a file, or a folder with one file for each language.
    """

    data: Path
    ks: tuple[int, ...]
    running: CodeRunning
    name: str = "multipl-e"
    runs_code: bool = True

    @classmethod
    def create(cls, _: str, options: Mapping[str, Any], running: CodeRunning) -> "MultiplE":
        """Make the task from its options.

        Raises:
            SetupError: there is no data.
        """
        if not options.get("data"):
            raise SetupError(
                "No data: give --data a file or a folder of the data set nuprl/MultiPL-E, as JSONL (humaneval-LANGUAGE)."
            )
        path = Path(options["data"])
        if not path.exists():
            raise SetupError(f"{path} does not exist. Give a data file, or a folder of them, as --data.")
        return cls(path, tuple(options.get("ks") or (1,)), running)

    @property
    def options(self) -> Mapping[str, Any]:
        """See `Task`."""
        return {"data": str(self.data), "ks": list(self.ks)}

    @property
    def metrics(self) -> Sequence[Metric]:
        """See `Task`. Each language is a group."""
        return pass_metrics(self.ks)

    def problems(self) -> Sequence[Problem]:
        """See `Task`. Where code is run, each language must be one that runs here."""
        files = (
            [self.data] if self.data.is_file() else sorted(p for p in self.data.iterdir() if ".json" in p.name)
        )
        if not files:
            raise SetupError(f"{self.data} has no JSONL file.")
        lines = [one for path in files for one in dataset.read(path, "multipl-e", key="name")]
        if self.running.allowed:
            for language in dict.fromkeys(one["language"] for one in lines):
                languages.runtime(language)
        return [Problem(f"{one['language']}/{one['name']}", one["language"], one) for one in lines]

    def rows(self, problem: Problem, style: PromptStyle, sampling: Sampling) -> Iterable[Row]:
        """See `Task`."""
        data = problem.data
        for number in range(sampling.samples):
            if style is PromptStyle.DIALOG:
                given = {
                    "messages": [{"role": "user", "content": _ASKED.format(data["language"], data["prompt"])}]
                }
                yield row(problem, number, given, sampling.parameters(number))
            else:
                yield row(
                    problem,
                    number,
                    {"prompt": data["prompt"]},
                    sampling.parameters(number, data["stop_tokens"]),
                )

    def completion(self, problem: Problem, text: str, style: PromptStyle) -> str:
        """See `Task`. Of a dialog's code, the prompt's own text is left out where the answer repeats it."""
        data = problem.data
        if style is PromptStyle.DIALOG:
            text = cuts.first_fence(text)
            text = text.partition(data["prompt"])[2] or text
        return cuts.before_stop(text, data["stop_tokens"])

    def scores(self, problem: Problem, samples: Sequence[Sample]) -> Iterable[Score]:
        """See `Task`."""
        self.running.require()
        data, language = problem.data, languages.LANGUAGES[problem.data["language"]]

        def judge(completion: str) -> tuple[Verdict, str]:
            program = data["prompt"] + completion
            if not any(name in program + data["tests"] for name in ("Pair", "Triplet", "Unit", "Quartet")):
                program = program.replace(_TUPLES, "")
            return languages.check(language, program, "\n" + data["tests"], self.running.limits)

        return judged(problem, samples, judge)
