"""The files that a batch job writes, and how they get into their place: all of them, or none.

OUT                 the records, in the order of the rows; there once all are done
OUT.errors          (OUT.errors.jsonl of OUT.jsonl) errors of OpenAI Batch files, if there are any
OUT.manifest.json   what the records were made of, and how many there are
OUT.journal         while the job is not done
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from llama_serving.batch.journal import Entry, EntryState, Journal, sync_folder
from llama_serving.contract.json_lines import json_document


@dataclass(frozen=True, slots=True)
class Outputs:
    """The files of a job."""

    records: Path

    @property
    def errors(self) -> Path:
        """Of OpenAI Batch files."""
        return self.records.with_name(f"{self.records.stem}.errors{self.records.suffix}")

    @property
    def manifest(self) -> Path:
        """What the records were made of."""
        return self.records.with_name(f"{self.records.name}.manifest.json")

    @property
    def journal(self) -> Path:
        """What is done so far."""
        return self.records.with_name(f"{self.records.name}.journal")

    @property
    def all(self) -> tuple[Path, ...]:
        """All of them."""
        return self.records, self.errors, self.manifest, self.journal


def place(outputs: Outputs, job: dict[str, Any], journal: Journal) -> None:
    """Write the records of a journal that is complete, and remove it.

    Args:
        outputs: where.
        job: what the records were made of, for the manifest.
        journal: all of it on the disk.

    Raises:
        SetupError: the journal is not complete.
        OSError: there is no room. Nothing is in its place then.
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
                "version": version("llama-endpoints"),
            }
            manifest.write(json_document(about, indent=2))
        for path, part in parts.items():  # the records last: where they are, everything is
            if apart or path != outputs.errors:
                part.replace(path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    sync_folder(outputs.records.parent)
    outputs.journal.unlink()


def _sort_out(entries: Iterable[Entry], records: TextIO, errors: TextIO) -> int:
    """Write each record into its file; how many went into the second one."""
    apart = 0
    for entry in entries:
        one_apart = entry.state is EntryState.ERROR_APART
        apart += one_apart
        (errors if one_apart else records).write(entry.record + "\n")
    return apart


@contextmanager
def _new(path: Path) -> Iterator[TextIO]:
    """A text file that is on the disk when the block is left."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
