"""Collection in every carrier: one record a request, whatever the protocol; users and operators are told."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flask
import pytest

from llama_serving.contract.openai import PREFIXES
from llama_serving.errors import SetupError
from llama_serving.hosts import azureml_batch, azureml_online, mlflow_pyfunc
from llama_serving.server.protocols import PROTOCOLS
from llama_serving.service.collection.caller import is_sampled
from llama_serving.service.collection.collector import Collector
from llama_serving.service.collection.configuration import notice
from llama_serving.service.service import Service
from llama_serving.settings import Settings
from tests.conftest import Answer, post
from tests.support.calls import get, metric, opened, until
from tests.support.collector import collecting
from tests.support.in_process import LocalServer, load_nano, logged, serving
from tests.support.sidecars import deployed, sidecar

KEY = "key-of-the-zoo"
PROMPT = "def quokka(x):\n    # ask ada@example.org or key-of-the-zoo\n"
CLEAN = "def quokka(x):\n    # ask [REDACTED:email] or [REDACTED:own-key]\n"
OPTIONS = {"temperature": 0, "max_tokens": 4}
OLLAMA = {"model": "nano", "options": {"temperature": 0, "num_predict": 4}}
CHAT = {"messages": [{"role": "user", "content": PROMPT}]}
BODIES: dict[str, dict[str, Any]] = {
    "/score": {"input_data": {"input_string": [PROMPT]}},
    "/invocations": {"inputs": {"input_string": [PROMPT]}},
    **{f"{prefix}/completions": {"prompt": PROMPT, **OPTIONS} for prefix in PREFIXES},
    **{f"{prefix}/chat/completions": {**CHAT, **OPTIONS} for prefix in PREFIXES},
    "/api/generate": {**OLLAMA, "prompt": PROMPT},
    "/api/chat": {**OLLAMA, **CHAT},
    "/completion": {"prompt": PROMPT, "temperature": 0, "n_predict": 4},
    "/infill": {"input_prefix": PROMPT, "input_suffix": "", "temperature": 0, "n_predict": 4},
}


def lines(path: Path) -> dict[str, dict[str, Any]]:
    """The records of a file by the request's id."""
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({one["correlationid"] for one in found}) == len(found)
    assert len({one["request_id"] for one in found}) == len(found)
    return {one["request_id"]: one for one in found}


def ask(server: LocalServer, path: str, body: dict[str, Any], request_id: str) -> Answer:
    return post(f"{server.url}{path}", body, Authorization=f"Bearer {KEY}", x_request_id=request_id)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("collected") / "collected.jsonl"


@pytest.fixture(scope="module")
def log() -> Iterator[list[logging.LogRecord]]:
    with logged() as records:
        yield records


@pytest.fixture(scope="module")
def server(file: Path, log: list[logging.LogRecord]) -> Iterator[LocalServer]:
    env = {"LLAMA_COLLECT": "jsonl", "LLAMA_COLLECT_FILE": str(file), "LLAMA_API_KEYS": KEY}
    with serving(env) as started:
        yield started


def collected(server: LocalServer) -> float:
    return metric_of(server, "llama_collected_total")


def metric_of(server: LocalServer, name: str) -> float:
    text = get(f"{server.url}/metrics", api_key=KEY).text
    return next(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"{name} "))


def test_each_protocol_is_tried() -> None:
    assert set(BODIES) == set(PROTOCOLS)


def body_of(path: str, *, stream: bool) -> dict[str, Any]:
    if path not in ("/score", "/invocations"):
        return {**BODIES[path], "stream": stream}
    parameters = {"temperature": 0, "max_new_tokens": 4, "stream": stream}
    ((name, given),) = BODIES[path].items()
    return {name: {**given, "parameters": parameters}}


@pytest.mark.parametrize("path", sorted(PROTOCOLS))
def test_every_protocol_is_one_record_whole_and_streamed(server: LocalServer, file: Path, path: str) -> None:
    before, made = collected(server), {}
    for stream in (False, True):
        request_id = f"one{path.replace('/', '.')}-{stream}"
        answer = ask(server, path, body_of(path, stream=stream), request_id)
        assert answer.status == 200, answer.text
        until(lambda stream=stream: collected(server) == before + 1 + stream)  # type: ignore[misc]
        one = lines(file)[request_id]
        (given,), (made[stream],) = one["model_inputs"], one["model_outputs"]
        assert given["prompt"].startswith(CLEAN)
        assert given["parameters"]["stream"] is stream
        assert (made[stream]["end"], made[stream]["model"]) == ("complete", "nano")
        assert made[stream]["completion_tokens"] == 4
        if not stream:
            assert json.dumps(made[stream]["completion"])[1:-1] in answer.text
        assert made[stream].pop("request_id") == request_id
    assert made[False] == made[True]


def test_a_client_that_goes_in_the_middle_is_one_record(server: LocalServer, file: Path) -> None:
    before = collected(server)
    body = {"prompt": "x = ", "max_tokens": 2000, "stream": True, "ignore_eos": True}
    with serving({"LLAMA_COLLECT": "jsonl", "LLAMA_COLLECT_FILE": str(file)}) as open_to_all:
        connection = opened(open_to_all.url, body)
        assert b"data: " in connection.recv(65536) + connection.recv(65536)
        connection.close()
        until(lambda: metric(open_to_all.url, "llama_collected_total") == 1)
    ends = [one["model_outputs"][0]["end"] for one in lines(file).values()]
    assert ends.count("client_gone") == 1
    assert collected(server) == before


def test_refused_requests_are_not_collected(server: LocalServer, file: Path) -> None:
    before = len(lines(file))
    assert ask(server, "/v1/completions", {"prompt": "x", "top_p": 7}, "bad").status == 400
    assert ask(server, "/v1/completions", {"prompt": "x", "max_tokens": 10**9, "n": 99}, "worse").status == 400
    assert "bad" not in lines(file)
    assert len(lines(file)) == before


def test_the_start_says_it(server: LocalServer, file: Path, log: list[logging.LogRecord]) -> None:
    said = [one.getMessage() for one in log if "are collected" in one.getMessage()]
    assert (
        f"prompts and answers of 100 % of the requests are collected, redacted, to {file} (LLAMA_COLLECT=jsonl)"
        in said
    )
    assert not [one for one in log if "quokka" in one.getMessage()]


def test_users_are_told_on_the_page_and_with_the_model(server: LocalServer) -> None:
    told = notice(Settings(collect="jsonl"))
    assert told in get(f"{server.url}/", Accept="text/html").text
    model = get(f"{server.url}/v1/models", api_key=KEY).json["data"][0]
    assert model["notice"] == told
    assert "notice" in get(f"{server.url}/openapi.json", api_key=KEY).text


def test_without_the_setting_nothing_is_said_or_kept(log: list[logging.LogRecord]) -> None:
    before = len(log)
    with serving() as plain:
        assert post(f"{plain.url}/v1/completions", {"prompt": "x", **OPTIONS}).status == 200
        assert 'class="notice"' not in get(f"{plain.url}/", Accept="text/html").text
        assert "notice" not in get(f"{plain.url}/v1/models").json["data"][0]
        assert metric(plain.url, "llama_collected_total") == 0
        assert plain.assembly.lifecycle.loaded is not None
        assert plain.assembly.lifecycle.loaded.collector is None
    assert not [one for one in log[before:] if "collect" in one.getMessage()]


@pytest.mark.parametrize("header", ["Authorization", "api-key"])
def test_a_word_in_the_place_of_a_key_stays_where_no_key_is_needed(tmp_path: Path, header: str) -> None:
    file = tmp_path / "open.jsonl"
    with serving({"LLAMA_COLLECT": "jsonl", "LLAMA_COLLECT_FILE": str(file)}) as open_to_all:
        word = {header: "Bearer not-needed" if header == "Authorization" else "not-needed"}
        body = {"prompt": "a key is not-needed", **OPTIONS}
        url = f"{open_to_all.url}/v1/completions"
        assert post(url, body, **word, x_request_id="not-needed:1").status == 200
        until(lambda: metric(open_to_all.url, "llama_collected_total") == 1)
    (row,) = lines(file)["not-needed:1"]["model_inputs"]
    assert row["prompt"] == "a key is not-needed"


def test_the_notice_tells_the_share_that_the_destination_allows(mdc: Any) -> None:
    mdc(1, percent=25)
    with serving({"LLAMA_COLLECT": "azureml", "LLAMA_COLLECT_RATE": "0.5"}) as started:
        told = get(f"{started.url}/v1/models").json["data"][0]["notice"]
        assert "25 % of the requests" in told
        assert told in get(f"{started.url}/", Accept="text/html").text


def test_a_collector_is_closed_if_the_model_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nano_model: Path
) -> None:
    """In each host; otherwise its thread and its file would stay for the life of the process."""

    def load(*_: object) -> Service:
        raise SetupError("no model")

    closed: list[bool] = []
    close = Collector.close
    monkeypatch.setattr(Collector, "close", lambda one: (closed.append(True), close(one)))
    monkeypatch.setattr(Service, "start", load)
    monkeypatch.setenv("LLAMA_COLLECT", "jsonl")
    monkeypatch.setenv("LLAMA_COLLECT_FILE", str(tmp_path / "c.jsonl"))
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(nano_model))
    with pytest.raises(SetupError, match="no model"):
        azureml_online._Process().start()
    artifacts = {mlflow_pyfunc.ARTIFACT: str(nano_model / "artifacts" / mlflow_pyfunc.ARTIFACT)}
    with pytest.raises(SetupError, match="no model"):
        mlflow_pyfunc.LlamaModel().load_context(SimpleNamespace(artifacts=artifacts))
    env = {"LLAMA_COLLECT": "jsonl", "LLAMA_COLLECT_FILE": str(tmp_path / "c.jsonl")}
    with serving(env, load=load, wait=False) as started:
        assert isinstance(started.exit_code.exception(timeout=60), SetupError)
    assert closed == [True] * 3


def test_half_of_the_requests_are_those_of_the_hash(tmp_path: Path) -> None:
    file, ids = tmp_path / "half.jsonl", [f"id-{number}" for number in range(24)]
    env = {"LLAMA_COLLECT": "jsonl", "LLAMA_COLLECT_FILE": str(file), "LLAMA_COLLECT_RATE": "0.5"}
    with serving(env) as half:
        for request_id in ids:
            body = {"prompt": "x", "max_tokens": 1}
            assert post(f"{half.url}/v1/completions", body, x_request_id=request_id).status == 200
        assert "50 % of the requests" in get(f"{half.url}/", Accept="text/html").text
    assert list(lines(file)) == [one for one in ids if is_sampled(one, 0.5)]


# --- the sidecar, and a sidecar that is out of order ---------------------------------------------------


@pytest.fixture
def mdc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def point_to(port: int, **more: Any) -> None:
        for name, value in deployed(tmp_path, port, **more).items():
            monkeypatch.setenv(name, value)

    return point_to


@pytest.mark.parametrize("state", ["well", "500", "hangs", "away"])
def test_a_data_collector_that_is_out_of_order_costs_a_line_and_no_request(
    state: str, mdc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama_serving.service.collection import collector

    monkeypatch.setattr(collector, "LAST_S", 0.1)
    monkeypatch.setattr(collector, "MOST_WAITING", 3)
    ids = [f"{state}-{number}" for number in range(6)]
    with sidecar(500 if state == "500" else 200, hangs=state == "hangs") as here, logged() as log:
        mdc(1 if state == "away" else here.port)
        with serving({"LLAMA_COLLECT": "azureml"}) as started:
            answers = [
                post(f"{started.url}/v1/completions", {"prompt": f"x{n}", **OPTIONS}, x_request_id=one).status
                for n, one in enumerate(ids)
            ]
            counts = started.assembly.lifecycle.loaded.collector.counts  # type: ignore[union-attr]
            if state != "hangs":
                until(lambda: counts().collected + sum(counts().dropped.values()) == len(ids))
        assert answers == [200] * len(ids)
        assert counts().collected == (len(ids) if state == "well" else 0)
        assert counts().collected + sum(counts().dropped.values()) == len(ids)
        if state == "well":
            outputs = here.rows("model_outputs")
            assert list(here.rows("model_inputs")) == list(outputs)
            assert [rows[0]["request_id"] for rows in outputs.values()] == ids
    said = [one.getMessage() for one in log if one.levelno >= logging.WARNING]
    assert len([one for one in said if one.startswith("collection:")]) == {"well": 0, "hangs": 2}.get(state, 1)


def test_events_have_the_texts_and_spans_of_the_same_collector_do_not() -> None:
    with collecting() as here:
        env = {"LLAMA_COLLECT": "otlp", "LLAMA_TRACES": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": here.url}
        with serving(env) as started:
            assert post(f"{started.url}/v1/completions", {"prompt": PROMPT, **OPTIONS}).status == 200
            until(lambda: metric(started.url, "llama_collected_total") == 1)
    bodies = {path: body.decode("utf-8", "replace") for path, body in here.got}
    assert bodies.keys() == {"/v1/logs", "/v1/traces"}
    assert "quokka" in bodies["/v1/logs"]
    assert "ada@example.org" not in bodies["/v1/logs"]
    assert "quokka" not in bodies["/v1/traces"]


# --- the other hosts -----------------------------------------------------------------------------------


def test_azmlinfsrv_s_score_is_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nano_model: Path
) -> None:
    file = tmp_path / "online.jsonl"
    for name, value in {"COLLECT": "jsonl", "COLLECT_FILE": str(file)}.items():
        monkeypatch.setenv(f"LLAMA_{name}", value)
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(nano_model))
    monkeypatch.setattr(azureml_online, "_process", azureml_online._Process())
    headers = {"Authorization": f"Bearer {KEY}"}
    with flask.Flask("x").test_request_context("/score", method="POST", json=BODIES["/score"], headers=headers):
        flask.g.request_id = "online-1"
        assert azureml_online.run(flask.request).status_code == 200
    azureml_online._process.start().close()
    (row,) = lines(file)["online-1"]["model_inputs"]
    assert row["prompt"] == CLEAN


def test_mlflow_s_model_is_collected_whole_and_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nano_model: Path
) -> None:
    file = tmp_path / "mlflow.jsonl"
    for name, value in {"COLLECT": "jsonl", "COLLECT_FILE": str(file)}.items():
        monkeypatch.setenv(f"LLAMA_{name}", value)
    model = mlflow_pyfunc.LlamaModel()
    artifacts = {mlflow_pyfunc.ARTIFACT: str(nano_model / "artifacts" / mlflow_pyfunc.ARTIFACT)}
    model.load_context(SimpleNamespace(artifacts=artifacts))
    body = {"prompt": PROMPT, **OPTIONS}
    whole = model.predict(None, body)
    list(model.predict_stream(None, {**body, "stream": True}))
    model._loaded().close()
    first, second = lines(file).values()
    for one in (first, second):
        assert one["model_inputs"][0]["prompt"] == CLEAN.replace("[REDACTED:own-key]", KEY)
        assert one["model_outputs"][0]["completion"] == whole["choices"][0]["text"]


def test_a_batch_warns_that_it_collects_nothing(
    monkeypatch: pytest.MonkeyPatch, nano_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(nano_model))
    monkeypatch.setenv("LLAMA_COLLECT", "jsonl")
    monkeypatch.setattr(Service, "start", lambda files, settings: None)
    monkeypatch.setattr(azureml_batch, "_loaded", [])
    azureml_batch.init()
    assert "LLAMA_COLLECT has no effect here: a batch job's records are its output" in caplog.text


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"LLAMA_COLLECT": "jsonl"}, "needs LLAMA_COLLECT_FILE"),
        ({"LLAMA_COLLECT": "jsonl", "LLAMA_COLLECT_FILE": "/nowhere/x.jsonl"}, "can't be written"),
        ({"LLAMA_COLLECT": "jsonl", "LLAMA_COLLECT_FILE": "/dev/null"}, "is no file"),
        ({"LLAMA_COLLECT": "azureml"}, "needs the collections model_inputs and model_outputs"),
        ({"LLAMA_COLLECT": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf"),
    ],
)
def test_what_cannot_be_used_stops_the_start_with_one_sentence(env: dict[str, str], says: str) -> None:
    loaded: list[Settings] = []

    def load(settings: Settings) -> Service:
        loaded.append(settings)
        return load_nano(settings)

    with serving(env, load=load, wait=False) as started:
        error = started.exit_code.exception(timeout=60)
    assert says in str(error)
    assert not loaded
