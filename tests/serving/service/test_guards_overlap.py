"""The overlap index: planted copies are found with their sources, and nothing else is."""

import gzip
import json
import random
import sysconfig
import tempfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.cli.main import main
from llama_serving.errors import SetupError
from llama_serving.service.guards import configuration
from llama_serving.service.guards.guard import Passage, Stage
from llama_serving.service.guards.overlap.build import build
from llama_serving.service.guards.overlap.index import OverlapIndex
from llama_serving.service.guards.overlap.lines import GRAM, WINNOW
from llama_serving.service.guards.overlap.overlap_guard import OverlapGuard
from tests.conftest import SHARED

STDLIB = Path(sysconfig.get_paths()["stdlib"])
HUMAN_EVAL = SHARED / "HumanEval.jsonl.gz"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the standard library, in folders with licences of their own."""
    root = tmp_path_factory.mktemp("corpus")
    for number, name in enumerate(("json", "email", "asyncio", "logging", "unittest")):
        folder = root / name
        folder.mkdir()
        for source in sorted((STDLIB / name).glob("*.py")):
            (folder / source.name).write_bytes(source.read_bytes())
        if number == 0:
            (folder / "LICENSE").write_text(
                "Permission is hereby granted, free of charge, to any person obtaining a copy of it"
            )
        if number == 1:
            (folder / "COPYING.txt").write_text("All rights reserved.")
    own = root / "asyncio" / "events.py"
    own.write_text("# SPDX-License-Identifier: GPL-3.0-or-later\n" + own.read_text())
    (root / "blob.bin").write_bytes(b"\x00\x01")
    (root / "loop").symlink_to(root)
    return root


@pytest.fixture(scope="module")
def index(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> OverlapIndex:
    path = tmp_path_factory.mktemp("index") / "corpus.idx"
    built = build(corpus, path)
    assert (built.left_out, built.files > 50) == (1, True)
    return OverlapIndex.open(path)


def solid(lines: list[str]) -> list[str]:
    return [line for line in lines if line.strip()]


def test_planted_copies_are_found_with_their_places(corpus: Path, index: OverlapIndex) -> None:
    """From any file and line, indented otherwise, with other blank lines, in the middle of other code."""
    draw = random.Random(1)
    files = [path for path in sorted(corpus.rglob("*.py")) if len(path.read_text().splitlines()) > 60]
    for _ in range(200):
        path = draw.choice(files)
        lines = path.read_text().splitlines()
        first = draw.randrange(len(lines) - 45)
        taken = lines[first : first + 40]
        while len(solid(taken)) > 20:
            taken.pop()
        planted = [f"    {line.replace('    ', '  ')}" for line in solid(taken)]
        text = [f"mine_{n} = {draw.random()}" for n in range(9)] + planted + ["", "print(mine_0)"]
        copies = index.copies(text, 20)
        assert copies, path
        assert (copies[0].first, copies[0].count) == (10, 20) or copies[0].count > 20
        source = (corpus / copies[0].file).read_text().splitlines()
        there = solid(source[copies[0].source_first - 1 : copies[0].source_last])
        assert ["".join(one.split()) for one in there][:20] == ["".join(one.split()) for one in planted]


@given(st.integers(0, 10_000), st.integers(0, 3), st.integers(GRAM + WINNOW - 1, 40))
def test_every_run_that_is_long_enough_is_found_whole(seed: int, cut: int, length: int) -> None:
    """The border of what winnowing promises, for random lines."""
    draw = random.Random(seed)
    files = [[f"{draw.getrandbits(20)}" for _ in range(draw.randint(1, 60))] for _ in range(3)]
    files[1] = [f"{draw.getrandbits(40)}" for _ in range(length + 2 * cut)]
    index = _of(files)
    copies = index.copies(["a", *files[1][cut : cut + length], "b"], GRAM + WINNOW - 1)
    assert [(copy.first, copy.count, copy.file, copy.source_first) for copy in copies] == [
        (2, length, "1", cut + 1)
    ]


def _of(files: list[list[str]]) -> OverlapIndex:
    """Return the index of files that are gone."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "corpus"
        root.mkdir()
        for number, lines in enumerate(files):
            (root / str(number)).write_text("\n".join(lines))
        build(root, Path(folder) / "index")
        return OverlapIndex.open(Path(folder) / "index")


def test_a_run_does_not_go_on_into_the_next_file() -> None:
    lines = [str(n) for n in range(40)]
    index = _of([lines[:20], lines[20:]])
    assert [(copy.first, copy.last, copy.file) for copy in index.copies(lines, 9)] == [
        (1, 20, "0"),
        (21, 40, "1"),
    ]


def test_the_least_that_may_be_asked_for_is_what_winnowing_promises() -> None:
    rule = configuration._schema()["$defs"]["overlap"]["properties"]["min_lines"]
    assert rule["minimum"] == GRAM + WINNOW - 1


def test_shorter_runs_are_none(corpus: Path, index: OverlapIndex) -> None:
    lines = solid((corpus / "json" / "decoder.py").read_text().splitlines())[30:49]
    assert index.copies(lines, 20) == []
    assert len(index.copies(lines, 19)) == 1


def test_licences(corpus: Path, index: OverlapIndex) -> None:
    def licence(name: str) -> str:
        return index.copies((corpus / name).read_text().splitlines(), 20)[0].licence

    assert licence("json/decoder.py") == "MIT"
    assert licence("email/message.py") == "see email/COPYING.txt"
    assert licence("asyncio/events.py") == "GPL-3.0-or-later"
    assert licence("logging/config.py") == "unknown"


@pytest.mark.skipif(not HUMAN_EVAL.is_file(), reason="HumanEval is not here")
def test_no_solution_of_human_eval_is_a_copy(index: OverlapIndex) -> None:
    tasks = [json.loads(line) for line in gzip.decompress(HUMAN_EVAL.read_bytes()).splitlines()]
    texts = [task["prompt"] + task["canonical_solution"] for task in tasks]
    assert len(texts) == 164
    assert [text for text in texts if index.copies(text.splitlines(), GRAM + WINNOW - 1)] == []


def test_a_line_takes_less_than_a_millisecond(corpus: Path, index: OverlapIndex) -> None:
    """The slowest text: all of it is a copy. (The bound is wide: it takes some microseconds.)"""
    lines = (corpus / "email" / "_header_value_parser.py").read_text().splitlines()
    begun = time.process_time()
    index.copies(lines, 20)
    assert time.process_time() - begun < 0.001 * len(lines)


# --- the guard ------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 7, 100, 10_000])
def test_a_stream_is_blocked_where_the_copy_is_long_enough(
    corpus: Path, index: OverlapIndex, step: int
) -> None:
    guard = OverlapGuard("overlap", index, min_lines=20)
    copied = (corpus / "json" / "decoder.py").read_text().splitlines(keepends=True)[60:120]
    text = "x = 1\n" * 30 + "".join(copied)
    start = 0
    for end in (*range(step, len(text), step), len(text)):
        found = guard.check(Passage(Stage.TEXT, text[:end], start, final=end == len(text)))
        lines = solid(text[:end].splitlines()[30:])
        if found:
            break
        assert len(lines) <= 20 or not text[:end].endswith("\n")
        start = end
    (copy, *_) = found[0].detail["copies"]
    assert copy["lines"][0] == 31
    assert copy["source"]["file"] == "json/decoder.py"
    assert copy["source"]["licence"] == "MIT"


def test_an_annotation_comes_once_with_all_copies(corpus: Path, index: OverlapIndex) -> None:
    guard = OverlapGuard("overlap", index, min_lines=20, filtered=False)
    parts = [(corpus / name).read_text() for name in ("json/decoder.py", "logging/config.py")]
    text = "mine = 1\n".join(parts)
    assert guard.check(Passage(Stage.TEXT, text, final=False)) == []
    (finding,) = guard.check(Passage(Stage.TEXT, text, start=len(text)))
    assert not finding.filtered
    assert {one["source"]["file"] for one in finding.detail["copies"]} == {
        "json/decoder.py",
        "logging/config.py",
    }


# --- the file and the command ---------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "flipped", "renamed", "another version", "empty", "no index"])
def test_a_damaged_index_is_one_sentence(tmp_path: Path, damage: str) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.py").write_text("\n".join(map(str, range(50))))
    path = tmp_path / "i.idx"
    build(tmp_path / "corpus", path)
    raw = path.read_bytes()
    path.write_bytes(
        {
            "cut": raw[:-5],
            "flipped": raw[:-1] + bytes([raw[-1] ^ 1]),
            "renamed": raw.replace(b"a.py", b"b.py"),
            "another version": b"LLOVLP99" + raw[8:],
            "empty": b"",
            "no index": b"import os\n" * 100,
        }[damage]
    )
    with pytest.raises(SetupError) as refused:
        OverlapIndex.open(path)
    assert "i.idx" in str(refused.value)


def test_the_commands(corpus: Path, tmp_path: Path) -> None:
    def run(*words: str, text: str | None = None) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["guard", *words], input=text)
        return result.exit_code, result.output

    index, guards = tmp_path / "c.idx", tmp_path / "guards.yml"
    code, said = run("index", str(corpus), "--output", str(index))
    assert (code, "1 left out" in said) == (0, True)
    guards.write_text("guards: [{type: overlap, index: c.idx}]\n")
    code, said = run("check", str(guards), str(corpus / "json" / "decoder.py"))
    assert (code, '"licence": "MIT"' in said) == (1, True)
    assert run("check", str(guards), "-", text="x = 1\n") == (0, '{"content_filter_results": {}}\n')
    assert run("index", str(tmp_path / "nowhere"), "--output", str(index))[0] == 2
    (tmp_path / "empty").mkdir()
    code, said = run("index", str(tmp_path / "empty"), "--output", str(index))
    assert (code, "no text files" in said) == (2, True)
    assert run("index", str(corpus), "--output", str(tmp_path / "absent" / "c.idx"))[0] == 2
