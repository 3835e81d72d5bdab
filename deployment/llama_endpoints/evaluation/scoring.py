"""Samples -> `scores.jsonl`, problem by problem; problems that an interrupted run has scored are not scored again."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from llama_endpoints.evaluation.dataset import digest
from llama_endpoints.evaluation.folder import EvaluationFolder
from llama_endpoints.evaluation.problem import Problem
from llama_endpoints.evaluation.sample import Sample
from llama_endpoints.evaluation.score import Score
from llama_endpoints.evaluation.tasks.code_task import RunsCode
from llama_endpoints.evaluation.tasks.task import Task
from llama_serving.contract.json_lines import json_line
from llama_serving.errors import SetupError

OnSample = Callable[[int], None]
"""Called with the number of samples that have just been scored."""


def score(
    folder: EvaluationFolder, task: Task, problems: Sequence[Problem], on_sample: OnSample, *, workers: int = 1
) -> None:
    """Write the scores of all samples.

    Args:
        folder: with the samples.
        task: that scores them.
        problems: of the task.
        on_sample: told of progress.
        workers: problems at a time.

    Raises:
        SetupError: the samples cannot be scored here.
    """
    by_id = {problem.id: problem for problem in problems}
    kept = folder.path / ".scores.part"
    header = _header(folder, task)
    done = _kept(kept, header)
    on_sample(sum(map(len, done.values())))
    groups = (
        (name, list(samples))
        for name, samples in groupby(folder.read_samples(), key=lambda sample: sample.problem)
    )
    with kept.open("a", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        if not done:
            file.truncate(0)
            file.write(header + "\n")
        for scores in _in_order(task, by_id, ((n, s) for n, s in groups if n not in done), workers):
            file.write(json_line([one.to_dict() for one in scores]) + "\n")
            file.flush()
            on_sample(len(scores))
    _put_in_place(folder, kept, header)


def _header(folder: EvaluationFolder, task: Task) -> str:
    """Return what decides on the scores, as one line: those of a run with another one are not kept."""
    return json_line(
        {
            "samples": digest(folder.samples),
            "task": task.name,
            "options": dict(task.options),
            "data": None if task.data is None else digest(task.data),
            "running": asdict(task.running) if isinstance(task, RunsCode) else None,
        }
    )


def _in_order(
    task: Task, problems: dict[str, Problem], groups: Iterator[tuple[str, list[Sample]]], workers: int
) -> Iterator[list[Score]]:
    def scored(name: str, samples: list[Sample]) -> list[Score]:
        if name not in problems:
            raise SetupError(
                f"The data has no problem {name}. Give the data that the samples were generated with."
            )
        return list(task.scores(problems[name], samples))

    waiting: deque[Future[list[Score]]] = deque()
    with ThreadPoolExecutor(workers, "scoring") as pool:
        try:
            for name, samples in groups:
                waiting.append(pool.submit(scored, name, samples))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _kept(path: Path, header: str) -> dict[str, list[Score]]:
    """Return the scores of an interrupted run by problem, if it scored the same samples; what it was writing is cut off."""
    if not path.exists():
        return {}
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    lines = whole.split("\n")
    if lines[0] != header:
        path.unlink()
        return {}
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    read = [[Score.from_dict(one) for one in json.loads(line)] for line in lines[1:]]
    return {scores[0].problem: scores for scores in read}


def _put_in_place(folder: EvaluationFolder, kept: Path, header: str) -> None:
    from llama_endpoints.evaluation.folder import write_lines

    found = _kept(kept, header)
    write_lines(folder.scores, (one.to_dict() for scores in found.values() for one in scores))
    kept.unlink()
