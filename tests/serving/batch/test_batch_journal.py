"""The journal: it has what is on the disk, written in any order and read in the order of rows."""

import errno
import os
import random
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.batch.job import about
from llama_serving.batch.journal import Counts, Entry, EntryState, Journal
from llama_serving.catalog import NANO
from llama_serving.errors import SetupError
from llama_serving.model_files import ModelFiles
from llama_serving.settings import Settings

JOB = {"model": "m", "inputs": {"a.jsonl": {"sha256": "1"}}}


def entry(row: int, state: EntryState = EntryState.OK) -> Entry:
    return Entry(row, state, 2, 3, f'{{"row": {row}, "text": "é\u2028 {row}"}}')


def written(path: Path, rows: list[int]) -> bytes:
    journal = Journal(path, JOB)
    for row in rows:
        journal.append(entry(row))
    journal.sync()
    journal.close()
    return path.read_bytes()


@given(st.permutations(range(20)))
def test_rows_come_back_in_their_order(tmp_path_factory: pytest.TempPathFactory, order: list[int]) -> None:
    path = tmp_path_factory.mktemp("j") / "journal"
    written(path, order[:11])
    journal = Journal(path, JOB)
    assert journal.resumed == 11
    assert [row in journal for row in range(22)] == [row in order[:11] for row in range(22)]
    for row in order:  # (those that are there already change nothing)
        journal.append(entry(row))
    journal.sync()
    assert list(journal.entries()) == [entry(row) for row in range(20)]
    assert journal.counts == Counts(ok=20, prompt_tokens=40, completion_tokens=60)
    journal.close()


def test_states_are_counted(tmp_path: Path) -> None:
    for _ in range(2):
        journal = Journal(tmp_path / "j", JOB)
        for row, state in enumerate(EntryState):
            journal.append(entry(row, state))
        assert (journal.counts.ok, journal.counts.errors, journal.counts.rows) == (1, 2, 3)
        journal.sync()
        journal.close()


def test_a_file_cut_off_anywhere_keeps_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "j"
    whole = written(path, [2, 0, 1])
    lines = whole.splitlines(keepends=True)
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        journal = Journal(path, JOB)
        complete = sum(len(b"".join(lines[: n + 1])) <= length for n in range(1, 4))
        assert journal.resumed == complete
        assert [row for row in (2, 0, 1) if row in journal] == [2, 0, 1][:complete]
        for row in range(3):
            journal.append(entry(row))
        journal.sync()
        assert list(journal.entries()) == [entry(row) for row in range(3)]
        journal.close()


@pytest.mark.parametrize("junk", [b"\0" * 40, b"\0" * 40 + b"\n", b"12345678 x\n", b"\xff\xfe\n", b"\n"])
def test_what_a_lost_power_leaves_is_cut_off(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "j"
    whole = written(path, [0, 1])
    path.write_bytes(whole + junk + whole.splitlines(keepends=True)[-1])
    journal = Journal(path, JOB)
    assert (journal.resumed, path.read_bytes()) == (2, whole)
    journal.close()


def test_a_damaged_byte_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "j"
    whole = written(path, list(range(5)))
    rng = random.Random(3)
    head = whole.index(b"\n") + 1
    for _ in range(60):
        at = rng.randrange(head, len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        journal = Journal(path, JOB)
        assert journal.resumed == whole[head:at].count(b"\n")
        journal.close()


def test_another_job_is_refused_and_told(tmp_path: Path) -> None:
    path = tmp_path / "j"
    whole = written(path, [0])
    with pytest.raises(
        SetupError, match=r'model was "m" and is "n"; parameters was null and is \{\}'
    ) as refused:
        Journal(path, {**JOB, "model": "n", "parameters": {}})
    assert "--overwrite" in str(refused.value)
    with pytest.raises(SetupError, match=r'inputs.a.jsonl.sha256 was "1" and is "2"'):
        Journal(path, {**JOB, "inputs": {"a.jsonl": {"sha256": "2"}}})
    assert path.read_bytes() == whole
    Journal(path, JOB).close()


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", JOB)
    program = (
        "import sys; from pathlib import Path; from llama_serving.batch.journal import Journal\n"
        "try: Journal(Path(sys.argv[1]), {})\n"
        "except Exception as error: print(error)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "j")]
    assert "Another process" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    journal.close()
    Journal(tmp_path / "j", JOB).close()


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal(path, JOB)
    journal.append(entry(0))
    journal.sync()
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 30, hard))
    try:
        journal.append(entry(1))
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            journal.sync()
        assert path.stat().st_size == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.sync()
    assert list(journal.entries()) == [entry(0), entry(1)]
    journal.close()


def test_a_row_that_is_missing_is_no_result(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", JOB)
    for row in (0, 2, 3):
        journal.append(entry(row))
    journal.sync()
    with pytest.raises(SetupError, match="has 3 rows, but not row 1"):
        list(journal.entries())
    journal.close()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="can't be written"):
        Journal(tmp_path / "no" / "j", JOB)


def test_two_threads_that_sync_write_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, entered, released = Journal(tmp_path / "j", JOB), threading.Event(), threading.Event()
    sync = os.fdatasync

    def slow(descriptor: int) -> None:
        entered.set()
        assert released.wait(30)
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    journal.append(entry(0))
    first = threading.Thread(target=journal.sync)
    first.start()
    assert entered.wait(30)
    journal.append(entry(1))
    second = threading.Thread(target=journal.sync)
    second.start()
    journal.append(entry(2))
    released.set()
    first.join()
    second.join()
    journal.sync()
    assert list(journal.entries()) == [entry(row) for row in range(3)]
    assert journal.path.read_bytes().count(b"\n") == 4
    journal.close()


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    Journal(tmp_path / "j", JOB).close()
    assert "can't be locked (not supported)" in caplog.text


def test_what_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.journal"
    for content in (
        b"somebody's ledger\n" * 40,
        written(tmp_path / "j", [0, 1]).replace(b"model", b"mpdel", 1),
    ):
        path.write_bytes(content)
        with pytest.raises(SetupError, match="is not a journal, or is damaged"):
            Journal(path, JOB)
        assert path.read_bytes() == content


def test_a_journal_that_was_put_in_anothers_place_is_not_taken_for_it(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal(path, JOB)
    for row in range(3):
        journal.append(entry(row))
    journal.sync()
    path.unlink()
    written(path, [0])
    assert list(journal.entries()) == [entry(row) for row in range(3)]
    os.ftruncate(journal._fd, path.stat().st_size)
    with pytest.raises(SetupError, match="has 3 rows, but not row 1"):
        list(journal.entries())
    journal.close()


def test_the_job_of_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "j"
    assert Journal.job_of(path) is None
    assert not path.exists()
    journal = Journal(path, JOB)
    for ask in (Journal.job_of, Journal.remove):
        with pytest.raises(SetupError, match="Another process"):
            ask(path)
    journal.close()
    assert Journal.job_of(path) == JOB
    Journal.remove(path)
    Journal.remove(path)
    assert not path.exists()


def test_a_job_is_another_one_with_other_guards(tmp_path: Path) -> None:
    """A journal of a job without guards is as it was before there were any."""
    files = ModelFiles(NANO_FOLDER, NANO)
    guards = tmp_path / "guards.yml"
    guards.write_text("guards: [{type: rules, deny: [falcon]}]")
    bare, guarded = about(files, Settings()), about(files, Settings(guards=str(guards)))
    assert bare == {name: value for name, value in guarded.items() if name != "guards"}
    guards.write_text("guards: [{type: rules, deny: [goose]}]")
    Journal(tmp_path / "j", guarded).close()
    for other in (bare, about(files, Settings(guards=str(guards)))):
        with pytest.raises(SetupError, match=r"belongs to another job: guards.* was .*--overwrite"):
            Journal(tmp_path / "j", other)
    Journal(tmp_path / "j", guarded).close()
