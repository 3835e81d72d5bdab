"""The records of a batch job, with the rows that they were made from."""

import json
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llama_endpoints.replay.claims import Claim, claims
from llama_endpoints.replay.requests import undisturbed
from llama_endpoints.replay.verdict import Difference
from llama_serving.batch import job as jobs
from llama_serving.batch.inputs import InputFile, digest
from llama_serving.batch.outputs import Outputs
from llama_serving.batch.windows import Todo
from llama_serving.contract.request import Parameters, Request
from llama_serving.contract.rows import RowKind
from llama_serving.errors import SetupError

MANIFEST: Final = ".manifest.json"
SETTINGS: Final = ("dtype", "context", "engine", "backend", "quantization")
"""Of those that a manifest has, the ones that decide the bytes."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a job's manifest says.

    Attributes:
        job: the job's description; see `BatchJob.described`.
        shared: what the receipts of the run that finished the job share; None in a manifest of an older version.
    """

    job: Mapping[str, Any]
    shared: Mapping[str, Any] | None

    @property
    def settings(self) -> dict[str, str]:
        """The settings that decide the bytes, as variables of the environment."""
        given = self.job["settings"]
        return {f"LLAMA_{name.upper()}": str(given[name]) for name in SETTINGS if given.get(name) is not None}

    def changed_inputs(self, sources: Sequence[InputFile]) -> Iterator[Difference]:
        """Yield the inputs that are not those of the job."""
        known = self.job["inputs"]
        for source in sources:
            expected = known.get(source.name, {}).get("sha256", "no such input")
            found = digest(source, lambda _: None).sha256
            if expected != found:
                yield Difference(f"input {source.name}", expected, found)


@dataclass(frozen=True, slots=True)
class RecordedRow:
    """A record that succeeded, with its row.

    Attributes:
        name: the row's place, for people.
        request: of the row.
        claims: of its receipts; empty if it has none.
        texts: of its outputs; None for the call of a function.
    """

    name: str
    request: Request
    claims: tuple[Claim, ...]
    texts: tuple[str | None, ...]


def manifest_of(path: Path) -> tuple[Path, Manifest | None]:
    """Return the file of records and its manifest; `path` is either of them.

    Raises:
        SetupError: the manifest can't be read.
    """
    records = path.with_name(path.name.removesuffix(MANIFEST))
    place = Outputs(records).manifest
    if not place.is_file():
        return records, None
    try:
        about = json.loads(place.read_text(encoding="utf-8"))
        job = {"settings": {}, "parameters": {}, "inputs": {}, **about["job"]}
        return records, Manifest(job, about.get("receipt"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SetupError(f"{place} can't be read: {error!r}.") from error


def recorded(
    records: Path, sources: Sequence[InputFile], defaults: Parameters, max_bytes: int
) -> Iterator[RecordedRow]:
    """Yield the records that have an output, each with its row.

    Raises:
        SetupError: a file cannot be read, or a record has no row in the inputs.
    """
    rows: dict[Any, deque[Todo]] = defaultdict(deque)
    for todo in jobs.todos(sources, defaults, max_bytes):
        if todo.request is not None:
            rows[_key_of_row(todo)].append(todo)
    for number, record in enumerate(_lines(records), 1):
        if record.get("error") is not None:
            continue
        texts = _texts(record)
        if texts is None:
            raise SetupError(f"Line {number} of {records} is no record of a batch job.")
        key = _key(record)
        if not rows.get(key):
            raise SetupError(
                f"The record in line {number} of {records} has no valid row in the inputs. Give the --input of that job."
            )
        yield _row(record, texts, rows[key].popleft())


def _row(record: Mapping[str, Any], texts: tuple[str | None, ...], todo: Todo) -> RecordedRow:
    assert todo.request is not None  # noqa: S101  (filtered)
    request, place = undisturbed(todo.request), todo.line.place
    held = '"receipt"' in json.dumps(record)
    return RecordedRow(f"{place.file}:{place.line}", request, claims(record) if held else (), texts)


def _texts(record: Mapping[str, Any]) -> tuple[str | None, ...] | None:
    """Return the texts of a record; None if it is no record."""
    try:
        if "response" in record:
            choices = record["response"]["body"]["choices"]
            return tuple(one["text"] if "text" in one else one["message"]["content"] for one in choices)
        output = record["output"]
    except (KeyError, TypeError):
        return None
    return tuple(output) if isinstance(output, list) else (output,)


def _key_of_row(todo: Todo) -> Any:
    row, place = todo.line.row, todo.line.place
    if row is not None and row.kind is RowKind.OPENAI_BATCH:
        return "custom_id", json.dumps(row.id)
    return "line", place.file, place.line


def _key(record: Mapping[str, Any]) -> Any:
    if "custom_id" in record:
        return "custom_id", json.dumps(record["custom_id"])
    return "line", record.get("file"), record.get("line")


def _lines(records: Path) -> Iterator[dict[str, Any]]:
    try:
        with records.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise SetupError(f"Line {number} of {records} is no record.")
                    yield record
    except (OSError, ValueError) as error:
        raise SetupError(f"{records} can't be read: {error}") from error
