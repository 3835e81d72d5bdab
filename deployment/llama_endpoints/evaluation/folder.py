"""The folder of an evaluation. Its files connect generation, scoring and the report.

evaluation.json   what was evaluated, on what, how, and when
requests.jsonl    rows for the model
samples.jsonl     one line a sample, in the order of the rows
scores.jsonl      one line a sample, in the same order
metrics.json      the metrics
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from llama_endpoints.evaluation.metrics.metric import ByProblem
from llama_endpoints.evaluation.sample import Sample
from llama_endpoints.evaluation.score import Score
from llama_serving.contract.json_lines import json_document, json_line
from llama_serving.errors import SetupError

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class EvaluationFolder:
    """The folder of an evaluation."""

    path: Path

    @property
    def evaluation(self) -> Path:
        """What was evaluated, on what, how, and when."""
        return self.path / "evaluation.json"

    @property
    def requests(self) -> Path:
        """The rows for the model."""
        return self.path / "requests.jsonl"

    @property
    def records(self) -> Path:
        """The batch runner's records, until they have become samples."""
        return self.path / "records.jsonl"

    @property
    def samples(self) -> Path:
        """The samples."""
        return self.path / "samples.jsonl"

    @property
    def scores(self) -> Path:
        """The scores."""
        return self.path / "scores.jsonl"

    @property
    def metrics(self) -> Path:
        """The metrics."""
        return self.path / "metrics.json"

    def read_evaluation(self) -> dict[str, Any]:
        """Return the content of `evaluation.json`.

        Raises:
            SetupError: there is none, or another version wrote it.
        """
        found = read_json(self.evaluation)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise SetupError(
                f"{self.evaluation} is not of format {FORMAT}. Evaluate into a new folder with this version."
            )
        return found

    def kept_evaluation(self) -> dict[str, Any] | None:
        """Return the content of `evaluation.json`; None where this version cannot read it."""
        try:
            return self.read_evaluation()
        except SetupError:
            return None

    def forget_samples(self) -> None:
        """Remove the samples and the records of their rows, so that the next run asks for all of them."""
        for path in (self.samples, *self.path.glob(f"{self.records.stem}.*")):
            path.unlink(missing_ok=True)

    def make(self) -> None:
        """Make the folder.

        Raises:
            SetupError: it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SetupError(f"{self.path} can't be made: {error.strerror}. Give another folder.") from error

    def clear(self) -> None:
        """Remove an evaluation and all other files in its folder. `evaluation.json` goes last, so that a removal can be repeated.

        Raises:
            SetupError: the folder is not that of an evaluation, or cannot be changed.
        """
        inside = list(self.path.iterdir()) if self.path.exists() else []
        begun = {self.requests.name, _part(self.requests).name, _part(self.evaluation).name}
        if not self.evaluation.is_file() and {path.name for path in inside} - begun:
            raise SetupError(f"{self.path} is not the folder of an evaluation. Give another --output.")
        try:
            for path in sorted(inside, key=lambda path: path == self.evaluation):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        except OSError as error:
            raise SetupError(f"{self.path} can't be removed: {error.strerror}.") from error

    def read_samples(self) -> Iterator[Sample]:
        """Yield the samples, in order.

        Raises:
            SetupError: the file is missing or invalid.
        """
        return (_made(Sample.from_dict, line, self.samples) for line in read_lines(self.samples))

    def read_scores(self) -> Iterator[Score]:
        """Yield the scores, in order.

        Raises:
            SetupError: the file is missing or invalid.
        """
        return (_made(Score.from_dict, line, self.scores) for line in read_lines(self.scores))

    def scores_by_problem(self) -> ByProblem:
        """Return the scores, those of each problem together.

        Raises:
            SetupError: the file is missing or invalid.
        """
        return [list(scores) for _, scores in groupby(self.read_scores(), key=lambda score: score.problem)]


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        SetupError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise SetupError(f"{path} can't be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise SetupError(f"{path} is not JSON: {error}.") from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file.

    Raises:
        SetupError: it cannot be read, or a line is not a JSON object.
    """
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if raw.strip():
                    yield _object(raw, f"{path}, line {number}")
    except OSError as error:
        raise SetupError(f"{path} can't be read: {error.strerror}.") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    _write(path, [json_document(value, indent=2)])


def write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSONL file, whole or not at all."""
    _write(path, (json_line(value) + "\n" for value in values))


def _write(path: Path, parts: Iterable[str]) -> None:
    """Write parts of JSON. A surrogate alone has no UTF-8; replaced with a backslash it is JSON's own escape."""
    part = _part(path)
    try:
        with part.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise SetupError(f"{path} can't be written: {error.strerror}.") from error
    finally:
        part.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _object(raw: bytes, at: str) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise SetupError(f"{at} is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise SetupError(f"{at} is not a JSON object.")
    return found


def _made(make: Any, line: dict[str, Any], path: Path) -> Any:
    try:
        return make(line)
    except (TypeError, ValueError, KeyError) as error:
        raise SetupError(f"{path} has a line of another form: {error}.") from error
