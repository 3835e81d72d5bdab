"""The files of a batch job. They are put in place together, or not at all.

OUT                 the records, in the order of rows, once all are done
OUT.errors          (OUT.errors.jsonl for OUT.jsonl) errors of OpenAI Batch files, if any
OUT.manifest.json   what the records were made from, and their counts
OUT.journal         while the job is unfinished
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from llama_serving.batch.journal import Entry, EntryState, Journal, sync_folder
from llama_serving.contract.json_lines import json_document
from llama_serving.version import build


@dataclass(frozen=True, slots=True)
class Outputs:
    """The paths of a job's files."""

    records: Path

    @property
    def errors(self) -> Path:
        """Errors of OpenAI Batch files."""
        return self.records.with_name(f"{self.records.stem}.errors{self.records.suffix}")

    @property
    def manifest(self) -> Path:
        """What the records were made from."""
        return self.records.with_name(f"{self.records.name}.manifest.json")

    @property
    def journal(self) -> Path:
        """Finished rows of an unfinished job."""
        return self.records.with_name(f"{self.records.name}.journal")

    @property
    def all(self) -> tuple[Path, ...]:
        """All paths."""
        return self.records, self.errors, self.manifest, self.journal


def place(
    outputs: Outputs, job: dict[str, Any], journal: Journal, receipt: dict[str, Any] | None = None
) -> None:
    """Write the records of a complete journal, then remove it.

    Args:
        outputs: paths.
        job: the job's description, for the manifest.
        journal: synced.
        receipt: what the receipts of this run share, for the manifest.

    Raises:
        SetupError: the journal is incomplete.
        OSError: a file could not be written. No file is in place then.
    """
    parts = {
        path: path.with_name(f".{path.name}.part")
        for path in (outputs.errors, outputs.manifest, outputs.records)
    }
    try:
        with _new(parts[outputs.records]) as records, _new(parts[outputs.errors]) as errors:
            apart = _sort_out(journal.entries(), records, errors)
        with _new(parts[outputs.manifest]) as manifest:
            counts = asdict(journal.counts)
            about = {
                "job": job,
                "counts": counts,
                "rows": journal.counts.rows,
                "version": build().version,
                "receipt": receipt,
            }
            manifest.write(json_document(about, indent=2))
        for path, part in parts.items():  # the records last: if they exist, everything does
            if apart or path != outputs.errors:
                part.replace(path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    sync_folder(outputs.records.parent)
    outputs.journal.unlink()


def _sort_out(entries: Iterable[Entry], records: TextIO, errors: TextIO) -> int:
    """Write each record to its file; return the number of those in the errors' file."""
    apart = 0
    for entry in entries:
        one_apart = entry.state is EntryState.ERROR_APART
        apart += one_apart
        (errors if one_apart else records).write(entry.record + "\n")
    return apart


@contextmanager
def _new(path: Path) -> Iterator[TextIO]:
    """Yield a text file that is synced when the block ends."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
