"""Where collected requests go: a file, Azure's sidecar by the real library, and OpenTelemetry events by a real exporter."""

import errno
import fcntl
import json
import os
import re
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from llama_serving.errors import SetupError
from llama_serving.service.collection import configuration
from llama_serving.service.collection.record import CollectedInput, CollectedRequest, CollectedText, Turn
from llama_serving.service.collection.sinks import azureml, jsonl
from llama_serving.service.collection.sinks.azureml import DataCollector
from llama_serving.service.collection.sinks.jsonl import JsonLines
from llama_serving.service.collection.sinks.otlp import OtlpEvents, events
from llama_serving.service.collection.sinks.sink import SinkError
from llama_serving.settings import Settings
from tests.support.collector import attributes, collecting
from tests.support.sidecars import deployed, sidecar

WORDS = ("zebra", "quokka")


def request(
    request_id: str = "r-1", prompt: str = "zebra é ☺ 🦙\u2028", sequences: int = 1
) -> CollectedRequest:
    given_ = CollectedInput(prompt, (Turn("system", "Be short."), Turn("user", "Hi")), "user")
    made = tuple(CollectedText(f"quokka {number}", "stop", 3, 4) for number in range(sequences))
    parameters = {"temperature": 0.5, "seed": None, "max_new_tokens": 7, "num_return_sequences": sequences}
    return CollectedRequest(
        request_id, 1_700_000_000.25, "nano", parameters, (given_,), (made,), correlation_id=f"c-{request_id}"
    )


# --- a file -------------------------------------------------------------------------------------------


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "collected.jsonl"


def test_a_line_has_both_sides_in_azure_s_shape(file: Path) -> None:
    sink = JsonLines(file, max_bytes=1 << 20)
    sink.write(request())
    sink.close()
    assert len(file.read_text(encoding="utf-8").splitlines()) == 1  # U+2028 is escaped
    assert read(file) == [
        {
            "time": "2023-11-14T22:13:20.250Z",
            "correlationid": "c-r-1",
            "request_id": "r-1",
            "model_inputs": [
                {
                    "prompt": "zebra é ☺ 🦙\u2028",
                    "context": '[{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]',
                    "parameters": {
                        "temperature": 0.5, "seed": None, "max_new_tokens": 7, "num_return_sequences": 1
                    },
                }
            ],
            "model_outputs": [
                {
                    "completion": "quokka 0", "finish_reason": "stop", "prompt_tokens": 3, "completion_tokens": 4,
                    "model": "nano", "request_id": "r-1", "end": "complete", "blocked": "",
                }
            ],
        }
    ]  # fmt: skip


def test_only_its_owner_may_read_it(file: Path) -> None:
    before = os.umask(0)
    try:
        sink = JsonLines(file, max_bytes=1)
        sink.write(request())
        sink.write(request())
        sink.close()
    finally:
        os.umask(before)
    paths = list(file.parent.iterdir())
    assert len(paths) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}


@given(st.lists(st.text(max_size=300), min_size=1, max_size=12), st.integers(1, 1500))
@settings(max_examples=40, deadline=None)
def test_nothing_is_lost_over_rotations(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str], most: int
) -> None:
    file = tmp_path_factory.mktemp("rotated") / "c.jsonl"
    sink = JsonLines(file, max_bytes=most)
    for number, prompt in enumerate(prompts):
        sink.write(request(str(number), prompt))
    sink.close()
    rotated = sorted(path for path in file.parent.iterdir() if path != file)
    found = [line for path in (*rotated, file) for line in read(path)]
    assert [line["model_inputs"][0]["prompt"] for line in found] == prompts
    assert all(path.stat().st_size <= most or len(read(path)) == 1 for path in (*rotated, file))


def test_several_writers_share_a_file(file: Path) -> None:
    sinks = [JsonLines(file, max_bytes=4000) for _ in range(3)]

    def write(number: int) -> None:
        for index in range(20):
            sinks[number].write(request(f"{number}-{index}"))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    for sink in sinks:
        sink.close()
    found = [line["request_id"] for path in file.parent.iterdir() for line in read(path)]
    assert sorted(found) == sorted(f"{number}-{index}" for number in range(3) for index in range(20))


def test_a_line_that_a_full_disk_cuts_off_is_removed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink, real, left = JsonLines(file, max_bytes=1 << 20), os.write, [700]

    def write(descriptor: int, raw: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(descriptor, bytes(raw)[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", write)
    sink.write(request("whole"))
    with pytest.raises(SinkError, match="No space left"):
        sink.write(request("cut off"))
    left[0] = 10_000
    sink.write(request("again"))
    sink.close()
    assert [line["request_id"] for line in read(file)] == ["whole", "again"]


def test_a_file_that_was_moved_away_is_begun_anew(file: Path) -> None:
    sink = JsonLines(file, max_bytes=1 << 20)
    sink.write(request("one"))
    file.rename(file.with_name("moved.jsonl"))
    sink.write(request("two"))
    sink.close()
    assert [line["request_id"] for line in read(file)] == ["two"]


@pytest.mark.parametrize("mode", [0o644, 0o666, 0o640, 0o700])
def test_a_file_that_others_may_read_becomes_its_owner_s(file: Path, mode: int) -> None:
    file.touch()
    file.chmod(mode)
    sink = JsonLines(file, max_bytes=1 << 20)
    sink.write(request())
    sink.close()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_file_whose_mode_cannot_be_set_stops_the_start(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    file.touch()
    file.chmod(0o644)
    monkeypatch.setattr(os, "fchmod", refuse)
    with pytest.raises(SetupError, match="Operation not permitted"):
        JsonLines(file, max_bytes=1)


def test_a_line_that_fails_after_a_rotation_leaves_those_of_others(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process writes the new file between its creation and its lock."""
    sink, lock = JsonLines(file, max_bytes=1), JsonLines._lock
    sink.write(request("first"))
    calls: list[None] = []

    def locked(one: JsonLines) -> None:
        calls.append(None)
        if len(calls) == 2:  # (of the new file)
            with file.open("a", encoding="utf-8") as other:
                other.write('{"request_id": "other"}\n')
        lock(one)

    def full(descriptor: int, raw: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(JsonLines, "_lock", locked)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(SinkError):
        sink.write(request("lost"))
    sink.close()
    assert [line["request_id"] for line in read(file)] == ["other"]


def test_a_file_that_another_process_has_locked_costs_a_request_and_no_more(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "LOCK_S", 0.05)
    sink = JsonLines(file, max_bytes=1 << 20)
    with file.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SinkError, match="another process has locked it"):
            sink.write(request("lost"))
    sink.write(request("kept"))
    sink.close()
    assert [line["request_id"] for line in read(file)] == ["kept"]


@pytest.mark.parametrize("way", ["same", "dots", "folder", "hard"])
def test_the_file_of_the_audit_is_refused(file: Path, way: str) -> None:
    file.touch()
    audit = {
        "same": file,
        "dots": file.parent / "x" / ".." / file.name,
        "folder": file.parent / "linked" / file.name,
        "hard": file.with_name("hard.jsonl"),
    }[way]
    (file.parent / "x").mkdir()
    (file.parent / "linked").symlink_to(file.parent)
    if way == "hard":
        audit.hardlink_to(file)
    with pytest.raises(SetupError, match="is the file of LLAMA_AUDIT"):
        configuration.of(Settings(collect="jsonl", collect_file=str(file), audit=str(audit)))


def test_a_link_is_not_followed(file: Path, tmp_path: Path) -> None:
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SetupError, match="can't be written"):
        JsonLines(file, max_bytes=1)


# --- Azure's sidecar ----------------------------------------------------------------------------------


@pytest.fixture
def mdc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DataCollector]:
    def point_to(port: int, **more: Any) -> DataCollector:
        for name, value in deployed(tmp_path, port, **more).items():
            monkeypatch.setenv(name, value)
        return DataCollector.of(os.environ)

    return point_to


def test_the_sidecar_gets_both_sides_as_the_library_sends_them(mdc: Callable[..., DataCollector]) -> None:
    with sidecar() as here:
        sink = mdc(here.port)
        sink.write(request(sequences=2))
        sink.close()
    (path, headers, rows_in), (_, headers_out, rows_out) = here.got
    assert path == "/modeldata/log"
    told = {
        name: headers[name]
        for name in ("content-type", "ce-type", "ce-time", "ce-x-request-id", "ce-collect-data-type")
    }
    assert told == {
        "content-type": "application/json",
        "ce-type": "azureml.inference.model_inputs",
        "ce-time": "1700000000",
        "ce-x-request-id": "c-r-1",
        "ce-collect-data-type": "pandas.core.frame.DataFrame",
    }
    assert headers["ce-agent"].startswith("azureml-ai-monitoring/")
    assert (headers_out["ce-type"], headers_out["ce-x-request-id"]) == (
        "azureml.inference.model_outputs",
        "c-r-1",
    )
    assert rows_in == request(sequences=2).model_inputs()
    assert rows_out == request(sequences=2).model_outputs()
    # Azure's monitoring numbers the rows of a payload and joins both sides by that.
    assert len(rows_in) == len(rows_out) == 2
    assert not {"correlationid"} & {*rows_in[0], *rows_out[0]}  # (it adds this column itself)


def test_the_way_to_the_sidecar_has_no_proxy(
    mdc: Callable[..., DataCollector], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with sidecar() as here:
        sink = mdc(here.port)
        sink.write(request())
        sink.close()
    assert len(here.got) == 2


@pytest.mark.parametrize(
    ("state", "says"), [("500", "answered 500"), ("hangs", "does not answer"), ("away", "does not answer")]
)
def test_a_sidecar_that_is_out_of_order_is_told_without_a_text(
    state: str, says: str, mdc: Callable[..., DataCollector], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(azureml, "TIMEOUT_S", 0.2)
    with sidecar(500 if state == "500" else 200, hangs=state == "hangs") as here:
        sink = mdc(1 if state == "away" else here.port)
        with pytest.raises(SinkError, match=says) as raised:
            sink.write(request())
        sink.close()
    shown = f"{raised.value}{capfd.readouterr()}"
    assert not [word for word in WORDS if word in shown]


def test_a_share_in_the_deployment_s_file_is_an_upper_limit(mdc: Callable[..., DataCollector]) -> None:
    assert mdc(1, percent=25).rate == 0.25
    assert mdc(1).rate == 1.0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"collections": {}}, "model_inputs and model_outputs"),
        ({"collections": {"model_inputs": {"enabled": True}}}, "needs the collections model_outputs in"),
        ({"runMode": "local"}, "prints prompts to the log"),
    ],
)
def test_a_deployment_without_a_collector_stops_the_start(
    mdc: Callable[..., DataCollector], more: dict[str, Any], says: str
) -> None:
    with pytest.raises(SetupError, match=says):
        mdc(1, **more)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"collections": 7}'])
def test_a_broken_file_of_the_deployment_stops_the_start(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mdc.json"
    path.write_text(content, encoding="utf-8")
    monkeypatch.setenv(azureml.CONFIGURATION, str(path))
    with pytest.raises(SetupError, match=r"can't be read"):
        DataCollector.of(os.environ)


# --- OpenTelemetry ------------------------------------------------------------------------------------


@pytest.fixture
def otlp(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, OtlpEvents]]:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
        yield collector, OtlpEvents.of(os.environ)


def test_an_event_has_the_conventions_attributes(otlp: tuple[Any, OtlpEvents]) -> None:
    collector, sink = otlp
    sink.write(request(sequences=2))
    sink.close()
    assert collector.paths == {"/v1/logs"}
    (body,) = (body for _, body in collector.got)
    (resource,) = ExportLogsServiceRequest.FromString(body).resource_logs
    assert attributes(resource.resource)["service.name"] == "ours"
    (record,) = resource.scope_logs[0].log_records
    assert record.time_unix_nano == 1_700_000_000_250_000_000
    told = attributes(record)
    messages = {name: json.loads(told.pop(f"gen_ai.{name}.messages")) for name in ("input", "output")}
    assert [one["role"] for one in messages["input"]] == ["system", "user", "user"]
    assert messages["input"][2]["parts"] == [{"type": "text", "content": "zebra é ☺ 🦙\u2028"}]
    assert messages["output"] == [
        {"role": "assistant", "parts": [{"type": "text", "content": f"quokka {n}"}], "finish_reason": "stop"}
        for n in range(2)
    ]
    assert told == {
        "event.name": "gen_ai.client.inference.operation.details",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "llama-endpoints",
        "gen_ai.request.model": "nano",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.choice.count": 2,
        "gen_ai.response.finish_reasons": ["stop", "stop"],
        "gen_ai.usage.input_tokens": 6,
        "gen_ai.usage.output_tokens": 8,
        "llama.request_id": "r-1",
        "llama.input": 0,
        "llama.end": "complete",
        "llama.blocked": "",
    }


def test_a_completion_is_a_completion() -> None:
    one = CollectedRequest(
        "r", 0.0, "nano", {}, (CollectedInput("a"), CollectedInput("b")), ((CollectedText(),),) * 2
    )
    assert [event["gen_ai.operation.name"] for event in events(one)] == ["text_completion"] * 2
    assert [event["llama.input"] for event in events(one)] == [0, 1]


def test_a_collector_that_is_away_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    sink = OtlpEvents.of(os.environ)
    with pytest.raises(SinkError, match="ConnectionError"):
        sink.write(request())
    sink.close()
    assert not [word for word in WORDS if word in caplog.text]


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "x")]
)
def test_variables_that_cannot_be_used_stop_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SetupError, match=r"can't be used"):
        OtlpEvents.of(os.environ)


# --- what is not installed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("collect", "lacking", "extra"),
    [
        ("azureml", "azureml.ai.monitoring.config", "llama-endpoints[collect]"),
        ("otlp", "opentelemetry.sdk._logs", "llama-endpoints[traces]"),
        ("jsonl", "detect_secrets.plugins", "llama-endpoints[guards]"),
    ],
)
def test_a_package_that_is_not_there_is_named(
    collect: str, lacking: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sink in ("azureml", "otlp"):
        monkeypatch.delitem(sys.modules, f"llama_serving.service.collection.sinks.{sink}", raising=False)
    monkeypatch.setitem(sys.modules, lacking, None)
    with pytest.raises(SetupError, match=re.escape(extra)):
        configuration.of(Settings(collect=collect, collect_file="unused"))
