"""The audit: what is tampered with shows, and what was written stays, across rotations, kills and full disks."""

import errno
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_serving.errors import SetupError, Unavailable
from llama_serving.server.accounts import audit
from llama_serving.server.accounts.audit import AuditWriter
from llama_serving.server.accounts.chain import BrokenChain, Link, links, records, seal, torn
from tests.support.calls import until


@contextmanager
def writing(path: Path, *, max_bytes: int = 1 << 30, fsync: bool = False) -> Iterator[AuditWriter]:
    writer = AuditWriter(path, fsync=fsync, max_bytes=max_bytes)
    try:
        yield writer
    finally:
        writer.close()


def record(number: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"number": number, "text": "é\u2028"}


def written(path: Path, numbers: range, **options: Any) -> None:
    with writing(path, **options) as writer:
        for number in numbers:
            writer.put(record(number))


def files_of(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}*{path.suffix}"))


def numbers_in(paths: list[Path]) -> list[int]:
    return [one["number"] for path in paths for _, one, _ in records(path)]


def lines(count: int) -> list[bytes]:
    found, link = [], Link()
    for number in range(count):
        line, link = seal({"number": number}, link)
        found.append(line)
    return found


def checked(path: Path, raw: bytes) -> list[Link]:
    path.write_bytes(raw)
    return list(links([path]))


# --- the chain --------------------------------------------------------------------------------------


@given(st.data())
def test_a_changed_byte_is_named_by_its_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = lines(data.draw(st.integers(1, 5)))
    raw = bytearray(b"".join(whole))
    at = data.draw(st.integers(0, len(raw) - 2))  # (the last line feed: see the next test)
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BrokenChain) as broken:
        checked(tmp_path_factory.getbasetemp() / "changed.jsonl", bytes(raw))
    ends = [sum(map(len, whole[: number + 1])) for number in range(len(whole))]
    first = next(number for number, end in enumerate(ends, 1) if at < end)
    assert broken.value.number == first


@given(st.permutations(range(5)), st.integers(1, 5))
def test_lines_that_are_moved_removed_or_doubled_show(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], kept: int
) -> None:
    path, whole = tmp_path_factory.getbasetemp() / "moved.jsonl", lines(5)
    chosen = order[:kept]
    in_order = chosen == list(range(chosen[0], chosen[0] + kept))
    raw = b"".join(whole[number] for number in chosen)
    if in_order:  # what is missing is before or after: see `--contains`
        assert [link.line for link in checked(path, raw)] == [number + 1 for number in chosen]
    else:
        with pytest.raises(BrokenChain):
            checked(path, raw)
    with pytest.raises(BrokenChain):
        checked(path, raw + whole[chosen[-1]])


def test_a_chain_that_was_written_anew_does_not_join_the_rest(tmp_path: Path) -> None:
    whole = lines(4)
    forged, link = seal({"number": 99}, next(iter(links([_file(tmp_path, whole[:1])]))))
    with pytest.raises(BrokenChain, match="line 3: it does not continue"):
        checked(tmp_path / "a.jsonl", whole[0] + forged + b"".join(whole[2:]))
    assert link.line == 2


def _file(folder: Path, whole: list[bytes]) -> Path:
    path = folder / "some.jsonl"
    path.write_bytes(b"".join(whole))
    return path


def test_the_first_line_continues_nothing(tmp_path: Path) -> None:
    line, _ = seal({"number": 0}, Link(0, "1" * 64))
    with pytest.raises(BrokenChain, match="line 1"):
        checked(tmp_path / "a.jsonl", line)


def test_lines_are_json_of_one_line_for_every_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    written(path, range(2))
    text = path.read_text(encoding="utf-8")
    assert [json.loads(line)["number"] for line in text.splitlines()] == [0, 1]
    assert path.stat().st_mode & 0o777 == 0o600


# --- the writer -------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(1, 1500), st.booleans())
def test_starts_and_rotations_continue_one_chain(
    tmp_path_factory: pytest.TempPathFactory, runs: list[int], max_bytes: int, fsync: bool
) -> None:
    path, total = tmp_path_factory.mktemp("audit") / "a[1].jsonl", 0
    for count in runs:
        with writing(path, max_bytes=max_bytes, fsync=fsync) as writer:
            for number in range(total, total + count):
                writer.put(record(number))
        total += count
    found = [*path.parent.iterdir()]
    assert [link.line for link in links(found)] == list(range(1, total + 1))
    assert sorted(numbers_in(found)) == list(range(total))
    assert all(one.stat().st_size <= max(max_bytes, 256 * 300) for one in found)


def test_a_full_file_is_renamed_by_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    written(path, range(1), max_bytes=1)
    with writing(path, max_bytes=1) as writer:
        for number in range(1, 3):
            writer.put(record(number))
            until(lambda line=number + 1: writer.head.line == line)  # type: ignore[misc]
    names = ["a.000000000001.jsonl", "a.000000000002.jsonl", "a.jsonl"]
    assert [one.name for one in files_of(path)] == names
    with pytest.raises(BrokenChain, match=r"a\.jsonl, line 1: it is line 3 of the audit, where 2 follows"):
        list(links([tmp_path / names[0], path]))
    path.unlink()  # as if the server had been killed between renaming and writing
    written(path, range(2, 4))
    with pytest.raises(BrokenChain):
        list(links([*files_of(path)[1:], tmp_path / names[0], _file(tmp_path, lines(1))]))
    assert [link.line for link in links([tmp_path / names[0], tmp_path / names[1], path])] == [1, 2, 3, 4]


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_what_a_kill_left_incomplete_is_removed_at_the_next_start(
    tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.jsonl"
    written(path, range(3))
    os.truncate(path, path.stat().st_size - cut)
    assert torn(path)
    assert numbers_in([path]) == [0, 1]
    written(path, range(0))
    assert not torn(path)
    written(path, range(7, 9))
    assert "incomplete" in caplog.text
    assert numbers_in([path]) == [0, 1, 7, 8]
    assert len(list(links([path]))) == 4
    assert not torn(path)


def test_a_last_line_that_was_changed_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    written(path, range(3))
    path.write_bytes(path.read_bytes().replace(b'"number": 2', b'"number": 5'))
    with pytest.raises(SetupError, match="audit verify"):
        AuditWriter(path, fsync=False, max_bytes=1 << 30)


def test_two_servers_do_not_write_one_file(tmp_path: Path) -> None:
    with writing(tmp_path / "a.jsonl"), pytest.raises(SetupError, match="Another server"):
        AuditWriter(tmp_path / "a.jsonl", fsync=False, max_bytes=1 << 30)


def test_a_folder_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"LLAMA_AUDIT=.*No such file"):
        AuditWriter(tmp_path / "missing" / "a.jsonl", fsync=False, max_bytes=1 << 30)


def test_nothing_is_lost_while_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, real, full = tmp_path / "a.jsonl", os.pwrite, [True]

    def pwrite(descriptor: int, raw: bytes, at: int) -> int:
        if full[0]:
            real(descriptor, raw[:10], at)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, raw, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(audit, "AGAIN_S", 0.01)
    monkeypatch.setattr(audit, "MOST_WAITING", 20)
    with writing(path) as writer:
        writer.put(record(0))
        until(lambda: "No space left" in caplog.text)
        assert path.read_bytes() == b""
        writer.check()
        for number in range(1, 21):
            writer.put(record(number))
        with pytest.raises(Unavailable, match="audit"):
            writer.check()
        full[0] = False
        until(lambda: path.stat().st_size > 0)
    assert numbers_in([path]) == list(range(21))
    assert caplog.text.count("No space left") == 1


class Held:
    """A request, as large as it may be; its record is small."""

    def record(self) -> dict[str, Any]:
        return {"number": 1}


def test_while_the_disk_is_full_lines_are_kept_and_not_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [True]
    real = os.pwrite

    def pwrite(descriptor: int, raw: bytes, at: int) -> int:
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, raw, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(audit, "AGAIN_S", 0.01)
    count = 3 * audit.MOST_TOGETHER
    monkeypatch.setattr(audit, "MOST_WAITING", count)
    with writing(tmp_path / "a.jsonl", max_bytes=20_000) as writer:
        requests = WeakSet[Held]()
        for _ in range(count):
            held = Held()
            requests.add(held)
            writer.put(held.record)
        del held
        until(lambda: not requests)
        with pytest.raises(Unavailable):
            writer.check()
        full[0] = False
        until(lambda: not writer._lines)
        writer.check()
    assert [link.line for link in links(files_of(tmp_path / "a.jsonl"))] == [*range(1, count + 1)]


def test_what_is_lost_at_the_end_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def pwrite(descriptor: int, raw: bytes, at: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(audit, "AGAIN_S", 0.01)
    monkeypatch.setattr(audit, "LAST_S", 0.1)
    with caplog.at_level(logging.INFO), writing(tmp_path / "a.jsonl") as writer:
        writer.put(record(0))
    assert "records are lost" in caplog.text


def test_a_line_longer_than_what_is_read_at_first_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with writing(path) as writer:
        writer.put(record(0))
        writer.put(lambda: {"number": 1, "prompt_ids": ["0" * 64] * 4096})
    written(path, range(2, 3))
    assert [link.line for link in links([path])] == [1, 2, 3]
