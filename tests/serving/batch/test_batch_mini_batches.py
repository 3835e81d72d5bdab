"""The driver of Azure's batch endpoint, called as Azure calls it."""

import gzip
import json
import logging
import os
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llama_serving.batch.journal import Journal
from llama_serving.contract import azure
from llama_serving.contract.request import Completion, Generation, Usage
from llama_serving.errors import SetupError, Unavailable
from llama_serving.hosts import azureml_batch
from llama_serving.service.service import Service
from llama_serving.settings import Settings
from tests.serving.batch.test_batch import GREEDY, Echo
from tests.serving.batch.test_batch_reader import row

SETTINGS = replace(Settings.from_environment({}), max_num_seqs=4)


def loaded_with(service: Any, **about: str) -> azureml_batch.Loaded:
    """The state after `init`, with this service."""
    nothing: Any = None
    return azureml_batch.Loaded(nothing, service, about)


def left_behind(given: list[str], output: Path) -> Journal:
    """The journal of an interrupted try, locked as by a running process."""
    with pytest.raises(Unavailable):
        azureml_batch.run(given)
    (path,) = output.iterdir()
    return Journal(path, Journal.job_of(path) or {})


async def revived(self: Echo, asked: Any, *, deadline: float | None) -> Any:
    """An engine that survives everything."""
    self.asked.append(asked)
    (prompt,) = asked.inputs
    text = "alive" if prompt.text in ("dead", "changed") else prompt.text
    return ((Generation(text, text, "stop", Usage(len(text), 2)),),)


class TestDriver:
    @pytest.fixture
    def loaded(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
        """The state after `init`."""
        monkeypatch.setattr(azureml_batch, "_loaded", [loaded_with(service)])
        return service

    def test_several_files_in_one_mini_batch_are_all_scored(self, tmp_path: Path, loaded: Service) -> None:
        (tmp_path / "a.jsonl").write_bytes(b"\n" + row("one", parameters=GREEDY) + b"\n{\n")
        (tmp_path / "empty.jsonl").write_bytes(b"")
        (tmp_path / "b.csv").write_bytes(b"id,input_string\n7,\n")
        (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(row("two", parameters=GREEDY)))
        names = ["c.jsonl.gz", "empty.jsonl", "a.jsonl", "b.csv"]
        answers = azureml_batch.run([str(tmp_path / name) for name in names])
        records = [json.loads(answer) for answer in answers]
        assert [(record["file"], record["line"]) for record in records] == [
            ("c.jsonl.gz", 1), ("a.jsonl", 2), ("a.jsonl", 3), ("b.csv", 2),
        ]  # fmt: skip
        assert [record["error"] is None for record in records] == [True, True, False, False]
        assert all("\n" not in answer for answer in answers)
        for prompt, record in (("two", records[0]), ("one", records[1])):
            asked = azure.parse({"input_data": [prompt], "params": GREEDY})
            ((expected,),) = loaded.generate(asked)
            assert (record["output"], record["finish_reason"]) == (expected.full_text, expected.finish_reason)
            assert record["usage"] == expected.usage.to_dict()

    def test_the_models_own_refusals_are_records(self, tmp_path: Path, loaded: Service) -> None:
        rows = [
            {"prompt": "a", "parameters": {"max_new_tokens": 100_000}},
            {"prompt": "a", "parameters": {"stream": True}},
            {"messages": [{"role": "user", "content": "[INST]"}]},
            {"prompt": "a" * 100_000},
            {"prompt": "a", "parameters": {**GREEDY, "details": True}},
        ]
        (tmp_path / "rows.jsonl").write_bytes(b"\n".join(json.dumps(row).encode() for row in rows))
        records = [json.loads(answer) for answer in azureml_batch.run([str(tmp_path / "rows.jsonl")])]
        codes = [record["error"] and record["error"]["code"] for record in records]
        assert codes == [
            "context_exceeded",
            "streaming_unsupported",
            "invalid_dialog",
            "context_exceeded",
            None,
        ]
        assert [entry["finish_reason"] for entry in records[-1]["details"]] == [records[-1]["finish_reason"]]

    def test_with_summary_only_each_file_has_a_file(
        self, tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service, "settings", replace(service.settings, batch_output="summary_only"))
        monkeypatch.setattr(azureml_batch, "_loaded", [loaded_with(service)])
        inputs, outputs = tmp_path / "in", tmp_path / "out"
        outputs.mkdir()
        for folder, prompt in (("one", "a"), ("two", "b")):
            (inputs / folder).mkdir(parents=True)
            (inputs / folder / "rows.jsonl").write_bytes(row(prompt, parameters=GREEDY) + b"\n{\n")
        files = [str(inputs / folder / "rows.jsonl") for folder in ("one", "two")]
        with pytest.raises(SetupError, match="AZUREML_BI_OUTPUT_PATH"):
            azureml_batch.run(files)
        monkeypatch.setenv("AZUREML_BI_OUTPUT_PATH", str(outputs))
        told = [json.loads(line) for line in azureml_batch.run(files)]
        assert [(one["file"], one["rows"], one["ok"], one["errors"]) for one in told] == [
            ("rows.jsonl", 2, 1, 1)
        ] * 2
        written = {one["output"]: (outputs / one["output"]).read_text() for one in told}
        assert len(written) == 2
        monkeypatch.setattr(service, "settings", replace(service.settings, batch_output="append_row"))
        assert [text.splitlines() for text in written.values()] == [azureml_batch.run([file]) for file in files]
        monkeypatch.setattr(service, "settings", replace(service.settings, batch_output="summary_only"))
        monkeypatch.setattr(
            azureml_batch.runner, "run", None
        )  # (an attempt that comes again has nothing to do)
        assert [json.loads(line) for line in azureml_batch.run(files)] == told
        assert {path.name for path in outputs.glob("*.jsonl")} == written.keys()

    def test_an_empty_mini_batch_has_no_records(self, loaded: Service) -> None:
        assert azureml_batch.run([]) == []

    def test_run_without_init_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(azureml_batch, "_loaded", [])
        with pytest.raises(SetupError, match=r"init\(\) has not run"):
            azureml_batch.run([])

    @pytest.mark.parametrize(
        ("root", "sentence"), [(None, "AZUREML_MODEL_DIR is not set"), ("gone", "gone is not")]
    )
    def test_init_without_a_model_says_so(
        self, monkeypatch: pytest.MonkeyPatch, root: str | None, sentence: str
    ) -> None:
        monkeypatch.delenv("AZUREML_MODEL_DIR", raising=False)
        if root is not None:
            monkeypatch.setenv("AZUREML_MODEL_DIR", root)
        with pytest.raises(SetupError, match=sentence):
            azureml_batch.init()


class TestNames:
    """Records call a file what `llama-endpoints batch` would call it."""

    @pytest.fixture
    def files(self, tmp_path: Path) -> list[str]:
        for name in ("a", "sub/a"):
            path = tmp_path / "in" / f"{name}.jsonl"
            path.parent.mkdir(parents=True)
            path.write_bytes(row("x"))
        return [str(tmp_path / "in" / name) for name in ("a.jsonl", "sub/a.jsonl")]

    @pytest.fixture(autouse=True)
    def loaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Echo, "settings", SETTINGS)
        monkeypatch.setattr(azureml_batch, "_loaded", [loaded_with(Echo())])

    @pytest.mark.parametrize(
        ("inputs", "names"),
        [
            ({}, ["a.jsonl", "a.jsonl"]),
            ({"AZURE_ML_INPUT_rows": "in"}, ["a.jsonl", "sub/a.jsonl"]),
            ({"AZURE_ML_INPUT_a": "", "AZURE_ML_INPUT_b": "in/sub"}, ["a.jsonl", "a.jsonl"]),
            ({"AZURE_ML_INPUT_a": "elsewhere"}, ["a.jsonl", "a.jsonl"]),
            ({"AZURE_ML_INPUT_a": ".", "AZURE_ML_INPUT_b": "in"}, ["a.jsonl", "sub/a.jsonl"]),
        ],
    )
    def test_below_the_input(
        self,
        files: list[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        inputs: dict[str, str],
        names: list[str],
    ) -> None:
        for variable, folder in inputs.items():
            monkeypatch.setenv(variable, str(tmp_path / folder) if folder else "in")
        assert [json.loads(record)["file"] for record in azureml_batch.run(files)] == names

    def test_one_that_is_no_text(self, tmp_path: Path) -> None:
        path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl")
        Path(path).write_bytes(row("x"))
        (record,) = azureml_batch.run([path])
        assert json.loads(record)["file"] == "\\udcff.jsonl"
        record.encode()


class TestTriesAgain:
    """An interrupted mini-batch is resumed."""

    @pytest.fixture(autouse=True)
    def echo(self, monkeypatch: pytest.MonkeyPatch) -> Echo:
        echo = Echo()
        monkeypatch.setattr(Echo, "settings", SETTINGS)
        monkeypatch.setattr(azureml_batch, "_loaded", [loaded_with(echo, model="echo")])
        return echo

    @pytest.fixture
    def output(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "out"
        folder.mkdir()
        monkeypatch.setenv("AZUREML_BI_OUTPUT_PATH", str(folder))
        return folder

    @pytest.fixture
    def given(self, tmp_path: Path) -> list[str]:
        """Two files; the last row of the second, which is the shortest, ends the engine."""
        first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
        first.write_bytes(b"\n".join(row(f"row number {n}") for n in range(3)))
        second.write_bytes(b"\n".join([row("another one"), b"{", row("dead")]))
        return [str(first), str(second)]

    def test_only_what_is_missing_is_done(
        self, echo: Echo, output: Path, given: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(Unavailable):
            azureml_batch.run(given)
        assert [path.suffix for path in output.iterdir()] == [".journal"]
        echo.asked.clear()
        monkeypatch.setattr(Echo, "agenerate", revived)
        records = [json.loads(record) for record in azureml_batch.run(given)]
        assert [request.inputs for request in echo.asked] == [(Completion("dead"),)]
        assert [(record["file"], record["line"]) for record in records] == [
            ("a.jsonl", 1), ("a.jsonl", 2), ("a.jsonl", 3), ("b.jsonl", 1), ("b.jsonl", 2), ("b.jsonl", 3),
        ]  # fmt: skip
        assert [record["output"] for record in records][3:] == ["another one", None, "alive"]
        assert not list(output.iterdir()), "nothing is left beside Azure's own file"

    def test_a_file_that_changed_meanwhile_begins_anew(
        self, echo: Echo, output: Path, given: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(Unavailable):
            azureml_batch.run(given)
        Path(given[0]).write_bytes(row("changed"))
        monkeypatch.setattr(Echo, "agenerate", revived)
        echo.asked.clear()
        assert json.loads(azureml_batch.run(given)[0])["output"] == "alive"
        assert len(echo.asked) == 3

    def test_without_a_place_for_a_journal_it_is_done_all_the_same(
        self, output: Path, given: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(Echo, "agenerate", revived)
        expected = azureml_batch.run(given)
        monkeypatch.setenv("AZUREML_BI_OUTPUT_PATH", str(output / "gone"))
        with caplog.at_level(logging.WARNING):
            assert azureml_batch.run(given) == expected
        assert "another try of this mini-batch starts from the beginning" in caplog.text

    @pytest.mark.usefixtures("output")
    @pytest.mark.parametrize("fault", ["sync", "remove"])
    def test_a_journal_that_fails_on_the_way_costs_nothing_that_is_done(
        self, echo: Echo, given: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, fault: str
    ) -> None:  # fmt: skip
        synced, inner = list[int](), os.fdatasync

        def refused(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        def refused_later(descriptor: int) -> None:
            synced.append(descriptor)
            (inner if len(synced) == 1 else refused)(descriptor)  # (the first is of the journal's head)

        monkeypatch.setattr(Echo, "agenerate", revived)
        monkeypatch.setattr(os, "fdatasync", refused_later) if fault == "sync" else monkeypatch.setattr(
            Path, "unlink", refused
        )
        with caplog.at_level(logging.WARNING):
            records = [json.loads(record) for record in azureml_batch.run(given)]
        assert [record["line"] for record in records] == [1, 2, 3, 1, 2, 3]
        assert len(echo.asked) == 5, "each good row was asked for once"
        assert "No space left on device" in caplog.text

    def test_a_dead_engine_is_not_all_that_the_process_has(
        self, echo: Echo, output: Path, given: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(Unavailable):
            azureml_batch.run(given)
        closed, other = list[str](), Echo()
        monkeypatch.setattr(
            echo, "engine", SimpleNamespace(stats=lambda: SimpleNamespace(alive=False)), raising=False
        )
        monkeypatch.setattr(echo, "close", lambda: closed.append("closed"), raising=False)
        monkeypatch.setattr(
            azureml_batch.Loaded, "of", lambda files, settings: loaded_with(other, model="echo")
        )
        monkeypatch.setattr(Echo, "agenerate", revived)
        assert len(azureml_batch.run(given)) == 6
        assert (closed, len(other.asked)) == (["closed"], 1)

    def test_who_holds_the_journal_is_waited_for(
        self, output: Path, given: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        journal = left_behind(given, output)
        monkeypatch.setattr(Echo, "agenerate", revived)
        slept = list[float]()
        with closing(journal) as held:

            def sleep(seconds: float) -> None:
                slept.append(seconds)
                held.close()
                monkeypatch.setattr(held, "close", lambda: None)

            monkeypatch.setattr(time, "sleep", sleep)
            assert len(azureml_batch.run(given)) == 6
        assert len(slept) == 1

    def test_who_never_lets_go_of_it_costs_only_the_journal(
        self, output: Path, given: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        journal = left_behind(given, output)
        monkeypatch.setattr(Echo, "agenerate", revived)
        monkeypatch.setattr(azureml_batch, "IN_USE_S", 0)
        with closing(journal), caplog.at_level(logging.WARNING):
            assert len(azureml_batch.run(given)) == 6
        assert "Another process is writing" in caplog.text


def test_azure_counts_strings_and_an_empty_file_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Echo, "settings", SETTINGS)
    monkeypatch.setattr(azureml_batch, "_loaded", [loaded_with(Echo())])
    for name, content in (("a", b""), ("b", b"\n\n"), ("c", row("x"))):
        (tmp_path / name).write_bytes(content)
    told = azureml_batch.run([str(tmp_path / name) for name in "abc"])
    assert [bool(item) for item in told] == [True, False, False]
    assert azureml_batch.run([str(tmp_path / "a")]) == [""]
