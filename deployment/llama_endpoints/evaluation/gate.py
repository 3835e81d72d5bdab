"""A roll-out's quality gate: one task on both deployments, greedy and with the same prompts, compared by problem."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llama_endpoints.evaluation import dataset, run
from llama_endpoints.evaluation.folder import EvaluationFolder
from llama_endpoints.evaluation.metrics.metric import ByProblem, Metric, mean_metric
from llama_endpoints.evaluation.report.compare import WORSE, Difference, compare
from llama_endpoints.evaluation.score import Score, Verdict
from llama_endpoints.evaluation.targets.target import Model, Target
from llama_endpoints.evaluation.tasks.task import PromptStyle, Sampling, Task
from llama_serving.errors import SetupError

TASKS: Final = ("humaneval", "humaneval-plus", "mbpp", "multipl-e", "infilling", "text-generation")
"""Tasks that need an endpoint and data, and nothing else."""
_MOST_FAILED: Final = 0.1
"""Share of requests without an answer above which a deployment cannot be judged."""
_ANSWERED: Final = mean_metric("share of answers", "answered")


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment to evaluate.

    Attributes:
        name: its name.
        identity: changes when it is deployed with another model or other settings, so that old samples are not taken for its own.
        target: where its texts come from.
    """

    name: str
    identity: str
    target: Target


@dataclass(frozen=True, slots=True)
class EvaluationGate:
    """See `endpoints.rollout_gates.QualityGate`.

    Attributes:
        name: as the tags have it, such as `humaneval=0.02`.
        task: that both deployments do.
        margin: the loss of its first metric that is accepted.
        style: how both are asked.
        folder: where samples are kept, so that an interrupted gate continues.
        deployment: finds a deployment by its name.
        report: called with each result in a line.
        workers: samples that are scored at a time.
    """

    name: str
    task: Task
    margin: float
    style: PromptStyle
    folder: Path
    deployment: Callable[[str], Deployment]
    report: Callable[[str], None]
    workers: int = 1

    def objection(self, new: str, old: str) -> str | None:
        """Return why the deployment `new` must not replace `old`, in words; None if it may.

        The texts of problems that both answered are compared, and which share of the problems each one answered.

        Raises:
            SetupError: it cannot be told.
        """
        folders = {name: self._evaluated(self.deployment(name)) for name in (old, new)}
        silent = {name: _unanswered(folder) for name, folder in folders.items()}
        for name in (name for name, share in silent.items() if share > _MOST_FAILED):
            folders[name].forget_samples()  # (it may be well the next time)
        if (share := silent[old]) > _MOST_FAILED:
            raise SetupError(f"The gate {self.name} cannot judge: {old} did not answer {share:.0%} of the requests. See {folders[old].scores}.")  # fmt: skip
        if (share := silent[new]) > _MOST_FAILED:
            return f"{new} did not answer {share:.0%} of the requests of the gate {self.name}"
        before, after = (folders[name].scores_by_problem() for name in (old, new))
        loss = self._loss(self.task.metrics[0], *_both_answered(before, after), new, old)
        answers = _answers(before), _answers(after)
        if loss is not None or answers[0] == answers[1]:
            return loss
        return self._loss(_ANSWERED, *answers, new, old)

    def _loss(self, metric: Metric, before: ByProblem, after: ByProblem, new: str, old: str) -> str | None:
        found = compare([metric], before, after)[0]
        self.report(f"  {self.name}: {_said(found, new, old)}")
        return self._worse(metric, found)

    def _evaluated(self, deployment: Deployment) -> EvaluationFolder:
        place = self.folder / self.task.name / f"{deployment.name}-{self._key(deployment)}"
        model = Model(deployment.name, None, self.style)
        evaluation = run.Evaluation(EvaluationFolder(place), self.task, model, self.style, Sampling())
        self.report(
            f"  {self.name}: {len(evaluation.problems())} problems to {deployment.name}, kept in {place}"
        )
        try:
            evaluation.generate(deployment.target, lambda _: None)
        except run.OtherEvaluationError as error:
            raise SetupError(
                f"{place} has another evaluation of {deployment.name}. Remove the folder, or give another --gate-folder."
            ) from error
        run.measure(evaluation.folder, self.task, lambda _: None, workers=self.workers)
        return evaluation.folder

    def _key(self, deployment: Deployment) -> str:
        """Return what tells apart the samples of other models, data and prompts."""
        digest = dataset.digest(self.task.data) if self.task.data is not None else None
        about = [deployment.identity, dict(self.task.options), digest, str(self.style)]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]

    def _worse(self, metric: Metric, found: Difference) -> str | None:
        """Return an objection to a significant loss where even the better end of the interval is a loss of more than the margin."""
        gain = found.change.high if metric.higher_is_better else -found.change.low
        if found.verdict != WORSE or gain >= -self.margin:
            return None
        change = found.change
        return (
            f"{found.name} of {self.task.name} is {found.new:.4f}, {found.change.value:+.4f} ({change.low:+.4f} to {change.high:+.4f}) "
            f"against {found.old:.4f}, a loss of more than {self.margin:g}"
        )


def _said(found: Difference, new: str, old: str) -> str:
    change = found.change
    return (
        f"{found.name} {new} {found.new:.4f}, {old} {found.old:.4f}, difference {change.value:+.4f} "
        f"({change.low:+.4f} to {change.high:+.4f})"
    )


def _unanswered(folder: EvaluationFolder) -> float:
    verdicts = [score.verdict for score in folder.read_scores()]
    return verdicts.count(Verdict.NOT_RUN) / len(verdicts)


def _both_answered(old: ByProblem, new: ByProblem) -> tuple[ByProblem, ByProblem]:
    """Return the scores of the problems that both answered."""
    silent = {scores[0].problem for scores in (*old, *new) if not _is_answered(scores)}
    first, second = ([one for one in scores if one[0].problem not in silent] for scores in (old, new))
    return first, second


def _answers(problems: ByProblem) -> ByProblem:
    """Return scores that say which problems were answered."""
    return [[Score(one[0].problem, 0, None, {"answered": float(_is_answered(one))})] for one in problems]


def _is_answered(scores: Sequence[Score]) -> bool:
    return all(score.verdict is not Verdict.NOT_RUN for score in scores)
