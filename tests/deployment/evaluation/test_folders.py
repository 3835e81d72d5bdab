"""The folder of an evaluation: what --overwrite replaces and what it leaves, and the data that its samples are scored against."""

import json
from pathlib import Path
from typing import Any

import pytest

from llama_endpoints.evaluation.targets.endpoint_target import EndpointTarget
from llama_serving.errors import SetupError
from tests.support import command

COUNT = 4


def line(number: int, solution: str = "    return x\n") -> dict[str, Any]:
    return {
        "task_id": f"P/{number}",
        "entry_point": "f",
        "prompt": f"def f(x):  # {number}\n",
        "suffix": "",
        "canonical_solution": solution,
        "test": "def check(candidate): ...\n",
    }


def written(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return written(tmp_path / "data.jsonl", [line(n) for n in range(COUNT)])


@pytest.fixture
def records(tmp_path: Path) -> Path:
    answer = {"output": "    return x\n", "finish_reason": "stop", "usage": {}, "error": None}
    return written(tmp_path / "records.jsonl", [{"id": f"P/{n}/0", **answer} for n in range(COUNT)])


def evaluated(data: Path, output: Path, *more: str | Path) -> command.Done:
    return command.run("evaluate", "infilling", "--data", data, "--output", output, *more)


@pytest.fixture
def finished(data: Path, records: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "e"
    done = evaluated(data, folder, "--records", records)
    assert (done.returncode, "exact match: 1.0000" in done.stdout) == (0, True), done.stderr
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_overwrite_continues_the_same_evaluation(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an interrupted command with --overwrite has done is there when it runs again."""
    folder, url = tmp_path / "e", "http://127.0.0.1:9"

    def interrupted(self: EndpointTarget, folder: Any, on_row: object) -> None:
        (folder.path / "records.jsonl.journal").write_text("rows\n")
        raise KeyboardInterrupt

    monkeypatch.setattr(EndpointTarget, "generate", interrupted)
    assert evaluated(data, folder, "--url", url, "--overwrite").returncode == 130
    before = files(folder)

    def asked_again(self: EndpointTarget, folder: Any, on_row: object) -> None:
        assert files(folder.path) == before
        raise SetupError("asked again")

    monkeypatch.setattr(EndpointTarget, "generate", asked_again)
    again = evaluated(data, folder, "--url", url, "--overwrite")
    assert (again.returncode, "asked again" in again.stderr) == (2, True), again.stderr
    assert files(folder) == before


def test_overwrite_replaces_another_evaluation(finished: Path, data: Path) -> None:
    assert evaluated(data, finished, "--requests-only", "--max-new-tokens", "9").returncode == 2
    done = evaluated(data, finished, "--requests-only", "--max-new-tokens", "9", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in finished.iterdir()} == {"evaluation.json", "requests.jsonl"}


@pytest.mark.parametrize("content", ["{", '{"format": 99}'])
def test_overwrite_replaces_an_evaluation_that_cannot_be_read(finished: Path, data: Path, content: str) -> None:
    (finished / "evaluation.json").write_text(content)
    assert evaluated(data, finished, "--requests-only").returncode == 2
    assert evaluated(data, finished, "--requests-only", "--overwrite").returncode == 0
    assert not (finished / "samples.jsonl").exists()


@pytest.mark.parametrize(
    "fault", ["no JSON", "no such file", "route", "records", "few records", "limit", "URL"]
)
def test_overwrite_takes_nothing_away_before_all_is_checked(
    finished: Path, data: Path, records: Path, tmp_path: Path, fault: str
) -> None:
    given: dict[str, tuple[Path, tuple[str | Path, ...]]] = {
        "no JSON": (tmp_path / "bad.jsonl", ("--requests-only",)),
        "no such file": (tmp_path / "none.jsonl", ("--requests-only",)),
        "route": (data, ("--url", "http://127.0.0.1:9", "--protocol", "chat")),
        "records": (data, ("--records", tmp_path / "bad.jsonl")),
        "few records": (data, ("--records", tmp_path / "few.jsonl")),
        "limit": (data, ("--requests-only", "--fail-below", "none=1")),
        "URL": (data, ("--url", "ftp://h")),
    }
    (tmp_path / "bad.jsonl").write_text("{")
    (tmp_path / "few.jsonl").write_text(records.read_text().partition("\n")[0])
    before = files(finished)
    path, more = given[fault]
    assert evaluated(path, finished, *more, "--max-new-tokens", "9", "--overwrite").returncode == 2
    assert files(finished) == before


def test_a_removal_that_was_cut_off_is_repeated(finished: Path, data: Path) -> None:
    (finished / "requests.jsonl").unlink()
    (finished / "samples.jsonl").unlink()
    assert evaluated(data, finished, "--requests-only", "--overwrite").returncode == 0
    assert (finished / "requests.jsonl").read_bytes().count(b"\n") == COUNT


def test_a_folder_of_anything_else_is_not_overwritten(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    refused = evaluated(data, folder, "--requests-only", "--overwrite")
    assert (refused.returncode, "not the folder of an evaluation" in refused.stderr) == (2, True)
    assert files(folder) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("inner", ["", "e"])
def test_an_output_that_is_a_file_is_a_sentence(data: Path, inner: str) -> None:
    before = data.read_bytes()
    for more in ((), ("--overwrite",)):
        refused = evaluated(data, data / inner, "--requests-only", *more)
        assert (refused.returncode, "data.jsonl" in refused.stderr) == (2, True)
    assert data.read_bytes() == before


def test_samples_are_not_scored_against_other_data(finished: Path, data: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(data.read_bytes())
    assert command.run("evaluate", "score", finished, "--data", moved).returncode == 0
    before = files(finished)
    other = written(tmp_path / "other.jsonl", [line(n, "    pass\n") for n in range(COUNT)])
    refused = command.run("evaluate", "score", finished, "--data", other)
    assert (refused.returncode, "not the data" in refused.stderr) == (2, True), refused.stderr
    data.write_bytes(other.read_bytes())
    assert command.run("evaluate", "score", finished).returncode == 2, "the file has changed in its place"
    assert files(finished) == before


@pytest.mark.parametrize("option", ["--lengths", "--depths"])
@pytest.mark.parametrize("given", ["nan", "inf", "-inf", "1e999", "", " , ", "x", "200,nan"])
def test_numbers_that_are_none_are_a_sentence(tmp_path: Path, option: str, given: str) -> None:
    words = ("evaluate", "key-retrieval", "--requests-only", "--output", tmp_path / "e", option, given)
    refused = command.run(*words)
    assert (refused.returncode, option in refused.stderr) == (2, True), refused.stderr
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("option", ["--temperature", "--top-p", "--timeout"])
@pytest.mark.parametrize("given", ["nan", "-nan", "inf", "-inf"])
def test_options_of_a_task_are_finite(data: Path, tmp_path: Path, option: str, given: str) -> None:
    refused = evaluated(data, tmp_path / "e", "--requests-only", option, given)
    assert (refused.returncode, option in refused.stderr) == (2, True), refused.stderr
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("given", ["", " , "])
def test_columns_have_names(data: Path, tmp_path: Path, given: str) -> None:
    words = ("evaluate", "text-generation", "--data", data, "--requests-only", "--output", tmp_path / "e")
    refused = command.run(*words, "--input-column-names", given)
    assert (refused.returncode, "name of a column" in refused.stderr) == (2, True), refused.stderr


@pytest.mark.parametrize("given", ["300.7", "200,300.5", "0.5"])
def test_lengths_are_whole(tmp_path: Path, given: str) -> None:
    words = ("evaluate", "key-retrieval", "--requests-only", "--output", tmp_path / "e", "--lengths", given)
    refused = command.run(*words)
    assert (refused.returncode, "whole numbers" in refused.stderr) == (2, True), refused.stderr
