"""Samples that tests write themselves, scored as the command does."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llama_endpoints.evaluation import run
from llama_endpoints.evaluation.folder import EvaluationFolder, write_json, write_lines
from llama_endpoints.evaluation.problem import Problem
from llama_endpoints.evaluation.report.results import Result
from llama_endpoints.evaluation.sample import Sample
from llama_endpoints.evaluation.sandbox.limits import MIB, Limits
from llama_endpoints.evaluation.score import Score
from llama_endpoints.evaluation.tasks import registry
from llama_endpoints.evaluation.tasks.code_task import CodeRunning
from llama_endpoints.evaluation.tasks.task import Task

RUNNING = CodeRunning(True, Limits(wall_s=60, memory=512 * MIB))
"""Long, for machines under load: what passes and what fails does not need it."""


def task(name: str, **options: Any) -> Task:
    """A task that may run code."""
    return registry.create(name, {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}, RUNNING)


def scores_of(of: Task, problem: Problem, *completions: str | None) -> list[Score]:
    """The scores of some completions."""
    samples = [Sample(problem.id, number, text, text) for number, text in enumerate(completions)]
    return list(of.scores(problem, samples))


def measured(
    of: Task,
    folder: Path,
    completions: Callable[[Problem, int], Sequence[str | None]],
    limit: int | None = None,
) -> dict[str, Result]:
    """The metrics of a whole evaluation, through its files.

    Args:
        of: the task.
        folder: a new one.
        completions: of the problem with a number.
        limit: the first problems alone.
    """
    folder.mkdir()
    kept = EvaluationFolder(folder)
    problems = of.problems()[:limit]
    described = {
        "format": 1, "task": of.name, "model": {}, "target": {}, "data": {"problems": len(problems)},
        "settings": {"limit": limit, "options": dict(of.options)},
    }  # fmt: skip
    write_json(kept.evaluation, described)
    write_lines(
        kept.samples,
        (
            Sample(problem.id, number, text, text).to_dict()
            for at, problem in enumerate(problems)
            for number, text in enumerate(completions(problem, at))
        ),
    )
    return {one.name: one for one in run.measure(kept, of, lambda _: None, workers=2)}
