"""Two evaluations of one task over the same data: the difference of each metric, paired by problem. Pure, but for reading."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llama_endpoints.evaluation.folder import EvaluationFolder
from llama_endpoints.evaluation.metrics.bootstrap import Estimate, difference
from llama_endpoints.evaluation.metrics.metric import ByProblem, Metric, of_groups
from llama_endpoints.evaluation.metrics.sign_test import LEVEL, p_value
from llama_serving.errors import SetupError

WORSE: Final = "worse"


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of two evaluations.

    Attributes:
        name: the metric's name.
        old: its value in the first one.
        new: its value in the second one.
        change: new minus old, with the interval of the paired difference.
        verdict: `better`, `worse` or `no significant difference`.
        p: of the exact sign test, one-sided; None where problems are not passed or failed.
    """

    name: str
    old: float
    new: float
    change: Estimate
    verdict: str
    p: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "old": self.old, "new": self.new, "difference": self.change.value, "low": self.change.low,
            "high": self.change.high, "confidence": self.change.confidence, "problems": self.change.problems,
            "p": self.p, "verdict": self.verdict,
        }  # fmt: skip


def shared_metrics(old: Sequence[Metric], new: Sequence[Metric]) -> tuple[Metric, ...]:
    """Return the metrics that both evaluations have, in order.

    Raises:
        SetupError: they have none in common.
    """
    names = {metric.name for metric in new}
    found = tuple(metric for metric in old if metric.name in names)
    if not found:
        raise SetupError("The evaluations have no metric in common.")
    return found


def compare(metrics: Sequence[Metric], old: ByProblem, new: ByProblem) -> tuple[Difference, ...]:
    """Return the difference of each metric, overall and for each group.

    Args:
        metrics: those of the task that both evaluations have.
        old: scores of the first one, by problem.
        new: scores of the second one.

    Raises:
        SetupError: they do not have the same problems.
    """
    by_name = {scores[0].problem: scores for scores in new}
    ids = [scores[0].problem for scores in old]
    if set(ids) != set(by_name):
        one = min(set(ids) ^ set(by_name))
        raise SetupError(f"The evaluations do not have the same problems: {one} is in one of them alone.")
    paired = [by_name[name] for name in ids]
    return tuple(
        _difference(metric, chosen, part)
        for each in metrics
        for (metric, chosen), (_, part) in zip(of_groups(each, old), of_groups(each, paired), strict=True)
    )


def _difference(metric: Metric, old: ByProblem, new: ByProblem) -> Difference:
    tables = metric.table(new), metric.table(old)
    change, p = difference(metric, *tables), p_value(*tables)
    return Difference(metric.name, metric.value(old), metric.value(new), change, _verdict(metric, change, p), p)


def _verdict(metric: Metric, change: Estimate, p: float | None) -> str:
    """Return the verdict. Where few problems differ, the bootstrap's interval is too narrow: the sign test must agree with it."""
    if change.low <= 0 <= change.high or (p is not None and p > LEVEL):
        return "no significant difference"
    return "better" if (change.low > 0) is metric.higher_is_better else WORSE


def check_alike(old: EvaluationFolder, new: EvaluationFolder) -> None:
    """Check that two folders have one task, on the same data.

    Raises:
        SetupError: the tasks or the data differ.
    """
    first, second = old.read_evaluation(), new.read_evaluation()
    if first["task"] != second["task"]:
        raise SetupError(
            f"{old.path} has the task {first['task']}, {new.path} has {second['task']}. Compare evaluations of one task."
        )
    if _digest(first) != _digest(second):
        raise SetupError(
            f"{old.path} and {new.path} were evaluated on different data ({_digest(first)} and {_digest(second)}). "
            "Evaluate both on the same file."
        )


def other_settings(old: EvaluationFolder, new: EvaluationFolder) -> tuple[str, ...]:
    """Return the settings that differ, each in words: two evaluations may differ in more than the model."""
    first, second = (dict(folder.read_evaluation()["settings"]) for folder in (old, new))
    names = sorted((first.keys() | second.keys()) - {"options"})
    return tuple(
        f"{name} {first.get(name)} and {second.get(name)}"
        for name in names
        if first.get(name) != second.get(name)
    )


def _digest(evaluation: Mapping[str, Any]) -> str:
    data = evaluation.get("data") or {}
    return f"sha256 {str(data.get('sha256'))[:12]}, {data.get('problems')} problems"
