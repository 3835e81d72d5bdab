"""Tasks -> `requests.jsonl`; records of the rows -> `samples.jsonl`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_endpoints.evaluation.folder import EvaluationFolder, read_lines, write_lines
from llama_endpoints.evaluation.problem import Problem
from llama_endpoints.evaluation.sample import Sample
from llama_endpoints.evaluation.tasks.task import PromptStyle, Row, Sampling, Task
from llama_serving.errors import SetupError


def write_requests(
    folder: EvaluationFolder, task: Task, problems: Sequence[Problem], style: PromptStyle, sampling: Sampling
) -> None:
    """Write the rows of all problems. The same task and settings write the same file, by which a run is resumed."""
    rows = (row for problem in problems for row in task.rows(problem, style, sampling))
    write_lines(folder.requests, rows)


def write_samples(
    folder: EvaluationFolder, task: Task, problems: Sequence[Problem], style: PromptStyle, records: Path
) -> None:
    """Write the samples from the records of the rows.

    Args:
        folder: of the evaluation.
        task: that the rows belong to.
        problems: of the task.
        style: how the model was asked.
        records: a batch job's output, of this process or of another one.

    Raises:
        SetupError: the records do not belong to the rows.
    """
    by_id = {problem.id: problem for problem in problems}
    write_lines(folder.samples, (sample.to_dict() for sample in _samples(folder, task, by_id, style, records)))


def check_records(records: Path, problems: Sequence[Problem], samples: int) -> None:
    """Check that there is a record for each sample.

    Raises:
        SetupError: one is missing, or the file is not a batch job's output.
    """
    places = _places(records)
    for name in (f"{problem.id}/{number}" for problem in problems for number in range(samples)):
        if name not in places:
            raise _missing(records, name)


def _missing(records: Path, name: str) -> SetupError:
    return SetupError(
        f"{records} has no record of row {name}. Give the output of the batch job that scored requests.jsonl."
    )


def _samples(
    folder: EvaluationFolder, task: Task, problems: Mapping[str, Problem], style: PromptStyle, records: Path
) -> Iterator[Sample]:
    places = _places(records)
    with records.open("rb") as file:
        for row in read_lines(folder.requests):
            if row["id"] not in places:
                raise _missing(records, row["id"])
            file.seek(places[row["id"]])
            yield _sample(task, problems, style, row, _record(file.readline()))


def _places(records: Path) -> dict[str, int]:
    """Return where each row's record is: a batch job may have several outputs, in any order, joined into one file."""
    found, place = dict[str, int](), 0
    try:
        with records.open("rb") as file:
            for raw in file:
                if raw.strip():
                    found[str(_record(raw).get("id"))] = place
                place += len(raw)
    except OSError as error:
        raise SetupError(f"{records} can't be read: {error.strerror}.") from error
    return found


def _record(raw: bytes) -> dict[str, Any]:
    import json

    try:
        found = json.loads(raw)
    except ValueError as error:
        raise SetupError(f"The records are not JSONL: {error}.") from error
    if not isinstance(found, dict) or "output" not in found:
        raise SetupError("The records have a line that is not a record of a batch job.")
    return found


def _sample(
    task: Task, problems: Mapping[str, Problem], style: PromptStyle, row: Row, record: Mapping[str, Any]
) -> Sample:
    name, _, number = row["id"].rpartition("/")
    text = record["output"]
    if text is None:
        return Sample(name, int(number), None, None, error=record.get("error"))
    if not isinstance(text, str):
        raise SetupError(
            f"The record of row {row['id']} has several texts. Score the rows without num_return_sequences."
        )
    completion = task.completion(problems[name], text, style)
    return Sample(name, int(number), text, completion, record.get("finish_reason"), record.get("usage"))
