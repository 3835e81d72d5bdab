"""Plots of an evaluation, as SVG."""

import io
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from llama_endpoints.evaluation.metrics.metric import ByProblem, Metric
from llama_endpoints.evaluation.report.results import Result

_BINS: Final = 20
_HEIGHT: Final = 4.0
"""Inches."""
_MOST_BARS: Final = 40
"""More metrics than this, as a task with many groups has, would be unreadable."""


def plots(
    found: Sequence[Result], metrics: Sequence[Metric], problems: ByProblem
) -> dict[str, tuple[str, str]]:
    """Return each plot's title and SVG, by the name of its file.

    Args:
        found: the results.
        metrics: the task's metrics.
        problems: the scores of all samples, by problem.
    """
    drawn: dict[str, tuple[str, Callable[[Any], None]]] = {}
    heights: dict[str, float] = {}
    shown = [one for one in found if one.measured.problems][:_MOST_BARS]
    if shown:
        drawn["metrics"] = ("Metrics with their intervals", lambda axes: _intervals(axes, shown))
        heights["metrics"] = max(_HEIGHT, 0.3 * len(shown) + 1)
    if problems and metrics:
        first = metrics[0]
        values = first.combine(first.table(problems))
        drawn["problems"] = (
            f"{first.name} of each problem",
            lambda axes: _distribution(axes, first.name, values),
        )
        drawn["verdicts"] = ("Samples by verdict", lambda axes: _verdicts(axes, problems))
    return {name: (title, svg(draw, heights.get(name, _HEIGHT))) for name, (title, draw) in drawn.items()}


def svg(draw: Callable[[Any], None], height: float = _HEIGHT) -> str:
    """Return the SVG of what `draw` does with a matplotlib axes. The same drawing gives the same text."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, height), layout="constrained")
    draw(figure.subplots())
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "llama-endpoints"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _intervals(axes: Any, shown: Sequence[Result]) -> None:
    """Draw a metric a row: its value, its interval, and the published figure."""
    rows = np.arange(len(shown))[::-1]
    values = np.array([one.measured.value for one in shown])
    ends = np.array([[one.measured.low for one in shown], [one.measured.high for one in shown]])
    axes.errorbar(values, rows, xerr=np.abs(ends - values), fmt="o", capsize=3, label="measured, with interval")
    figures = [(one.figure.value, row) for one, row in zip(shown, rows, strict=True) if one.figure]
    if figures:
        axes.plot(*zip(*figures, strict=True), "D", color="C1", label="published")
    axes.set_yticks(rows, [one.name for one in shown])
    axes.margins(y=0.1)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8)


def _distribution(axes: Any, name: str, values: Any) -> None:
    axes.hist(values, bins=_BINS)
    axes.set(xlabel=name, ylabel="problems")


def _verdicts(axes: Any, problems: ByProblem) -> None:
    counted = Counter(str(score.verdict) for scores in problems for score in scores)
    bars = axes.bar(list(counted), list(counted.values()))
    axes.bar_label(bars)
    axes.set(ylabel="samples")
