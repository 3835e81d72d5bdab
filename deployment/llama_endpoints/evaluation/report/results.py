"""The metrics of an evaluation: values, intervals, published figures and verdicts; `metrics.json`; limits that a pipeline sets."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_endpoints.evaluation.folder import FORMAT, read_json, write_json
from llama_endpoints.evaluation.metrics.bootstrap import CONFIDENCE, Estimate, estimate
from llama_endpoints.evaluation.metrics.metric import ByProblem, Metric, of_groups
from llama_endpoints.evaluation.report.published import Published, problems, published, verdict
from llama_serving.errors import SetupError


@dataclass(frozen=True, slots=True)
class Result:
    """One metric's outcome.

    Attributes:
        name: the metric's name.
        measured: its value and interval.
        figure: what was published for the model; None where nothing was.
        verdict: what the interval says about the figure.
    """

    name: str
    measured: Estimate
    figure: Published | None
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of `metrics.json`. A value that does not exist is null."""
        return {
            "value": _number(self.measured.value),
            "low": _number(self.measured.low),
            "high": _number(self.measured.high),
            "confidence": self.measured.confidence,
            "problems": self.measured.problems,
            "published": self.figure.value if self.figure else None,
            "source": self.figure.source if self.figure else None,
            "verdict": self.verdict,
        }

    @classmethod
    def from_dict(cls, name: str, entry: Mapping[str, Any]) -> "Result":
        """Return the result of an entry of `metrics.json`."""
        value, low, high = (
            math.nan if entry[key] is None else float(entry[key]) for key in ("value", "low", "high")
        )
        measured = Estimate(value, low, high, int(entry["problems"]), float(entry["confidence"]))
        figure = None if entry["published"] is None else Published(entry["published"], str(entry["source"]))
        return cls(name, measured, figure, str(entry["verdict"]))


@dataclass(frozen=True, slots=True)
class Subject:
    """What was measured, for the comparison with published figures.

    Attributes:
        task: the task's name.
        model: the model's name in the catalog; None where it is unknown.
        departures: what was done otherwise than for the published figures, such as `temperature 0.2 instead of 0.8`.
        drawn: whether texts were drawn with a temperature.
    """

    task: str
    model: str | None
    departures: tuple[str, ...] = ()
    drawn: bool = False

    def departures_of(self, metric: str, count: int) -> tuple[str, ...]:
        """Return the departures of a metric.

        Args:
            metric: its name. All figures of the paper but pass@10 and pass@100 are of greedy texts.
            count: number of problems that it was measured over.
        """
        found, name = list(self.departures), metric.partition(" (")[0]
        if (expected := problems(self.task, metric)) not in {None, count}:
            found.append(f"{count} problems instead of {expected}")
        if self.drawn and name not in {"pass@10", "pass@100"}:
            found.append(f"the published {name} is of greedy texts")
        return tuple(found)


def results(
    metrics: Iterable[Metric], scores: ByProblem, subject: Subject, *, confidence: float = CONFIDENCE
) -> tuple[Result, ...]:
    """Return each metric's result, overall and for each group.

    Args:
        metrics: the task's metrics.
        scores: those of all samples, by problem.
        subject: what was measured.
        confidence: of the intervals, 0 to 1.
    """
    parts = [part for metric in metrics for part in of_groups(metric, scores)]
    return tuple(_result(metric, chosen, subject, confidence) for metric, chosen in parts)


def _result(metric: Metric, scores: ByProblem, subject: Subject, confidence: float) -> Result:
    measured = estimate(metric, metric.table(scores), confidence=confidence)
    figure = published(subject.task, metric.name, subject.model) if subject.model else None
    departures = subject.departures_of(metric.name, measured.problems)
    return Result(metric.name, measured, figure, verdict(measured, figure, departures))


def write(path: Path, found: Iterable[Result]) -> None:
    """Write `metrics.json`."""
    write_json(path, {"format": FORMAT, "metrics": {one.name: one.to_dict() for one in found}})


def read(path: Path) -> tuple[Result, ...]:
    """Return the results in `metrics.json`.

    Raises:
        SetupError: it is missing, or of another format.
    """
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise SetupError(f"{path} is not of format {FORMAT}. Score the evaluation again with this version.")
    return tuple(Result.from_dict(name, entry) for name, entry in document["metrics"].items())


@dataclass(frozen=True, slots=True)
class Limit:
    """What a pipeline demands of a metric.

    Attributes:
        metric: the metric's name.
        value: the lowest value that is accepted; with `above` the highest one.
        above: whether greater values are refused.
    """

    metric: str
    value: float
    above: bool = False

    @classmethod
    def parse(cls, text: str, *, above: bool = False) -> "Limit":
        """Return the limit that a text such as `pass@1=0.3` sets.

        Raises:
            SetupError: it has another form.
        """
        name, _, given = text.rpartition("=")
        try:
            value = float(given)
        except ValueError:
            value = math.nan
        if not name or not math.isfinite(value):
            raise SetupError(f"Invalid limit {text!r}: write METRIC=VALUE, such as pass@1=0.3.")
        return cls(name, value, above)

    def breach(self, found: float) -> str | None:
        """Return a sentence if a value breaks the limit, or does not exist."""
        if found <= self.value if self.above else found >= self.value:
            return None
        shown = "not measured" if math.isnan(found) else f"{found:.4f}"
        return f"{self.metric} is {shown}, {'more' if self.above else 'less'} than {self.value:g}."


def breaches(found: Iterable[Result], limits: Sequence[Limit]) -> tuple[str, ...]:
    """Return a sentence for each limit that is broken.

    Raises:
        SetupError: a limit names a metric that the evaluation does not have.
    """
    values = {one.name: one.measured.value for one in found}
    unknown = [limit.metric for limit in limits if limit.metric not in values]
    if unknown:
        raise SetupError(f"The evaluation has no metric {unknown[0]!r}. It has: {', '.join(values) or 'none'}.")
    return tuple(said for limit in limits if (said := limit.breach(values[limit.metric])) is not None)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
