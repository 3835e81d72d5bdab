"""One evaluation from its first step to its last: requests, samples, scores, metrics and the report, in one folder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from llama_endpoints.evaluation import dataset, generation, scoring
from llama_endpoints.evaluation.folder import FORMAT, EvaluationFolder, write_json
from llama_endpoints.evaluation.problem import Problem
from llama_endpoints.evaluation.report import results
from llama_endpoints.evaluation.report.document import write_report
from llama_endpoints.evaluation.report.results import Result, Subject
from llama_endpoints.evaluation.targets.target import Model, OnRow, Target
from llama_endpoints.evaluation.tasks.task import PromptStyle, Sampling, Task
from llama_endpoints.version import commit
from llama_serving.catalog import CATALOG
from llama_serving.errors import SetupError

PUBLISHED_DRAWN = Sampling(temperature=0.8, top_p=0.95)
"""How pass@10 and pass@100 are drawn for published figures (arXiv 2308.12950, section 3.1); pass@1 is greedy."""
NEW_TOKENS: Final = {"humaneval": 512, "infilling": 128, "mbpp": 512, "multipl-e": 512}
"""The fewest new tokens with which a figure compares: the defaults of the tasks that have figures. Fewer cut answers."""


class OtherEvaluationError(SetupError):
    """The folder has another evaluation."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is evaluated, and how.

    Attributes:
        folder: where it is kept.
        task: with its data.
        model: of the target.
        style: how the model is asked.
        sampling: how texts are drawn.
        limit: number of problems, the first ones; None for all.
        overwrite: whether another evaluation in the folder is replaced.
    """

    folder: EvaluationFolder
    task: Task
    model: Model
    style: PromptStyle
    sampling: Sampling
    limit: int | None = None
    overwrite: bool = False

    def problems(self) -> Sequence[Problem]:
        """Return the problems.

        Raises:
            SetupError: the data is invalid.
        """
        return self.task.problems()[: self.limit]

    def described(self, target: Mapping[str, Any], problems: int) -> dict[str, Any]:
        """Return `evaluation.json` without its times, by which an interrupted run is known again."""
        from importlib.metadata import version

        path = self.task.data
        data = {
            "path": None if path is None else str(path),
            "sha256": None if path is None else dataset.digest(path),
        }
        settings = {**self.sampling.to_dict(), "prompt": str(self.style), "limit": self.limit}
        return {
            "format": FORMAT,
            "task": self.task.name,
            "model": self.model.to_dict(),
            "target": dict(target),
            "settings": {**settings, "options": dict(self.task.options)},
            "data": {**data, "problems": problems},
            "version": version("llama-endpoints"),
            "commit": commit(),
        }

    def open(self, target: Mapping[str, Any], problems: Sequence[Problem]) -> dict[str, Any]:
        """Write the description and the requests, or find those of an interrupted run, which `overwrite` leaves as they are.

        Raises:
            OtherEvaluationError: the folder has another evaluation.
            SetupError: the folder cannot be written to, or `overwrite` would remove other files.
        """
        described = self.described(target, len(problems))
        found = self._found(described)
        self.folder.make()
        if found is None or not self.folder.requests.exists():
            generation.write_requests(self.folder, self.task, problems, self.style, self.sampling)
        if found is not None:
            return found
        started = {**described, "started": now(), "ended": None}
        write_json(self.folder.evaluation, started)
        return started

    def _found(self, described: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the description in the folder if it is of this evaluation; remove another one where that is wanted."""
        if self.folder.evaluation.exists():
            found = self.folder.kept_evaluation() if self.overwrite else self.folder.read_evaluation()
            if found is not None and _same(found, described):
                return found
            if not self.overwrite:
                raise OtherEvaluationError(
                    f"{self.folder.path} has another evaluation. Give another --output, or --overwrite."
                )
        if self.overwrite:
            self.folder.clear()
        return None

    def generate(self, target: Target, on_row: OnRow) -> None:
        """Write the samples, unless they are there.

        Raises:
            SetupError: it cannot be done; finished rows are kept.
            Interrupted: a signal ended it.
        """
        problems = self.problems()
        self.open(target.described, problems)
        if not self.folder.samples.exists():
            target.generate(self.folder, on_row)
            generation.write_samples(self.folder, self.task, problems, self.style, self.folder.records)
        for path in self.folder.path.glob(f"{self.folder.records.name.partition('.')[0]}.*"):
            path.unlink()

    def take(self, records: Path) -> None:
        """Write the samples from a batch job's output, instead of generating.

        Raises:
            SetupError: the records do not belong to the requests.
        """
        problems = self.problems()
        generation.check_records(records, problems, self.sampling.samples)
        self.open({"kind": "batch"}, problems)
        generation.write_samples(self.folder, self.task, problems, self.style, records)


def check_data(evaluation: Mapping[str, Any], task: Task) -> None:
    """Check that a task has the data that an evaluation was made with.

    Raises:
        SetupError: it has other data.
    """
    kept = evaluation["data"].get("sha256")
    if kept is None or task.data is None or (found := dataset.digest(task.data)) == kept:
        return
    raise SetupError(
        f"{task.data} (sha256 {found[:12]}) is not the data that the samples were generated with ({evaluation['data']['path']}, "
        f"sha256 {kept[:12]}). Give that file as --data, or evaluate again with the other one."
    )


def measure(
    folder: EvaluationFolder, task: Task, on_sample: Callable[[int], None], *, workers: int = 1
) -> tuple[Result, ...]:
    """Score the samples of a folder, and write its metrics and its report.

    Raises:
        SetupError: the samples cannot be scored here.
    """
    evaluation = folder.read_evaluation()
    problems = task.problems()[: evaluation["settings"].get("limit")]
    scoring.score(folder, task, problems, on_sample, workers=workers)
    found = results.results(task.metrics, folder.scores_by_problem(), subject_of(evaluation))
    results.write(folder.metrics, found)
    write_json(folder.evaluation, {**evaluation, "ended": now()})
    write_report(folder, task.metrics)
    return found


def subject_of(evaluation: Mapping[str, Any]) -> Subject:
    """Return what was measured, and how it departs from what was published."""
    task, settings, variant = evaluation["task"], evaluation["settings"], evaluation["model"].get("variant")
    departures = list[str]()
    drawn = settings.get("samples", 1) > 1
    temperature, expected = settings.get("temperature", 0), PUBLISHED_DRAWN.temperature if drawn else 0
    if temperature != expected:
        departures.append(f"temperature {temperature:g} instead of {expected:g}")
    if drawn and settings.get("top_p") != PUBLISHED_DRAWN.top_p:
        departures.append(f"top_p {settings.get('top_p')} instead of {PUBLISHED_DRAWN.top_p:g}")
    least = NEW_TOKENS.get(task, 0)
    if settings.get("max_new_tokens", least) < least:
        departures.append(f"{settings['max_new_tokens']} new tokens instead of {least}")
    if task != "infilling" and variant in CATALOG:  # (infilling has one form of prompt)
        style = PromptStyle.COMPLETION if CATALOG[variant].dialog is None else PromptStyle.DIALOG
        if settings.get("prompt", style) != style:
            departures.append(f"prompts are a {settings['prompt']} instead of a {style}")
    return Subject(task, variant, tuple(departures), drawn)


def now() -> str:
    """Return the time as ISO 8601, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _same(found: Mapping[str, Any], described: Mapping[str, Any]) -> bool:
    """Return whether two descriptions are of one evaluation. The program's own version may have changed in between."""
    passing = {"started", "ended", "version", "commit"}
    return {k: v for k, v in found.items() if k not in passing} == {
        k: v for k, v in described.items() if k not in passing
    }
