"""Rows of a table, as Spark passes them to the MLflow model."""

import asyncio
import json
import shutil
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest

from llama_serving.batch import table
from llama_serving.contract.request import Generations, Parameters, Request
from llama_serving.contract.rows import RowLocation
from llama_serving.hosts import mlflow_pyfunc
from llama_serving.hosts.mlflow_pyfunc import LlamaModel, ServingException
from llama_serving.service.service import Service
from tests.serving.batch.test_batch import GREEDY, KEYS, Echo

NOWHERE = RowLocation(None, None)


@pytest.fixture
def model(service: Service) -> LlamaModel:
    model = LlamaModel()
    model._service = service
    return model


def predict(
    model: LlamaModel, params: dict[str, Any] | None = None, **columns: list[Any]
) -> list[dict[str, Any]]:
    return [json.loads(record) for record in model.predict(None, pd.DataFrame(columns), params)]


def short(text: str, **parameters: Any) -> str:
    return json.dumps({"prompt": text, "id": text, "parameters": {**GREEDY, **parameters}})


def test_a_record_for_each_row_in_order(model: LlamaModel, service: Service) -> None:
    texts = ["def f(x):", "class A:", "import os"]
    found = predict(
        model, row=[short(texts[0]), "{", short(texts[1]).encode(), short(texts[2])],
        file=["a", "a", "b", None], line=[1, 2, 1, float("nan")],
    )  # fmt: skip
    assert all(record.keys() == KEYS for record in found)
    assert [(record["file"], record["line"]) for record in found] == [
        ("a", 1),
        ("a", 2),
        ("b", 1),
        (None, None),
    ]
    assert [record["id"] for record in found] == [texts[0], None, texts[1], texts[2]]
    assert [record["error"] is None for record in found] == [True, False, True, True]
    alone = [predict(model, row=[short(text)])[0]["output"] for text in texts]
    assert [found[n]["output"] for n in (0, 2, 3)] == alone


def test_rows_that_are_none(model: LlamaModel, service: Service) -> None:
    too_long = " " * service.settings.max_body + short("x")
    found = predict(model, row=[None, "", b"\xff\xfe", "\udc80", too_long, "[]", '{"prompt": "a", "top_p": 7}'])
    codes = [record["error"]["code"] for record in found]
    assert codes[:2] == ["missing_field"] * 2
    assert codes[2] == codes[3] == "invalid_json"
    assert codes[4] == "body_too_large"
    assert len(codes) == 7


def test_parameters_for_all_and_a_rows_own(model: LlamaModel) -> None:
    rows = [
        json.dumps({"prompt": "def f(x):"}),
        json.dumps({"prompt": "def f(x):", "parameters": {"max_new_tokens": 3}}),
    ]
    found = predict(model, {"max_new_tokens": 5, "do_sample": False, "stop": None}, row=rows)
    assert [record["usage"]["completion_tokens"] for record in found] == [5, 3]


@pytest.mark.parametrize(
    ("columns", "params", "says"),
    [
        ({"row": ["{}"], "prompt": ["a"]}, None, "not `prompt`"),
        ({"row": [7]}, None, "text or bytes"),
        ({"row": ["{}"]}, {"top_p": 7}, "top_p"),
        ({"row": ["{}"]}, {"tpo_p": 1}, "tpo_p"),
    ],
)
def test_what_is_no_table_of_rows(
    model: LlamaModel, columns: dict[str, list[Any]], params: dict[str, Any] | None, says: str
) -> None:
    with pytest.raises(ServingException, match=says) as refused:
        predict(model, params, **columns)
    assert refused.value.get_http_status_code() == 400


def test_a_server_has_no_such_tables(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, mlflow_pyfunc.SERVER, ModuleType("server"))
    with pytest.raises(ServingException):
        predict(model, row=[short("a")])


def test_in_a_notebook_whose_loop_runs(model: LlamaModel) -> None:
    async def cell() -> list[dict[str, Any]]:
        return predict(model, row=[short("a")])

    assert asyncio.run(cell())[0]["error"] is None


def test_the_limit_is_of_the_row_without_its_line_end() -> None:
    good = json.dumps({"prompt": "x" * 100}).encode()
    limited = Echo()
    limited.settings = SimpleNamespace(**{**vars(Echo.settings), "max_body": len(good)})
    rows = [(NOWHERE, good + end) for end in (b"", b"\n", b"\r\n")] + [(NOWHERE, good + b" ")]
    found = [
        json.loads(record)["error"] for record in table.records(cast("Service", limited), rows, Parameters())
    ]
    assert [error and error["code"] for error in found] == [None, None, None, "body_too_large"]


def test_an_interrupt_ends_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    class Endless(Echo):
        async def agenerate(self, asked: Request, *, deadline: float | None) -> Generations:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            try:
                await asyncio.sleep(3600)
            finally:
                ended.set()
            raise AssertionError

    with pytest.raises(KeyboardInterrupt):
        table.records(cast("Service", Endless()), [(NOWHERE, b'{"prompt": "a"}')], Parameters())
    assert ended.is_set()


class Busy(Echo):
    """It lets other tasks run before it answers."""

    inside = most = 0

    async def agenerate(self, asked: Request, *, deadline: float | None) -> Generations:
        self.inside += 1
        self.most = max(self.most, self.inside)
        await asyncio.sleep(0.01)
        self.inside -= 1
        return await super().agenerate(asked, deadline=deadline)


def test_all_rows_are_there_at_once() -> None:
    busy = Busy()
    rows = [(NOWHERE, json.dumps({"prompt": str(n)}).encode()) for n in range(40)]
    found = table.records(cast("Service", busy), rows, Parameters())
    assert [json.loads(record)["output"] for record in found] == [str(n) for n in range(40)]
    assert busy.most == 2 * busy.settings.max_num_seqs


class TestLoadedOnce:
    """Spark loads the model in each task; an executor must hold it only once."""

    @pytest.fixture(autouse=True)
    def alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mlflow_pyfunc, "_services", {})

    @staticmethod
    def loaded(model: Path) -> Service:
        one = LlamaModel()
        one.load_context(SimpleNamespace(artifacts={"llama": str(model / "artifacts" / "llama")}))
        assert one._service is not None
        return one._service

    def test_the_same_model_is_loaded_once(self, nano_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = self.loaded(nano_model)
        with closing(first):
            assert self.loaded(nano_model) is first
            monkeypatch.setenv("LLAMA_CONTEXT", "100")
            with closing(self.loaded(nano_model)) as other:
                assert other is not first

    def test_threads_that_ask_together_get_one(self, nano_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        started: list[Service] = []
        together = threading.Barrier(4)
        start = Service.start

        def counted(*given: Any) -> Service:
            started.append(start(*given))
            return started[-1]

        def load(_: int) -> Service:
            together.wait(60)
            return self.loaded(nano_model)

        monkeypatch.setattr(Service, "start", counted)
        with ThreadPoolExecutor(4) as threads:
            found = set(threads.map(load, range(4)))
        for one in started:
            one.close()
        assert found == set(started)
        assert len(started) == 1

    def test_one_whose_engine_has_ended_is_loaded_again(self, nano_model: Path) -> None:
        with closing(self.loaded(nano_model)) as first:
            pass
        with closing(self.loaded(nano_model)) as second:
            assert second is not first

    def test_one_that_was_packaged_anew_is_loaded_again(self, nano_model: Path, tmp_path: Path) -> None:
        model = tmp_path / "model"
        shutil.copytree(nano_model, model)
        with closing(self.loaded(model)) as first:
            config = model / "artifacts" / "llama" / "checkpoint" / "config.json"
            config.write_text(config.read_text() + " ")
            with closing(self.loaded(model)) as second:
                assert second is not first
