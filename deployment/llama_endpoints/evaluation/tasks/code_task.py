"""What tasks have in common whose samples are run: limits, and the verdict of each sample."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from llama_endpoints.evaluation.problem import Problem
from llama_endpoints.evaluation.sample import Sample
from llama_endpoints.evaluation.sandbox import bubblewrap
from llama_endpoints.evaluation.sandbox.limits import Limits
from llama_endpoints.evaluation.score import Score, Verdict
from llama_serving.errors import SetupError

Judge = Callable[[str], tuple[Verdict, str]]
"""Runs a completion and returns its verdict, and the reason."""


@dataclass(frozen=True, slots=True)
class CodeRunning:
    """Whether, and within which limits, model-written code is run."""

    allowed: bool = False
    limits: Limits = field(default_factory=Limits)

    def require(self) -> None:
        """Check that code may and can be run.

        Raises:
            SetupError: it may not, or cannot be run apart here.
        """
        if not self.allowed:
            raise SetupError(
                "Scoring this task runs code that the model wrote. Allow it with --run-generated-code: it runs apart, without "
                "network and files."
            )
        bubblewrap.require()


@runtime_checkable
class RunsCode(Protocol):
    """A task whose scores depend on whether code is run, and within which limits."""

    @property
    def running(self) -> CodeRunning:
        """Whether, and how."""


def judged(problem: Problem, samples: Sequence[Sample], judge: Judge) -> Iterable[Score]:
    """Yield the score of each sample. A sample without a completion has failed."""
    for sample in samples:
        if sample.completion is None:
            verdict, detail = Verdict.NOT_RUN, failure(sample)
        else:
            verdict, detail = judge(sample.completion)
        passed = float(verdict is Verdict.PASSED)
        yield Score(problem.id, sample.sample, problem.group, {"passed": passed}, verdict, detail)


def failure(sample: Sample) -> str:
    """Return why a sample has no text."""
    error = sample.error or {}
    return f"{error.get('code', 'no answer')}: {error.get('message', 'the request has no answer')}"
