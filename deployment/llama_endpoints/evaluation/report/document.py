"""The report of an evaluation: `report.html`, `report.md` and `plots/`, from the folder's files."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from llama_endpoints.evaluation.folder import EvaluationFolder
from llama_endpoints.evaluation.metrics.metric import ByProblem, Metric
from llama_endpoints.evaluation.report.plots import plots
from llama_endpoints.evaluation.report.results import Result, read
from llama_endpoints.evaluation.sample import Sample
from llama_endpoints.evaluation.score import Score, Verdict
from llama_serving.errors import SetupError

TEMPLATE: Final = Path(__file__).with_name("report.html.j2")
HTML, MARKDOWN, PLOTS = "report.html", "report.md", "plots"
_MOST_SHOWN: Final = 1_000
"""Samples in the page. All are in `samples.jsonl` and `scores.jsonl`."""
_LONGEST: Final = 8_000
"""Characters of a sample in the page."""


@dataclass(frozen=True, slots=True)
class ShownSample:
    """A sample in the page."""

    title: str
    verdict: str
    detail: str
    values: str
    text: str


def write_report(folder: EvaluationFolder, metrics: Sequence[Metric]) -> None:
    """Write the report of a folder that has `metrics.json`.

    Args:
        folder: the evaluation's folder.
        metrics: the task's metrics.

    Raises:
        SetupError: a file is missing or invalid, or the folder cannot be written to.
    """
    evaluation, found, problems = folder.read_evaluation(), read(folder.metrics), folder.scores_by_problem()
    drawn = plots(found, metrics, problems)
    page = _Page(evaluation, found, problems)
    try:
        (folder.path / PLOTS).mkdir(exist_ok=True)
        for name, (_, picture) in drawn.items():
            (folder.path / PLOTS / f"{name}.svg").write_text(picture, encoding="utf-8")
        (folder.path / MARKDOWN).write_text(
            page.markdown([(title, f"{PLOTS}/{name}.svg") for name, (title, _) in drawn.items()]),
            encoding="utf-8",
        )
        with (folder.path / HTML).open("w", encoding="utf-8", errors="replace") as file:
            file.writelines(page.html(list(drawn.values()), folder))
    except OSError as error:
        raise SetupError(f"The report can't be written to {folder.path}: {error.strerror}.") from error


@dataclass(frozen=True, slots=True)
class _Page:
    evaluation: Mapping[str, Any]
    found: Sequence[Result]
    problems: ByProblem

    @property
    def title(self) -> str:
        model = self.evaluation.get("model")
        name = model.get("variant") or model.get("name") if isinstance(model, Mapping) else None
        return f"{self.evaluation.get('task')} on {name or 'an unknown model'}"

    @property
    def columns(self) -> tuple[str, ...]:
        share = self.found[0].measured.confidence if self.found else 0.95
        return ("metric", "value", f"{share:.0%} interval", "problems", "published", "source", "verdict")

    @property
    def rows(self) -> list[tuple[str, ...]]:
        return [
            (
                one.name, number(one.measured.value), f"{number(one.measured.low)} to {number(one.measured.high)}",
                str(one.measured.problems), number(one.figure.value) if one.figure else "–",
                one.figure.source if one.figure else "–", one.verdict,
            )
            for one in self.found
        ]  # fmt: skip

    @property
    def notes(self) -> list[str]:
        counted = Counter(score.verdict for scores in self.problems for score in scores)
        total = sum(counted.values())
        said = [f"{total} samples of {len(self.problems)} problems: "
                + ", ".join(f"{count} {verdict}" for verdict, count in counted.most_common()) + "."]  # fmt: skip
        if counted[Verdict.NOT_RUN]:
            said.append(
                f"Warning: {counted[Verdict.NOT_RUN]} samples were not run. They count as the worst ones, so the metrics are too low."
            )
        said.append(
            "Intervals: percentile bootstrap over problems. Where all problems passed, or none did: the exact binomial bound."
        )
        if total > _MOST_SHOWN:
            said.append(
                f"The page shows {_MOST_SHOWN} samples. samples.jsonl and scores.jsonl hold all of them."
            )
        return said

    @property
    def about(self) -> list[tuple[str, str]]:
        return list(_flat(self.evaluation))

    def markdown(self, pictures: Sequence[tuple[str, str]]) -> str:
        lines = [
            f"# {_cell(self.title)}", "", *_table(self.columns, self.rows), "",
            *(line for note in self.notes for line in (note, "")),
            *(line for title, path in pictures for line in (f"![{_cell(title)}]({path})", "")),
            "## What was evaluated", "", *_table(("field", "value"), self.about),
        ]  # fmt: skip
        return "\n".join(lines) + "\n"

    def html(self, pictures: Sequence[tuple[str, str]], folder: EvaluationFolder) -> Iterator[str]:
        import jinja2

        template = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
        return template.generate(
            title=self.title, columns=self.columns, rows=self.rows, notes=self.notes, about=self.about,
            pictures=pictures, samples=shown_samples(folder),
        )  # fmt: skip


def shown_samples(folder: EvaluationFolder, most: int = _MOST_SHOWN) -> Iterator[ShownSample]:
    """Yield the first samples with their scores, in order.

    Raises:
        SetupError: the two files do not have the same samples.
    """
    pairs = zip(folder.read_samples(), folder.read_scores(), strict=False)
    for sample, score in islice(pairs, most):
        if (sample.problem, sample.sample) != (score.problem, score.sample):
            raise SetupError(
                f"{folder.samples} and {folder.scores} differ at {sample.problem}/{sample.sample}. Score the samples again."
            )
        yield _shown(sample, score)


def _shown(sample: Sample, score: Score) -> ShownSample:
    error = sample.error or {}
    text = sample.completion or sample.text or str(error.get("message", ""))
    cut = f"{text[:_LONGEST]}\n… ({len(text) - _LONGEST} more characters)" if len(text) > _LONGEST else text
    values = ", ".join(f"{name} {value:.4g}" for name, value in score.values.items())
    group = f" ({score.group})" if score.group is not None else ""
    return ShownSample(f"{sample.problem}/{sample.sample}{group}", score.verdict, score.detail, values, cut)


def number(value: float) -> str:
    """Format a metric."""
    return "–" if value != value else f"{value:.4f}"  # noqa: PLR0124  (NaN)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, "–" if value is None else str(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(map(_cell, line))} |" for line in lines]


def _cell(text: str) -> str:
    """Escape a text for a cell: no mark-up, no line break."""
    escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")
    return " ".join(escaped.split())
