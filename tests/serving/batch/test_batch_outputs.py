"""A job's files are put in place together, or not at all."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_serving.batch.journal import Entry, EntryState, Journal
from llama_serving.batch.outputs import Outputs, place
from llama_serving.errors import SetupError

JOB = {"model": "m"}


@pytest.fixture
def outputs(tmp_path: Path) -> Outputs:
    return Outputs(tmp_path / "out.jsonl")


@pytest.fixture
def journal(outputs: Outputs) -> Iterator[Journal]:
    """Three rows, one of them an error apart."""
    made = Journal(outputs.journal, JOB)
    for row, state in ((2, EntryState.OK), (0, EntryState.ERROR), (1, EntryState.ERROR_APART)):
        made.append(Entry(row, state, 1, 2, f'{{"row": {row}}}'))
    made.sync()
    yield made
    made.close()


def test_all_get_into_their_place(outputs: Outputs, journal: Journal) -> None:
    place(outputs, JOB, journal)
    assert outputs.records.read_text() == '{"row": 0}\n{"row": 2}\n'
    assert outputs.errors.read_text() == '{"row": 1}\n'
    manifest = json.loads(outputs.manifest.read_text())
    assert (manifest["job"], manifest["rows"], manifest["counts"]["errors"]) == (JOB, 3, 2)
    assert sorted(outputs.records.parent.iterdir()) == sorted(
        (outputs.records, outputs.errors, outputs.manifest)
    )


@pytest.mark.parametrize("full_at", [0, 1, 2])
def test_no_room_leaves_the_journal_alone(
    outputs: Outputs, journal: Journal, monkeypatch: pytest.MonkeyPatch, full_at: int
) -> None:
    synced, sync = [0], os.fsync

    def full(descriptor: int) -> None:
        synced[0] += 1
        if synced[0] > full_at:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        place(outputs, JOB, journal)
    assert list(outputs.records.parent.iterdir()) == [outputs.journal]
    monkeypatch.setattr(os, "fsync", sync)
    place(outputs, JOB, journal)
    assert outputs.records.exists()


def test_a_journal_with_a_gap_is_no_result(outputs: Outputs, journal: Journal) -> None:
    journal.append(Entry(5, EntryState.OK, 1, 2, "{}"))
    journal.sync()
    with pytest.raises(SetupError, match="not row 3"):
        place(outputs, JOB, journal)
    assert list(outputs.records.parent.iterdir()) == [outputs.journal]


def test_without_errors_apart_there_is_no_file_of_them(outputs: Outputs) -> None:
    made = Journal(outputs.journal, JOB)
    place(outputs, JOB, made)
    made.close()
    assert outputs.records.read_bytes() == b""
    assert not outputs.errors.exists()
