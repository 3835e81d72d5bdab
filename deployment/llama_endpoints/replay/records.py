"""The records of a batch job, with the rows that they were made from."""

import json
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llama_endpoints.replay.claims import Claim, choices, of_record, outputs
from llama_endpoints.replay.messages import typed
from llama_endpoints.replay.requests import undisturbed
from llama_endpoints.replay.verdict import Difference
from llama_serving.batch import job as jobs
from llama_serving.batch.inputs import InputFile, digest
from llama_serving.batch.outputs import Outputs
from llama_serving.batch.windows import Todo
from llama_serving.contract.request import Parameters, Request
from llama_serving.contract.rows import RowKind
from llama_serving.contract.validation import validate
from llama_serving.errors import BadRequest, SetupError

MANIFEST: Final = ".manifest.json"
SETTINGS: Final = ("dtype", "context", "engine", "backend", "quantization")
"""Of those that a manifest has, the ones that decide the bytes."""

SHARED: Final = ("model", "engine", "version", "commit")
"""What a manifest has of the receipts."""


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
        return records, _manifest(about)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SetupError(f"{place} can't be read: {error!r}.") from error


def _manifest(about: Mapping[str, Any]) -> Manifest:
    """Return a manifest, with its parts checked.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    job = {"settings": {}, "parameters": {}, "inputs": {}, **about["job"]}
    for held in (job["settings"], job["parameters"], job["inputs"], *dict(job["inputs"]).values()):
        if not isinstance(held, dict):
            raise TypeError("its job is none")
    shared = about.get("receipt")
    if shared is not None:
        _check_shared(shared)
    return Manifest(job, shared)


def _check_shared(shared: Mapping[str, Any]) -> None:
    try:
        for name in SHARED:
            validate(shared[name], f"receipt#/properties/{name}")
    except BadRequest as error:
        raise ValueError(error.message) from error


def recorded(
    records: Path, sources: Sequence[InputFile], defaults: Parameters, max_bytes: int
) -> Iterator[RecordedRow]:
    """Yield the records that have an output, each with its row.

    Raises:
        SetupError: a file cannot be read, or a record has no row in the inputs.
    """
    rows: dict[tuple[str, str], deque[Todo]] = defaultdict(deque)
    for todo in jobs.todos(sources, defaults, max_bytes):
        if todo.request is not None:
            rows[_key_of_row(todo)].append(todo)
    for number, record in enumerate(_lines(records), 1):
        if record.get("error") is not None:
            continue
        key = _key(record)
        if not rows.get(key):
            raise SetupError(
                f"The record in line {number} of {records} has no valid row in the inputs. Give the --input of that job."
            )
        yield _row(f"Line {number} of {records}", record, rows[key].popleft())


def _row(at: str, record: Mapping[str, Any], todo: Todo) -> RecordedRow:
    """Return a record with its row; `at` names the record."""
    assert todo.request is not None  # noqa: S101  (filtered)
    request, place = undisturbed(todo.request), todo.line.place
    try:
        texts, claims = _texts(record), of_record(record)
    except SetupError as error:
        raise SetupError(f"{at} is no record of a batch job. {error}") from error
    if len(claims) not in (0, len(texts)):
        raise SetupError(f"{at} has {len(claims)} receipts for {len(texts)} outputs.")
    return RecordedRow(f"{place.file}:{place.line}", request, claims, texts)


def _texts(record: Mapping[str, Any]) -> tuple[str | None, ...]:
    """Return the texts of a record.

    Raises:
        SetupError: it has none.
    """
    if "output" in record:
        return tuple(outputs(record))
    response = typed(record.get("response"), dict, "response")
    body = typed(response.get("body"), dict, "response.body")
    return tuple(message.content for _, message, _ in choices({"choices": None, **body}))


def _key_of_row(todo: Todo) -> tuple[str, str]:
    row, place = todo.line.row, todo.line.place
    if row is not None and row.kind is RowKind.OPENAI_BATCH:
        return "custom_id", json.dumps(row.id)
    return "line", json.dumps([place.file, place.line])


def _key(record: Mapping[str, Any]) -> tuple[str, str]:
    if "custom_id" in record:
        return "custom_id", json.dumps(record["custom_id"])
    return "line", json.dumps([record.get("file"), record.get("line")])


def _lines(records: Path) -> Iterator[dict[str, Any]]:
    try:
        with records.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise SetupError(f"Line {number} of {records} is no record.")
                    yield record
    except (OSError, ValueError, RecursionError) as error:
        raise SetupError(f"{records} can't be read: {error}") from error
